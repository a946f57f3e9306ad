"""Which problems there are: a half to develop on and a half to report, which share no flow, grid (but one) or seed.

Of the product of settings each half takes a part in which every two settings meet at least :data:`MEETINGS` times,
chosen greedily with fixed random numbers, so that it is the same wherever it runs.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ..flows.forms import Form, output
from ..flows.grids import GRIDS, Grid
from ..flows.problems import Problem, Seeds, noise
from .mixtures import Mixture

Half = Literal["develop", "report"]
BUDGETS = {50: (19, 15, 11, 9), 25: (11, 9, 7), 12: (8, 6, 5)}
STRENGTH = 3.0
NOISY = (0.5, 1.0)  # guidance interval of flows, as noise levels: TRELLIS
MIDDLE = (0.28 / 1.28, 5.42 / 6.42)  # elsewhere: sigma .28 to 5.42 (arXiv:2404.07724)
MEETINGS = 2  # of every two settings
LOOKED_AT = 300  # points of the product for each that is chosen
OFTEN = 2  # times that 50 steps are drawn for once each of the others


@dataclass(frozen=True)
class Settings:
    """What the closed-form problems of a half are made of, and the first of its seeds."""

    modes: tuple[int, ...]
    dimensions: tuple[int, ...]
    spreads: tuple[float, ...]
    grids: tuple[str, ...]
    seed: int


SETTINGS: dict[Half, Settings] = {
    "develop": Settings(
        (1, 2, 8, 32), (64, 256, 1024), (0.15, 0.4),
        ("even", "shift3", "karras148", "exponential", "leading", "sgm_uniform"), 3_000_000,
    ),
    "report": Settings(
        (1, 4, 16, 64), (96, 384, 768), (0.1, 0.3),
        ("even", "shift5", "karras80", "beta", "trailing"), 4_000_000,
    ),
}  # fmt: skip
CHOOSING = 500_000  # seeds that choose a row's setting come so much after those that it is measured on


def forms_of(grid: Grid) -> tuple[Form, ...]:
    """What networks put out on this chart; a flow starts where alpha = 0, which eps says nothing of."""
    return ("velocity", "v", "data") if grid.chart == "flow" else ("eps", "v", "data")


Point = tuple[int, int, float, str, int, int, str]


def _points(settings: Settings) -> Iterator[Point]:
    """(modes, dimensions, spread, grid, steps, number of the form, guidance); one mode has nothing to guide to."""
    product = itertools.product(
        settings.modes, settings.dimensions, settings.spreads, settings.grids, BUDGETS, range(3),
        ("unguided", "guided", "interval"),
    )  # fmt: skip
    return (point for point in product if point[0] > 1 or point[-1] == "unguided")


def choose(settings: Settings) -> list[Point]:
    """The part of the product that a half takes."""
    left, draw = list(_points(settings)), random.Random(settings.seed)
    met: Counter[tuple[tuple[int, object], ...]] = Counter()

    def pairs(point: Point) -> list[tuple[tuple[int, object], ...]]:
        return list(itertools.combinations(enumerate(point), 2))

    def wanted(pair: tuple[tuple[int, object], ...]) -> int:
        return MEETINGS * (OFTEN if (4, 50) in pair else 1)

    chosen: list[Point] = []
    needed = {pair for point in left for pair in pairs(point)}
    while needed:
        best = max(draw.sample(left, LOOKED_AT), key=lambda point: sum(pair in needed for pair in pairs(point)))
        left.remove(best)
        chosen.append(best)
        met.update(pairs(best))
        needed -= {pair for pair in pairs(best) if met[pair] >= wanted(pair)}
    return chosen


def closed(half: Half) -> list[Problem]:
    """The closed-form problems of a half."""
    settings = SETTINGS[half]
    return [_problem(point, k) for k, point in enumerate(choose(settings))]


def _problem(point: Point, number: int) -> Problem:
    modes, dimensions, spread, name, steps, form_number, guidance = point
    grid = GRIDS[name]
    chart, form = grid(steps).chart, forms_of(grid(steps))[form_number]
    classes = 1 if guidance == "unguided" else min(4, modes)
    flow = Mixture(modes, dimensions, (0.5, 1.0)[number % 2], 1.0 if modes == 1 else spread, classes, seed=number)
    key = f"m{modes}d{dimensions}s{flow.spread:g}p{flow.power:g}-{name}-{steps}-{form}-{guidance}"
    interval = {"interval": NOISY if chart == "flow" else MIDDLE}.get(guidance)
    return Problem(
        key, form, grid, steps, BUDGETS[steps], lambda seeds: noise(seeds, dimensions, dtype=torch.float64),
        partial(_network, flow, form, guidance != "unguided"), interval,
        strength=1.0 if guidance == "unguided" else STRENGTH,
    )  # fmt: skip


def _network(
    flow: Mixture,
    form: Form,
    conditional: bool,
    x: torch.Tensor,
    alpha: float,
    sigma: float,
    seeds: Seeds,
    guided: bool,
) -> torch.Tensor:
    data = (
        flow.guided(x, alpha, sigma, seeds, STRENGTH if guided else 1.0) if conditional else flow.data(x, alpha, sigma)
    )
    return output(form, data, x, alpha, sigma)


def quick(half: Half) -> list[Problem]:
    """A few closed-form problems, one for every grid, that a test or a report has time for."""
    seen: dict[str, Problem] = {}
    for problem in closed(half):
        name = problem.key.split("-")[1]
        if problem.steps <= 25 and name not in seen:
            seen[name] = problem
    return list(seen.values())
