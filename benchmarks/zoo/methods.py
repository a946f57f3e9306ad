"""The rows of a cell. A row is one way to spend K network calls, or several of which other seeds choose one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch

from benchmarks.frontier.caches import HiCachePP, Spectrum, Weighted
from benchmarks.frontier.methods import fixed_schedules, ramp_schedules
from forecache import Corrector, Forecaster, schedule
from forecache.rules import Hermite, Reuse, Rule, Taylor

from . import forms, solvers
from .grids import Grid
from .problems import Batch, Problem

Kind = Literal["solver", "published", "ours"]
WARMUPS = (1, 2, 3, 4, 6)  # of schedules that are even after them
LONGEST = 6  # warm-up of schedules with a fixed interval
OURS = ("auto", "linear", "dmd")
STEER = OURS[0]  # the row that the steering numbers are about
EDGED = f"{STEER}, edges"  # the same, told where guidance switches


@dataclass(frozen=True)
class Run:
    """Where a row ended, and the share of its skipped steps that the rule it is named after served."""

    end: torch.Tensor
    served: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One setting: what to call it, and how to run it on a batch."""

    label: str
    run: Callable[[Batch], Run]


@dataclass(frozen=True)
class Method:
    """A row of a cell.

    Attributes:
        by: what candidates are chosen by; a solver aims at the flow, a cache at the uncached run.
        few: they are tried on half of the seeds that choose: each item has a state of its own, which takes long.
    """

    name: str
    kind: Kind
    candidates: Sequence[Candidate]
    by: Literal["drift", "error"] = "drift"
    few: bool = False


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
    grid = problem.grid(calls)
    edges = problem.edges(grid)

    def candidates(name: str) -> list[Candidate]:
        found = []
        for how, solver in SOLVERS[name].items():
            for where, restart in {"": (), "restart": tuple(edges)}.items():
                if restart or not where:
                    run = partial(_solved, solver, grid, restart)
                    found.append(Candidate(", ".join(filter(None, (how, where))), run))
        return found[:1] if name == "Euler-K" else found

    return [Method(name, "solver", candidates(name), "error") for name in SOLVERS]


def _solved(solver: Callable[..., torch.Tensor], grid: Any, restart: Sequence[int], batch: Batch) -> Run:
    return Run(solver(batch, grid, restart))


# --- published rules ------------------------------------------------------------------------------------------------
@lru_cache
def schedules(steps: int, calls: int) -> tuple[dict[tuple[int, ...], str], dict[tuple[int, ...], str]]:
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
def ramps(steps: int, calls: int) -> dict[tuple[int, ...], str]:
    """Spectrum's schedules of exactly ``calls`` calls, the mildest growth for each warm-up and end."""
    found: dict[tuple[str, bool], tuple[tuple[int, ...], str]] = {}
    for each, label in ramp_schedules(range(steps), calls).items():
        if len(each) == calls:
            found.setdefault((label.split(",")[0], "last step" in label), (each, label))
    return dict(found.values()) or schedules(steps, calls)[1]


def published_rows(problem: Problem, calls: int) -> list[Method]:
    """Published rules as published: on the step index, unguarded, on their schedules."""
    fixed, spread = schedules(problem.steps, calls)

    def row(name: str, make: Callable[..., Any], where: dict[tuple[int, ...], str], few: bool = False) -> Method:
        candidates = [Candidate(label, partial(_cached, partial(make, each))) for each, label in where.items()]
        return Method(name, "published", candidates, few=few)

    rules: dict[str, Rule] = {"reuse": Reuse()}
    rules |= {f"TaylorSeer {order}": Taylor(order) for order in (1, 2)}
    rules |= {f"HiCache {order}": Hermite(order, 0.5) for order in (1, 2)}
    rows = [row(name, partial(Weighted, rule=rule), spread) for name, rule in rules.items()]
    for backend in ("dmd", "auto"):
        rows.append(row(f"HiCache++ {backend}", partial(HiCachePP, backend=backend), fixed, few=True))
    found = ramps(problem.steps, calls)
    return rows + [row(f"Spectrum, w = {share:g}", partial(Spectrum, share=share), found) for share in (1.0, 0.5)]


def _cached(make: Callable[[], Any], batch: Batch) -> Run:
    cache = make()
    return Run(batch.sample(cache), cache.served)


# --- ours -----------------------------------------------------------------------------------------------------------
def our_rows(problem: Problem, calls: int) -> list[Method]:
    """Rules of this package on the sampler's own times with an exact budget, as an adapter asks for them."""
    grid = problem.grid(problem.steps)
    rows = [Method(name, "ours", [Candidate("", partial(_ours, name, grid.times, calls, ()))]) for name in OURS]
    if edges := problem.edges(grid):
        told = Candidate("edges computed", partial(_ours, STEER, grid.times, calls, tuple(edges)))
        rows.append(Method(EDGED, "ours", [told]))
    return rows


def _ours(basis: str, times: Sequence[float], calls: int, edges: Sequence[int], batch: Batch) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of few calls
        admitted = basis == STEER and corrector(batch.problem, batch.grid)
        cache = Forecaster(basis, times=times, calls=calls, edges=edges, corrector=admitted)
    return Run(batch.sample(cache), served(cache, basis))


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


def served(cache: Forecaster, basis: str) -> float:
    """Share of the forecast steps that the rule itself served: by its name, or, for one that chooses among others, by a
    choice that it did not have to fall back from.
    """
    steps = [step for step in cache.trace.steps if step.kind == "forecast"]
    if basis == STEER:
        own = [not step.fallbacks for step in steps]
    else:
        own = [all(rule.startswith(basis) for rule in step.rules.values()) for step in steps]
    return sum(own) / len(own) if own else math.nan
