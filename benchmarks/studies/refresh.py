"""Why no run refreshes early: ``python -m benchmarks.studies.refresh CHECKOUT`` (a checkout of Hunyuan3D-2.1).

Each computed step scores the forecast that it ends (``Step.forward_error``). Here a score above the 95th percentile of
the calibration conditions triggers a refresh: a computed step in the middle of the gap that follows. The budget is
kept: either the next computed step moves there, or one is put there and paid back by the later one whose absence leaves
the shortest gap. On *test* conditions of the reference network; cells are median / p95 of latent drift x 1000.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from forecache import Calibration, Forecaster, Plan
from forecache.trace import Step
from forecache_lab.generators.reference import CALIBRATION_SEED, TEST_SEED

from ..flows import hunyuan21
from ..flows.problems import Problem
from ..flows.sampling import Batch, runner
from ..tables import markdown, thousandths

How = Literal["never", "move", "insert"]
Limits = Mapping[int, float]


class Refreshing(Forecaster):
    """A forecaster that answers an outlier with an early refresh.

    Attributes:
        limits: by planned computed step, the score above which it is one.
        refreshed: how often that happened in the run.
    """

    def __init__(self, how: How, limits: Limits, **settings: Any) -> None:
        super().__init__(**settings)
        self.how, self.limits, self.refreshed = how, limits, 0

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        """As :meth:`forecache.Forecaster.observe`; the score may move later computed steps."""
        given = super().observe(i, value, state)
        if self.how != "never" and score(self.trace.steps[-1]) > self.limits.get(i, math.inf):
            self._refresh(i)
        return given

    def _refresh(self, i: int) -> None:
        later = sorted(k for k in self._wanted if k > i)
        if len(later) < 2 or later[0] < i + 3:
            return
        gone = later[0]
        if self.how == "insert":
            ends = (i, *later)
            gone = min(later[:-1], key=lambda k: ends[ends.index(k) + 1] - ends[ends.index(k) - 1])
        self._wanted = self._wanted - {gone} | {(i + later[0]) // 2}
        self.refreshed += 1

    def needs_compute(self, i: int) -> bool:
        """As :meth:`forecache.Forecaster.needs_compute`; from the first step on whose snapshots are not those that the
        plan's weights were fitted to, the calibration-free rule serves the run and nothing is corrected.
        """
        weights = self._planner.at(i).get("")
        if weights is not None and self.refreshed:
            n = len(weights.velocity) - self._planner.corrects(i)  # a corrected step is the newest of its own snapshots
            mine = [step.index for step in self.trace.steps if step.kind == "computed"]
            planned = [k for k in self.computed if k < i]
            if mine[-n:] != planned[-n:]:
                self._planner.weights = {}
        return super().needs_compute(i)


def score(step: Step) -> float:
    """The forward error of a step, 0 where nothing was forecast."""
    return max(step.forward_error.values(), default=0.0)


def scores(problem: Problem, seeds: range, make: Callable[..., Forecaster]) -> Limits:
    """By computed step, the 95th percentile of the scores over ``seeds``."""
    found: dict[int, list[float]] = {}
    for seed in seeds:
        cache = make()
        Batch(problem, [seed]).sample(cache)
        for step in cache.trace.steps:
            if step.forward_error:
                found.setdefault(step.index, []).append(score(step))
    return {i: float(np.percentile(each, 95)) for i, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=[9, 11])
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--test", type=int, default=32)
    a = parser.parse_args()
    torch.set_num_threads(1)
    problem = hunyuan21.problems(a.checkout)["hunyuan50"]
    learned = range(CALIBRATION_SEED, CALIBRATION_SEED + a.calibration)
    test = range(TEST_SEED, TEST_SEED + a.test)
    batches = [Batch(problem, [seed]) for seed in test]
    made = Calibration(runner(Batch(problem, learned)), times=problem.times, seeds=learned)
    rows = []
    for calls in a.calls:
        plan: Plan = made.plan(calls)
        for name, settings in (("auto", {"calls": calls}), ("plan", {"plan": plan})):
            make = partial(Refreshing, times=problem.times, **settings)
            limits = scores(problem, learned, partial(make, how="never", limits={}))
            cells = []
            for how in ("never", "move", "insert"):
                drift, refreshed = [], 0
                for batch in tqdm(batches, f"{name}, {calls} calls, {how}", mininterval=2):
                    cache = make(how=how, limits=limits)
                    drift.append(float(batch.distances(batch.sample(cache).end, "drift")[0]))
                    assert cache.trace.computed == calls, "the budget is kept"
                    refreshed += bool(cache.refreshed)
                cells.append(f"{thousandths(drift)} ({refreshed} runs)")
            rows.append([f"{name}, {calls} calls", *cells])
    print(f"\nlatent drift x 1000, median / p95; n = {a.test}, runs with a refresh in brackets\n")
    print(markdown(["", "never", "the next step moves", "one more, paid back"], rows))


if __name__ == "__main__":
    main()
