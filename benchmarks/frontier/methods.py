"""The rows of the table. A method is one candidate, or several of which calibration conditions choose one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from forecache import Calibration, Forecaster, Plan, schedule
from forecache.rules import Hermite, Linear, Reuse, Rule, Taylor

from . import solvers
from .caches import EasyCache, HiCachePP, Spectrum, ramp
from .problems import Problem, Seeds
from .sampling import Result, Streams, reference_runner, runner, sample, solve

Kind = Literal["solver", "published cache", "forecache", "control"]
SIGMAS = (0.3, 0.5, 0.7)
GATED = 4  # conditions that set EasyCache's threshold: each samples alone, since each has its own gate
WARMUPS = (10, 3)  # EasyCache: the published one, and one for budgets that it does not fit into


@dataclass(frozen=True, eq=False)
class Candidate:
    """One setting: how to run it, and what to call it."""

    label: str
    run: Callable[[Seeds], Result]


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        name, kind: for the table and the plot.
        candidates: settings of which the calibration conditions choose one.
        by: what they are chosen by: "drift" to the N-step run, "error" to the fine solution (solvers aim at that).
    """

    name: str
    kind: Kind
    candidates: Sequence[Candidate]
    by: Literal["drift", "error"] = "drift"


def cached(problem: Problem, make: Callable[[], Any], label: str = "", streams: Streams = "combined") -> Candidate:
    """A candidate that samples with a fresh cache from ``make`` in every run."""
    return Candidate(label, lambda seeds: sample(problem, seeds, make(), streams))


# --- solvers --------------------------------------------------------------------------------------------------------
def solver_rows(problem: Problem, calls: int) -> list[Method]:
    """``calls`` steps on a grid with the problem's shift. Histories that start anew at a guidance edge are candidates
    beside those that do not.
    """
    grid = problem.grid(calls)
    edges = problem.edges(grid)

    def candidates(solver: Callable[..., Any], options: Mapping[str, Mapping[str, Any]]) -> list[Candidate]:
        found = []
        for how, each in options.items():
            for where, restart in {"": (), "restart at the edge": tuple(edges)}.items():
                if restart or not where:
                    run = partial(solve, problem, solver=solver, times=grid, restart=restart, **each)
                    found.append(Candidate(", ".join(filter(None, (how, where))), run))
        return found

    dpm: dict[str, dict[str, Any]] = {"2M midpoint": {}, "2M heun": {"solver_type": "heun"}, "3M": {"order": 3}}
    pc = {"order 2": {"order": 2}, "order 3": {"order": 3}}
    euler = Candidate("", lambda seeds: solve(problem, seeds, solvers.euler, grid))
    return [
        Method("Euler-K", "solver", [euler]),
        Method("AB2-K", "solver", candidates(solvers.ab2, {"": {}}), "error"),
        Method("DPM-Solver++ multistep-K", "solver", candidates(solvers.dpm_solver, dpm), "error"),
        Method("UniPC-K", "solver", candidates(solvers.unipc, pc), "error"),
    ]


def euler_on(problem: Problem, name: str, computed: Sequence[int]) -> Method:
    """Euler with long steps over the times of the computed steps."""
    grid = (*(problem.times[i] for i in computed), problem.times[-1])
    return Method(name, "solver", [Candidate("", lambda seeds: solve(problem, seeds, solvers.euler, grid))])


# --- published caches -----------------------------------------------------------------------------------------------
Schedules = dict[tuple[int, ...], str]


def closest(found: Schedules, calls: int) -> Schedules:
    """Those of exactly ``calls`` computed steps; where there are none, of the next larger number."""
    length = min((len(each) for each in found if len(each) >= calls), default=0)
    return {each: label for each, label in found.items() if len(each) == length}


def fixed_schedules(effective: Sequence[int], calls: int) -> Schedules:
    """Every schedule of HiCache's form (warm-up, then a fixed interval, and the last step) with ``calls`` calls."""
    found: Schedules = {}
    for interval in range(1, len(effective) + 1):
        for warmup in range(1, len(effective) + 1):
            found.setdefault(
                schedule.fixed_interval(effective, interval, warmup), f"warm-up {warmup}, interval {interval}"
            )
    return closest(found, calls)


def ramp_schedules(effective: Sequence[int], calls: int) -> Schedules:
    """Growth ramps of Spectrum's form with ``calls`` calls, with the published or a shorter warm-up, as published and
    with the last step.
    """
    found: Schedules = {}
    for warmup in (5, 4, 3, 2):
        for growth in (0.75, 3.0, 0.0, *np.geomspace(0.02, 12, 60).tolist()):  # the published ones first
            label = f"warm-up {warmup}, growth {growth:.3g}"
            found.setdefault(ramp(effective, warmup, growth), label)
            found.setdefault(schedule.ramp(effective, warmup, 2.0, growth), f"{label}, last step")
    return closest(found, calls)


def published(problem: Problem, rule: Rule, computed: Sequence[int]) -> Forecaster:
    """A rule as published: on the combined velocity, without the guard."""
    return Forecaster(rule, times=problem.times, computed=computed, guard=math.inf)


