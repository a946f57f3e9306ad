"""One problem of the zoo: a network on a grid, and the runs that every row of its cells shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.frontier import solvers
from benchmarks.frontier.problems import EDGE

from . import forms
from .forms import Form
from .grids import Grid, level

Seeds = Sequence[int]
FINE = 400  # steps of the fine solution, at least


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on a kind of grid.

    Attributes:
        key: its name, unique in a half.
        form: what the network puts out.
        grid: the grid of so many steps.
        steps: N of the uncached run.
        budgets: network calls to measure at.
        noise: ``[B, ...]`` of the seeds.
        network: ``(x, alpha, sigma, seeds, guided) -> o``, both branches combined.
        interval: noise levels ``sigma / (alpha + sigma)`` between which guidance is on; ``None``: at all, or never.
        group: "closed form", "published network", "reference network", for the table.
        dear: its network takes long: half the seeds and half the fine steps, a quarter of the seeds that choose.
        strength: g of ``u + g (c - u)``, where there is guidance.
    """

    key: str
    form: Form
    grid: Callable[[int], Grid]
    steps: int
    budgets: tuple[int, ...]
    noise: Callable[[Seeds], torch.Tensor]
    network: Callable[[torch.Tensor, float, float, Seeds, bool], torch.Tensor]
    interval: tuple[float, float] | None = None
    group: str = "closed form"
    dear: bool = False
    strength: float = 1.0

    def guided(self, alpha: float, sigma: float) -> bool:
        """Whether guidance is on at this level."""
        low, high = self.interval or (0.0, 1.0)
        return low - EDGE <= sigma / (alpha + sigma) <= high + EDGE

    def edges(self, grid: Grid) -> list[int]:
        """First steps after guidance switches."""
        on = [self.guided(*each) for each in grid.levels[:-1]]
        return [i for i in range(1, len(on)) if on[i] != on[i - 1]]

    def start(self, seeds: Seeds, grid: Grid) -> torch.Tensor:
        """Noise at the grid's first level."""
        return self.noise(seeds) * math.hypot(*grid.levels[0])


class Batch:
    """A problem for some seeds, in one tensor: the network counted, the uncached run and the fine solution kept."""

    def __init__(self, problem: Problem, seeds: Seeds) -> None:
        self.problem, self.seeds, self.calls = problem, list(seeds), 0
        self.grid = problem.grid(problem.steps)

    def output(self, x: torch.Tensor, alpha: float, sigma: float, guided: bool | None = None) -> torch.Tensor:
        """The network; ``guided`` overrides the guidance interval."""
        self.calls += 1
        on = self.problem.guided(alpha, sigma) if guided is None else guided
        return self.problem.network(x, alpha, sigma, self.seeds, on)

    def data(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The denoised sample."""
        return forms.split(self.problem.form, self.output(x, alpha, sigma), x, alpha, sigma)[0]

    def slope(self, u: torch.Tensor, s: float, guided: bool | None = None) -> torch.Tensor:
        """``du/ds`` on the grid's chart."""
        alpha, sigma = level(self.grid.chart, s)
        x = u * alpha if self.grid.chart == "vp" else u
        data, noise = forms.split(self.problem.form, self.output(x, alpha, sigma, guided), x, alpha, sigma)
        return data - noise if self.grid.chart == "flow" else noise

    def sample(self, cache: Any = None) -> torch.Tensor:
        """The N-step sampler with a cache in it; ``None``: every step computed.

        Up to the first forecast the states are those of the uncached run, whose outputs are used again.
        """
        grid, form = self.grid, self.problem.form
        x, known = self.problem.start(self.seeds, grid), [] if cache is None else self.uncached[0]
        path = []
        for i, (here, there) in enumerate(pairwise(grid.levels)):

            def compute(i: int = i, here: tuple[float, float] = here, x: torch.Tensor = x) -> torch.Tensor:
                if i < len(known) and torch.equal(x, known[i][0]):
                    self.calls += 1
                    return known[i][1]
                return self.output(x, *here)

            o = compute() if cache is None else cache.step(i, compute, state=x)
            path.append((x, o))
            a, b = forms.advance(form, here, there)
            x = a * x + b * o
        if cache is None:
            self._path = path
        return x

    @cached_property
    def uncached(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Pairs (state, output) of the uncached run, and where it ends."""
        end = self.sample()
        return self._path, end

    @cached_property
    def fine(self) -> torch.Tensor:
        """The end of the flow itself: AB2 with at least :data:`FINE` steps, anew where guidance switches."""
        chart, s = self.grid.chart, self.grid.s
        nodes = sorted({*s, *(e for e in self._switches() if min(s) < e < max(s))}, reverse=s[0] > s[-1])
        alpha, _ = level(chart, s[0])
        x = self.problem.start(self.seeds, self.grid)
        u = x / alpha if chart == "vp" else x
        parts = math.ceil(FINE / (2 if self.problem.dear else 1) / len(s))
        for a, b in self._stretches(nodes):
            inside = [e for e in nodes if min(a, b) <= e <= max(a, b)]
            points = [p for lo, hi in pairwise(inside) for p in np.linspace(lo, hi, parts + 1)[:-1].tolist()]
            guided = self.problem.guided(*level(chart, (a + b) / 2))
            u = solvers.ab2(partial(self.slope, guided=guided), u, [*points, b], second=True)
        return u * level(chart, s[-1])[0] if chart == "vp" else u

    def _switches(self) -> list[float]:
        """``s`` where guidance switches; one that is a grid point but for round-off is that point."""
        found = []
        for n in self.problem.interval or ():
            if 0 < n < 1:
                s = 1 - n if self.grid.chart == "flow" else n / (1 - n)
                near = min(self.grid.s, key=lambda each: abs(each - s))
                found.append(near if abs(near - s) <= EDGE else s)
        return found

    def _stretches(self, nodes: list[float]) -> list[tuple[float, float]]:
        ends = [nodes[0], *(e for e in nodes[1:-1] if e in self._switches()), nodes[-1]]
        return list(pairwise(ends))
