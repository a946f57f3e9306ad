"""A budget ladder: plans for several budgets and what each costs in drift, so that a user picks a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..forecaster import Forecaster
from ..plan import Plan
from ..snapshots import Array
from .calibration import Calibration
from .recording import flat
from .tapes import Recorder


@dataclass(frozen=True)
class Rung:
    """One budget.

    Attributes:
        drift: per test seed, ``||x - x_uncached|| / ||x_uncached||`` of the final sample.
        error: the same distance to the reference run; empty without one.
        even: drift of linear extrapolation on an even spread with as many calls, as a yardstick.
    """

    plan: Plan
    drift: Array
    error: Array
    even: Array


def ladder(calibration: Calibration, calls: Sequence[int], test: Sequence[int]) -> list[Rung]:
    """Plans for the budgets ``calls``, measured on the conditions ``test``.

    Raises:
        ValueError: no budget or test seed, or a test seed that was calibrated on.
    """
    shared = sorted(set(test) & set(calibration.seeds))
    if not calls or not test or shared:
        raise ValueError(f"ladder needs calls and test seeds that were not calibrated on, got {list(calls)}; {shared}")
    times = calibration.times.tolist()

    def final(seed: int, cache: object) -> Array:
        return np.asarray(flat(calibration.run(seed, cache)).double().numpy())

    uncached = {seed: final(seed, Recorder(calibration.times, calibration.scale or 1.0)) for seed in test}
    solved = {}
    if calibration.reference is not None:
        run, fine = calibration.reference
        for seed in test:
            recorder = Recorder(np.array([float(t) for t in fine]), calibration.scale or 1.0)
            solved[seed] = np.asarray(flat(run(seed, recorder)).double().numpy())

    def distances(samples: dict[int, Array], targets: dict[int, Array]) -> Array:
        return np.array([np.linalg.norm(samples[s] - t) / np.linalg.norm(t) for s, t in targets.items()])

    rungs = []
    for budget in calls:
        plan = calibration.plan(budget)
        served = {s: final(s, Forecaster(times=times, plan=plan, made_for=plan.made_for)) for s in test}
        line = {s: final(s, Forecaster("linear", times=times, calls=budget, edges=plan.edges)) for s in test}
        rungs.append(Rung(plan, distances(served, uncached), distances(served, solved), distances(line, uncached)))
    return rungs


def table(rungs: Sequence[Rung]) -> str:
    """Markdown: median / p95 x 1000 per budget."""

    def cell(values: Array) -> str:
        return f"{1e3 * np.median(values):.3g} / {1e3 * np.percentile(values, 95):.3g}" if len(values) else "-"

    head = ["| calls | drift | error to the reference | linear on an even spread, drift |", "|---|---|---|---|"]
    return "\n".join(
        head + [f"| {len(r.plan.computed)} | {cell(r.drift)} | {cell(r.error)} | {cell(r.even)} |" for r in rungs]
    )