def cache_rows(problem: Problem, calls: int) -> list[Method]:
    """One method per published rule and order; every schedule of its form with ``calls`` calls is a candidate."""
    fixed = fixed_schedules(problem.effective, calls)

    def family(name: str, rules: Mapping[str, Callable[[Sequence[int]], Any]], schedules: Schedules = fixed) -> Method:
        candidates = [
            cached(problem, partial(make, computed), ", ".join(filter(None, (how, where))))
            for computed, where in schedules.items()
            for how, make in rules.items()
        ]
        return Method(name, "published cache", candidates)

    def rule(each: Rule) -> Callable[[Sequence[int]], Any]:
        return lambda computed: published(problem, each, computed)

    others = {f"order {o}, sigma {s:g}": rule(Hermite(o, s)) for o in (1, 2) for s in SIGMAS if (o, s) != (2, 0.5)}
    dmd = {f"order {o}": partial(HiCachePP, order=o) for o in (1, 2)}
    ramps = ramp_schedules(problem.effective, calls)
    return [
        family("reuse, fixed interval", {"": rule(Reuse())}),
        *(family(f"TaylorSeer order {o}", {"": rule(Taylor(o))}) for o in (1, 2, 3)),
        family("HiCache order 2, sigma 0.5", {"": rule(Hermite(2, 0.5))}),
        family("HiCache, best order and sigma", others),
        family("HiCache++ DMD (hicache-pp)", dmd),
        family("Spectrum, w = 1", {"": partial(Spectrum, share=1.0)}, ramps),
        family("Spectrum, w = 0.5", {"": partial(Spectrum, share=0.5)}, ramps),
    ]


FIXED_INTERVAL = ("reuse, fixed interval", "TaylorSeer", "HiCache")  # names that take part in the best of them


def easycache_rows(problem: Problem, calls: int, seeds: Seeds) -> list[Method]:
    """EasyCache with the smallest threshold whose mean calls over the first calibration ``seeds`` keep the budget."""
    last = problem.effective[-1]
    rows = []
    for name, payload in (("EasyCache", "published"), ("EasyCache's gate, reuse", "reuse")):
        candidates = []
        for warmup in WARMUPS:
            if warmup + 1 > calls:
                continue

            def make(tau: float, warmup: int = warmup, payload: Any = payload) -> EasyCache:
                return EasyCache(last, tau, warmup, payload)

            low, high = math.log(1e-3), math.log(1e1)
            for _ in range(10):
                middle = (low + high) / 2
                mean = sample(problem, seeds[:GATED], make(math.exp(middle))).calls.mean()
                low, high = (low, middle) if mean <= calls else (middle, high)
            tau = math.exp(high)
            candidates.append(cached(problem, partial(make, tau), f"warm-up {warmup}, tau {tau:.3g}"))
        if candidates:
            rows.append(Method(name, "published cache", candidates))
    return rows


# --- forecache ------------------------------------------------------------------------------------------------------
def forecache_rows(problem: Problem, calls: int) -> list[Method]:
    """Rules of this package that need no calibration, on their own schedules of ``calls`` calls."""

    def row(name: str, basis: Any, streams: Streams = "combined", **settings: Any) -> Method:
        make = partial(Forecaster, basis, times=problem.times, calls=calls, **settings)
        return Method(name, "forecache", [cached(problem, make, streams=streams)])

    rows = [row("linear, even", "linear"), row("linear order 2, even", Linear(2)), row("chebyshev, even", "chebyshev"),
            row("auto", "auto")]  # fmt: skip
    edges = problem.edges(problem.times)
    if edges:
        rows += [
            row("auto, branches apart", "auto", "apart"),
            row("auto, edge computed", "auto", "edges", edges=edges),
        ]
    return rows


@dataclass(frozen=True)
class Making:
    """How plans are made: keywords of :class:`forecache.Calibration`. ``refine`` holds for plans that imitate only."""

    refine: int = 0
    memory: int = 4
    ridge: float = 1e-3


def calibration(
    problem: Problem, seeds: Seeds, target: Literal["uncached", "reference"], streams: Streams, making: Making
) -> Calibration:
    """Recordings that plans of every budget and of both targets share: they land on the uncached run or on the fine
    solution.
    """
    near, fine = ("uncached", streams, tuple(seeds)), ("reference", streams, tuple(seeds))
    if near not in problem.calibrations:
        problem.calibrations[near] = Calibration(
            runner(problem, streams),
            times=problem.times,
            seeds=seeds,
            guidance_scale=None if streams == "combined" else problem.scale,
            memory=making.memory,
            ridge=making.ridge,
            made_for={"problem": problem.key, "guidance_scale": problem.scale, "streams": streams},
        )
        reference = reference_runner(problem), problem.times
        problem.calibrations[fine] = problem.calibrations[near].toward(reference)
    made = problem.calibrations[near if target == "uncached" else fine]
    made.refine = making.refine if target == "uncached" else 0
    return made


def plan_rows(problem: Problem, calls: int, seeds: Seeds, making: Making | None = None) -> list[Method]:
    """Plans, their schedule with other weights, and Euler with long steps on it.

    Where there is guidance a plan has its branches apart: the difference is a column of its own.
    """
    streams: Streams = "combined" if problem.interval is None else "optional"
    apart = "" if problem.interval is None else "branches apart"

    how_made = making or Making()

    def candidate(target: Literal["uncached", "reference"]) -> tuple[Candidate, Plan]:
        by = calibration(problem, seeds, target, streams, how_made)
        made = by.plan(calls)
        make = partial(Forecaster, times=problem.times, plan=made, made_for=made.made_for)
        how = ", ".join(filter(None, (apart, f"refined, {by.refine} round(s)" if by.refine else "")))
        return cached(problem, make, how, streams), made

    (near, plan), (fine, _) = candidate("uncached"), candidate("reference")
    computed = plan.computed
    on_its_steps = cached(problem, lambda: Forecaster(Linear(2), times=problem.times, computed=computed))
    return [
        euler_on(problem, "Euler on the plan's steps", computed),
        Method("plan's steps, linear order 2", "forecache", [on_its_steps]),
        Method("plan", "forecache", [near]),
        Method("plan, target reference", "forecache", [fine], "error"),
    ]
