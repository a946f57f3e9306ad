"""Runs of a sampler with and without a cache, and what is read off them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from forecache import Forecaster, Plan, Weights, schedule

from .clocks import Clock, Spent, summary
from .problems import Problem

RULES = ("auto", "dmd", "exponential", "hermite", "plan")
BUDGET = 0.3  # share of the steps that call the network
BUSY_STEPS = 8  # skipped steps that are tried against a busy device


def forecaster(problem: Problem, rule: str) -> Forecaster:
    """A cache with the budget of :data:`BUDGET`. "plan": weights of two snapshots at every skipped step, a line."""
    calls = max(round(BUDGET * problem.steps), 4)
    if rule != "plan":
        return Forecaster(rule, times=problem.times, calls=calls, batch_dim=problem.items)
    times, computed = problem.times, schedule.even(range(problem.steps), calls)
    weights = {}
    for i in range(problem.steps):
        known = [k for k in computed if k < i][-2:]
        if i not in computed and len(known) == 2:
            before, last = (times[k] for k in known)
            ahead = (times[i] - last) / (last - before)
            weights[i] = Weights((-ahead, 1 + ahead))
    return Forecaster(times=times, plan=Plan(times, computed, weights), batch_dim=problem.items)


def sample(problem: Problem, cache: Forecaster | None = None) -> torch.Tensor:
    """The final state of one run."""
    x = problem.noise()
    for i in range(problem.steps):

        def compute(x: torch.Tensor = x, i: int = i) -> Any:
            return problem.call(x, problem.times[i])

        x = problem.advance(x, compute() if cache is None else cache.step(i, compute), i)
    return x


def timed_calls(problem: Problem, clock: Clock) -> tuple[float, list[float]]:
    """Seconds of an uncached run by the wall's clock, and of each of its network calls by the device's. Nothing waits
    for the device between the calls.
    """
    x = problem.noise()

    def uncached_run() -> list[tuple[Any, Any]]:
        marks, state = [], x
        for i in range(problem.steps):
            begin = clock.mark()
            value = problem.call(state, problem.times[i])
            marks.append((begin, clock.mark()))
            state = problem.advance(state, value, i)
        return marks

    marks, spent = clock.timed(uncached_run)
    return spent.wall, [clock.between(*pair) for pair in marks]


Around = Callable[[str, Callable[[], Any]], Any]


def walk(problem: Problem, cache: Forecaster, around: Around) -> None:
    """A cached run whose parts go through ``around(kind, part)``: "call", and "record" of its value; "skip"."""
    x = problem.noise()
    for i in range(problem.steps):
        if cache.needs_compute(i):
            value = around("call", lambda x=x, i=i: problem.call(x, problem.times[i]))  # type: ignore[misc]
            value = around("record", lambda value=value, i=i: cache.observe(i, value))  # type: ignore[misc]
        else:
            value = around("skip", lambda i=i: cache.forecast(i))  # type: ignore[misc]
        x = problem.advance(x, value, i)


def timed_parts(problem: Problem, cache: Forecaster, clock: Clock) -> dict[str, list[Spent]]:
    """Times of every part of a run; the device's queue is empty before and after each."""
    found: dict[str, list[Spent]] = {"call": [], "record": [], "skip": []}

    def around(kind: str, part: Callable[[], Any]) -> Any:
        value, spent = clock.timed(part)
        found[kind].append(spent)
        return value

    walk(problem, cache, around)
    return found


def waits(problem: Problem, cache: Forecaster, clock: Clock) -> dict[str, int]:
    """Most waits of the host for the device within one record and within one skipped step, as torch counts them."""
    found: dict[str, list[int]] = {"record": [], "skip": []}

    def around(kind: str, part: Callable[[], Any]) -> Any:
        if kind == "call":  # the network's own are its own affair
            return part()
        value, count = clock.waits(part)
        found[kind].append(count)
        return value

    walk(problem, cache, around)
    return {kind: max(each, default=0) for kind, each in found.items()}


