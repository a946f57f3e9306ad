"""The rows of the table. A method is one candidate, or several of which calibration conditions choose one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from forecache import Calibration, Forecaster, Plan
from forecache.rules import Hermite, Linear, Reuse, Rule, Taylor

from ..flows import solvers
from ..flows.caches import EasyCache, HiCachePP, Spectrum
from ..flows.grids import Grid
from ..flows.methods import Candidate, Method, cached, solver
from ..flows.problems import Problem
from ..flows.sampling import Batch, Streams, reference_runner, runner
from ..flows.schedules import Schedules, fixed_schedules, ramp_schedules

SIGMAS = (0.3, 0.5, 0.7)
GATED = 4  # conditions that set EasyCache's threshold: each samples alone, since each has its own gate
WARMUPS = (10, 3)  # EasyCache: the published one, and one for budgets that it does not fit into


# --- solvers --------------------------------------------------------------------------------------------------------
def solver_rows(problem: Problem, calls: int) -> list[Method]:
    """``calls`` steps on a grid with the problem's shift. Histories that start anew at a guidance edge are candidates
    beside those that do not.
    """
    dpm, pc = solvers.flow_dpm, solvers.flow_unipc
    ways: dict[str, dict[str, Callable[..., Any]]] = {
        "AB2-K": {"": solvers.ab2},
        "DPM-Solver++ multistep-K": {
            "2M midpoint": dpm, "2M heun": partial(dpm, solver_type="heun"), "3M": partial(dpm, order=3)
        },
        "UniPC-K": {"order 2": pc, "order 3": partial(pc, order=3)},
    }  # fmt: skip
    found = [solver(name, problem, calls, each, "restart at the edge") for name, each in ways.items()]
    return [euler_on("Euler-K", problem.grid(calls)), *found]


def euler_on(name: str, grid: Grid) -> Method:
    """Euler with long steps."""
    return Method(name, "solver", [Candidate("", lambda batch: batch.solve(solvers.euler, grid))])


# --- published caches -----------------------------------------------------------------------------------------------
def published(problem: Problem, rule: Rule, computed: Sequence[int]) -> Forecaster:
    """A rule as published: on the combined velocity, without the guard."""
    return Forecaster(rule, times=problem.times, computed=computed, guard=math.inf)


def cache_rows(problem: Problem, calls: int) -> list[Method]:
    """One method per published rule and order; every schedule of its form with ``calls`` calls is a candidate."""
    fixed = fixed_schedules(range(problem.steps), calls)

    def family(name: str, rules: Mapping[str, Callable[[Sequence[int]], Any]], schedules: Schedules = fixed) -> Method:
        candidates = [
            cached(partial(make, computed), ", ".join(filter(None, (how, where))))
            for computed, where in schedules.items()
            for how, make in rules.items()
        ]
        return Method(name, "published cache", candidates)

    def rule(each: Rule) -> Callable[[Sequence[int]], Any]:
        return lambda computed: published(problem, each, computed)

    others = {f"order {o}, sigma {s:g}": rule(Hermite(o, s)) for o in (1, 2) for s in SIGMAS if (o, s) != (2, 0.5)}
    dmd = {f"order {o}": partial(HiCachePP, order=o) for o in (1, 2)}
    ramps = ramp_schedules(range(problem.steps), calls)
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


def easycache_rows(batch: Batch, calls: int) -> list[Method]:
    """EasyCache with the smallest threshold whose mean calls over the first calibration conditions keep the budget."""
    gated, last = batch.part(batch.seeds[:GATED]), batch.problem.steps - 1
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
                mean = gated.sample(make(math.exp(middle))).calls.mean()
                low, high = (low, middle) if mean <= calls else (middle, high)
            tau = math.exp(high)
            candidates.append(cached(partial(make, tau), f"warm-up {warmup}, tau {tau:.3g}"))
        if candidates:
            rows.append(Method(name, "published cache", candidates))
    return rows


# --- forecache ------------------------------------------------------------------------------------------------------
def forecache_rows(problem: Problem, calls: int) -> list[Method]:
    """Rules of this package that need no calibration, on their own schedules of ``calls`` calls."""

    def row(name: str, basis: Any, streams: Streams = "combined", **settings: Any) -> Method:
        make = partial(Forecaster, basis, times=problem.times, calls=calls, **settings)
        return Method(name, "forecache", [cached(make, streams=streams)])

    rows = [row("linear, even", "linear"), row("linear order 2, even", Linear(2)), row("chebyshev, even", "chebyshev"),
            row("auto", "auto")]  # fmt: skip
    edges = problem.edges(problem.own_grid)
    if edges:
        rows += [row("auto, branches apart", "auto", "apart"), row("auto, edge computed", "auto", "edges", edges=edges)]
    return rows


@dataclass(frozen=True)
class Making:
    """How plans are made: keywords of :class:`forecache.Calibration`. ``refine`` holds for plans that imitate only."""

    refine: int = 0
    memory: int = 4
    ridge: float = 1e-3


def calibration(
    batch: Batch, target: Literal["uncached", "reference"], streams: Streams, making: Making
) -> Calibration:
    """Recordings that plans of every budget and of both targets share: they land on the uncached run or on the fine
    solution.
    """
    problem, made = batch.problem, batch.memory.calibrations
    near, fine = ((each, streams, tuple(batch.seeds)) for each in ("uncached", "reference"))
    if near not in made:
        made[near] = Calibration(
            runner(batch, streams),
            times=problem.times,
            seeds=batch.seeds,
            guidance_scale=None if streams == "combined" else problem.strength,
            memory=making.memory,
            ridge=making.ridge,
            made_for={"problem": problem.key, "guidance_scale": problem.strength, "streams": streams},
        )
        made[fine] = made[near].toward((reference_runner(batch), problem.times))
    found = made[near if target == "uncached" else fine]
    found.refine = making.refine if target == "uncached" else 0
    return found


def plan_rows(batch: Batch, calls: int, making: Making) -> list[Method]:
    """Plans, their schedule with other weights, and Euler with long steps on it.

    Where there is guidance a plan has its branches apart: the difference is a column of its own.
    """
    problem = batch.problem
    streams: Streams = "combined" if problem.interval is None else "optional"
    apart = "" if problem.interval is None else "branches apart"

    def candidate(target: Literal["uncached", "reference"]) -> tuple[Candidate, Plan]:
        by = calibration(batch, target, streams, making)
        made = by.plan(calls)
        make = partial(Forecaster, times=problem.times, plan=made, made_for=made.made_for)
        how = ", ".join(filter(None, (apart, f"refined, {by.refine} round(s)" if by.refine else "")))
        return cached(make, how, streams), made

    (near, plan), (fine, _) = candidate("uncached"), candidate("reference")
    long = (*(problem.times[i] for i in plan.computed), problem.times[-1])
    on_its_steps = partial(Forecaster, Linear(2), times=problem.times, computed=plan.computed)
    return [
        euler_on("Euler on the plan's steps", Grid("flow", long, long)),
        Method("plan's steps, linear order 2", "forecache", [cached(on_its_steps)]),
        Method("plan", "forecache", [near]),
        Method("plan, target reference", "forecache", [fine], "error"),
    ]
