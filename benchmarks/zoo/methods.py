"""The rows of a cell. A row is one way to spend K network calls, or several of which other seeds choose one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import torch

from forecache import Corrector, Forecaster, schedule
from forecache.rules import Hermite, Reuse, Rule, Taylor

from ..flows import forms, solvers
from ..flows.caches import HiCachePP, Spectrum, Weighted
from ..flows.grids import Grid
from ..flows.methods import Candidate, Method, cached, solver
from ..flows.problems import Problem
from ..flows.schedules import Schedules, fixed_schedules, ramp_schedules

WARMUPS = (1, 2, 3, 4, 6)  # of schedules that are even after them
LONGEST = 6  # warm-up of schedules with a fixed interval
OURS = ("auto", "linear", "dmd")
STEER = OURS[0]  # the row that the steering numbers are about
EDGED = f"{STEER}, edges"  # the same, told where guidance switches


# --- solvers --------------------------------------------------------------------------------------------------------
SOLVERS: dict[str, dict[str, Callable[..., torch.Tensor]]] = {
    "Euler-K": {"": solvers.euler},
    "AB2-K": {"": solvers.ab2},
    "LMS-4-K": {"": solvers.lms},
    "DPM-Solver++(2M)-K": {"": solvers.dpm},
    "UniPC-K": {f"order {order}": partial(solvers.unipc, order=order) for order in (2, 3)},
}


def solver_rows(problem: Problem, calls: int) -> list[Method]:
    """Every solver, with and without a new history where guidance switches."""
    rows = [solver(name, problem, calls, ways) for name, ways in SOLVERS.items()]
    rows[0] = replace(rows[0], candidates=rows[0].candidates[:1])  # Euler has no history
    return rows


# --- published rules ------------------------------------------------------------------------------------------------
@lru_cache
def schedules(steps: int, calls: int) -> tuple[Schedules, Schedules]:
    """Schedules of exactly ``calls`` calls: warm-up and a fixed interval, and those and warm-up and an even spread."""
    effective = range(steps)
    fixed = {
        each: label
        for each, label in fixed_schedules(effective, calls).items()
        if len(each) == calls and int(label.split()[1].rstrip(",")) <= LONGEST
    }
    spread = dict(fixed)
    for warmup in WARMUPS:
        if warmup < calls:
            rest = schedule.even(range(warmup - 1, steps), calls - warmup + 1)
            spread.setdefault((*range(warmup - 1), *rest), f"warm-up {warmup}, even")
    return fixed or spread, spread


@lru_cache
def ramps(steps: int, calls: int) -> Schedules:
    """Spectrum's schedules of exactly ``calls`` calls, the mildest growth for each warm-up and end."""
    found: dict[tuple[str, bool], tuple[tuple[int, ...], str]] = {}
    for each, label in ramp_schedules(range(steps), calls).items():
        if len(each) == calls:
            found.setdefault((label.split(",")[0], "last step" in label), (each, label))
    return dict(found.values()) or schedules(steps, calls)[1]


def published_rows(problem: Problem, calls: int) -> list[Method]:
    """Published rules as published: on the step index, unguarded, on their schedules."""
    fixed, spread = schedules(problem.steps, calls)

    def row(name: str, make: Callable[..., Any], where: Schedules, few: bool = False) -> Method:
        served = attrgetter("served")
        candidates = [cached(partial(make, each), label, served=served) for each, label in where.items()]
        return Method(name, "published", candidates, few=few)

    rules: dict[str, Rule] = {"reuse": Reuse()}
    rules |= {f"TaylorSeer {order}": Taylor(order) for order in (1, 2)}
    rules |= {f"HiCache {order}": Hermite(order, 0.5) for order in (1, 2)}
    rows = [row(name, partial(Weighted, rule=rule), spread) for name, rule in rules.items()]
    for backend in ("dmd", "auto"):
        rows.append(row(f"HiCache++ {backend}", partial(HiCachePP, backend=backend), fixed, few=True))
    found = ramps(problem.steps, calls)
    return rows + [row(f"Spectrum, w = {share:g}", partial(Spectrum, share=share), found) for share in (1.0, 0.5)]


# --- ours -----------------------------------------------------------------------------------------------------------
def our_rows(problem: Problem, calls: int) -> list[Method]:
    """Rules of this package on the sampler's own times with an exact budget, as an adapter asks for them."""
    rows = [Method(name, "ours", [_ours(name, problem, calls)]) for name in OURS]
    if edges := problem.edges(problem.own_grid):
        rows.append(Method(EDGED, "ours", [_ours(STEER, problem, calls, edges)]))
    return rows


def _ours(basis: str, problem: Problem, calls: int, edges: Sequence[int] = ()) -> Candidate:
    def make() -> Forecaster:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of few calls
            admitted = basis == STEER and corrector(problem, problem.own_grid)
            return Forecaster(basis, times=problem.times, calls=calls, edges=edges, corrector=admitted)

    return cached(make, "edges computed" if edges else "", served=partial(share_served, basis=basis))


def corrector(problem: Problem, grid: Grid) -> Corrector:
    """What an adapter says of the sampler: the state moves by a flow's velocity, elsewhere by eps, times the
    differences of ``s``; where the network puts out something else, that is made of it.
    """
    moves = "velocity" if grid.chart == "flow" else "eps"
    rates = None
    if problem.form != moves:
        parts = [forms.coefficients(problem.form, *level) for level in grid.levels[:-1]]
        rates = tuple(
            (noise[0], noise[1]) if moves == "eps" else (data[0] - noise[0], data[1] - noise[1])
            for data, noise in parts
        )
    return Corrector(tuple(grid.s), rates=rates, strength=problem.strength)


def share_served(cache: Forecaster, basis: str) -> float:
    """Share of the forecast steps that the rule itself served: by its name, or, for one that chooses among others, by a
    choice that it did not have to fall back from.
    """
    steps = [step for step in cache.trace.steps if step.kind == "forecast"]
    if basis == STEER:
        own = [not step.fallbacks for step in steps]
    else:
        own = [all(rule.startswith(basis) for rule in step.rules.values()) for step in steps]
    return sum(own) / len(own) if own else math.nan