def returns_early(problem: Problem, cache: Forecaster, clock: Clock) -> bool:
    """Whether skipped steps came back while the device was still at work, :data:`BUSY_STEPS` of them after the first,
    which may have to enlarge torch's pool of pinned memory.
    """
    found: list[bool] = []

    def around(kind: str, part: Callable[[], Any]) -> Any:
        if kind != "skip" or len(found) > BUSY_STEPS:
            return part()
        value, early = clock.returns_early(part)
        found.append(early)
        return value

    walk(problem, cache, around)
    return len(found) > 1 and all(found[1:])


@dataclass(frozen=True)
class Pair:
    """An uncached run and a cached one of a round: seconds by the wall; a network call of the former, mean."""

    uncached: float
    cached: float
    call: float

    def saved(self, skipped: int) -> float:
        """Share of the skipped network time that became saved time, ``(T - T') / (skipped calls x call)``."""
        return (self.uncached - self.cached) / (skipped * self.call)


def pairs(problem: Problem, rules: Sequence[str], clock: Clock, repeats: int) -> dict[str, list[Pair]]:
    """Rounds of one uncached run and one run of each rule, in an order that changes; an untimed round first."""
    found: dict[str, list[Pair]] = {rule: [] for rule in rules}
    shuffled = random.Random(0)
    for k in range(repeats + 1):
        alone, each_call = timed_calls(problem, clock)
        for rule in shuffled.sample(list(rules), len(rules)):
            cache = forecaster(problem, rule)
            spent = clock.timed(lambda cache=cache: sample(problem, cache))[1]  # type: ignore[misc]
            cache.close()
            if k:
                found[rule].append(Pair(alone, spent.wall, float(np.mean(each_call))))
    return found


def by_clock(spent: Sequence[Spent]) -> dict[str, dict[str, float] | None]:
    """Summaries by both clocks."""
    device = [each.device for each in spent if each.device is not None]
    return {"wall": summary([each.wall for each in spent]), "device": summary(device) if device else None}


def measured(problem: Problem, rules: Sequence[str], clock: Clock, repeats: int) -> dict[str, Any]:
    """Everything about one problem, as ``benchmarks/results`` keeps it (``docs/gpu.md``)."""
    for rule in rules:  # first calls compile, allocate and load what later ones find
        sample(problem, forecaster(problem, rule))
    whole = pairs(problem, rules, clock, repeats)
    blind = clock.cuda and not clock.sees_waits()
    alone = clock.peak(lambda: sample(problem))
    found: dict[str, Any] = {}
    every_call: list[Spent] = []
    for rule in rules:
        runs = [timed_parts(problem, forecaster(problem, rule), clock) for _ in range(repeats)]
        every_call += [spent for run in runs for spent in run["call"]]
        cache = forecaster(problem, rule)
        peak = clock.peak(lambda cache=cache: sample(problem, cache))  # type: ignore[misc]
        snapshots, trace = cache.nbytes, cache.trace
        cache.close()
        saved = [pair.saved(trace.forecast) for pair in whole[rule]]
        found[rule] = {
            "calls": trace.computed,
            "skipped": trace.forecast,
            "fallbacks": trace.fallbacks,
            "skip": by_clock([spent for run in runs for spent in run["skip"]]),
            "record": by_clock([spent for run in runs for spent in run["record"]]),
            "saved": {**summary(saved), "least": min(saved)},
            "seconds": {
                "uncached": summary([pair.uncached for pair in whole[rule]]),
                "cached": summary([pair.cached for pair in whole[rule]]),
            },
            "memory": None if alone is None else {"uncached": alone, "cached": peak, "snapshots": snapshots},
            "waits": None if blind or not clock.cuda else waits(problem, forecaster(problem, rule), clock),
            "returns_early": returns_early(problem, forecaster(problem, rule), clock) if clock.cuda else None,
        }
    call = by_clock(every_call)
    for each in found.values():
        each["overhead"] = {
            name: None if (skip := each["skip"][name]) is None else skip["median"] / call[name]["median"]  # type: ignore[index]
            for name in ("wall", "device")
        }
    return {
        "name": problem.name,
        "network": problem.network,
        "stand_in": problem.stand_in,
        "left_out": problem.left_out,
        "parameters": problem.parameters,
        "value": problem.value,
        "steps": problem.steps,
        "call": call,
        "rules": found,
    }
