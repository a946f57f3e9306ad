"""All weights of a plan together: Gauss-Newton on where the runs land.

The closed loop fits one step after the other and brings each to the target's *state*. What a displacement that it must
leave does to the network afterwards it cannot know. Here the unknowns are one shift per gap and column, added to the
weights of all steps of that gap (and to those of the corrected anchor); their effect on the sample is measured by
running the cached sampler with each of them moved a little, so the network needs no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from ..plan import COLUMNS, Weights
from ..rules import GUARD
from ..rules.guard import blend
from ..snapshots import Array
from .closed_loop import ClosedLoop
from .search import power_mean
from .tapes import Rollout, Served

PROBE = 0.01  # size of a trial shift: what it adds to a forecast, relative to the newest velocity
DAMPING = 1e-2  # of Levenberg-Marquardt, relative to the diagonal
SCALES = (1.0, 0.5, 0.25, 0.1)  # of the step, until one lands closer
ByStep = Mapping[int, Served]


@dataclass(frozen=True)
class Shift:
    """One unknown: a weight at ``place`` of the steps of one gap, for one leaf group. A velocity's is taken from the
    newest one's, so that the sum stays 1.
    """

    group: str
    steps: tuple[int, ...]
    kind: Literal["velocity", "difference", "state"]
    place: int = 0

    def moved(self, served: Served, amount: float) -> Served:
        """A step's weights with ``amount`` more of this column in its group."""
        by_group, anchors = served
        return {**by_group, self.group: self.add(by_group[self.group], amount)}, anchors

    def add(self, weights: Weights, amount: float) -> Weights:
        """``weights`` with ``amount`` more of this column."""
        if self.kind == "state":
            return replace(weights, state=weights.state + amount)
        values = list(weights.velocity if self.kind == "velocity" else weights.difference)
        values[self.place] += amount
        if self.kind == "difference":
            return replace(weights, difference=tuple(values))
        values[-1] -= amount
        return replace(weights, velocity=tuple(values))


class Refiner:
    """Refines the weights that ``loop`` fitted.

    Network calls a round: per run, each unknown of a gap times the anchors after it, and at most four cached runs.

    Attributes:
        plan: by step, weights and their anchors.
    """

    def __init__(self, loop: ClosedLoop) -> None:
        self.run, self.conditions, self.computed, self.scale = loop.run, loop.conditions, loop.computed, loop.scale
        self.plan: ByStep = dict(next(iter(loop.marches.values())).weights)
        self.shifts = list(self._shifts())
        self.here = self._all(self.plan)

    def _shifts(self) -> list[Shift]:
        found = []
        gaps = [tuple(range(a + 1, b)) for a, b in pairwise((*self.computed, max(self.plan, default=0) + 1))]
        for gap in (*gaps, self.computed[-1:]):
            steps = tuple(i for i in gap if i in self.plan)
            if not steps:
                continue
            for group, weights in self.plan[steps[0]][0].items():
                found += [Shift(group, steps, "velocity", k) for k in range(len(weights.velocity) - 1)]
                guided = min(len(self.plan[i][0][group].difference) for i in steps)
                found += [Shift(group, steps, "difference", k) for k in range(guided)]
                if all(each.recording.start is not None for each in self.conditions.values()):
                    found.append(Shift(group, steps, "state"))
        return found

    def _roll(self, seed: int, plan: ByStep, known: Mapping[int, object]) -> Rollout:
        rollout = Rollout(self.conditions[seed].recording, self.computed, plan, known)
        self.run(seed, rollout)
        return rollout

    def _all(self, plan: ByStep) -> dict[int, Rollout]:
        return {seed: self._roll(seed, plan, {}) for seed in self.conditions}

    def _left(self, seed: int, rollout: Rollout) -> torch.Tensor:
        """What the run misses its target by, relative to the sample."""
        assert rollout.moved is not None
        condition = self.conditions[seed]
        return condition.recording.relative(condition.target[-1] - rollout.moved).double()

    def distances(self) -> Array:
        """``[S]``: distance of each run to its target, relative to the sample."""
        return np.array([float(self._left(seed, rollout).norm()) for seed, rollout in self.here.items()])

    def round(self, progress: Callable[[int], None] = lambda done: None) -> bool:
        """One Gauss-Newton step for the power mean ``(mean_s ||r_s||^(1/2))^2`` (a run weighs ``||r_s||^(-3/2)``),
        accepted where it falls; returns whether it did.
        """
        m = len(self.shifts)
        system, right, before = np.zeros((m, m)), np.zeros(m), power_mean(self.distances())
        for k, (seed, rollout) in enumerate(self.here.items()):
            left = self._left(seed, rollout)
            effects = torch.stack([self._effect(seed, shift, left) for shift in self.shifts])
            weight = 1 / max(float(left.norm()), 1e-12) ** 1.5
            system += weight * (effects @ effects.T).numpy()
            right += weight * (effects @ left).numpy()
            progress(k + 1)
        diagonal = np.diag(system)
        damped = system + np.diag(DAMPING * diagonal + 1e-12 * max(float(diagonal.sum()), 1e-300))
        step = np.linalg.solve(damped, right)
        for scale in SCALES:
            plan = self._moved(np.asarray(scale * step))
            rollouts = self._all(plan)
            if power_mean(np.array([float(self._left(s, each).norm()) for s, each in rollouts.items()])) < before:
                self.plan, self.here = plan, rollouts
                return True
        return False

    def _effect(self, seed: int, shift: Shift, left: torch.Tensor) -> torch.Tensor:
        """``[d]``: derivative of the sample by the shift, relative to the sample; a one-sided difference."""
        amount = self._trial(seed, shift)
        plan = {**self.plan}
        for i in shift.steps:
            plan[i] = shift.moved(self.plan[i], amount)
        known = {k: value for k, value in self.here[seed].values.items() if k <= shift.steps[0]}
        return (left - self._left(seed, self._roll(seed, plan, known))) / amount

    def _trial(self, seed: int, shift: Shift) -> float:
        anchors, known = self.plan[shift.steps[0]][1], self.here[seed].velocities
        at = self.conditions[seed].recording.parts[shift.group]
        newest = known[anchors["velocity"][-1]].cond
        if shift.kind == "velocity":
            column = known[anchors["velocity"][shift.place]].cond - newest
        elif shift.kind == "difference":
            difference = known[anchors["difference"][shift.place]].difference
            assert difference is not None
            column = (self.scale - 1) * difference
        else:
            start = self.conditions[seed].recording.start
            assert start is not None
            column = start
        return min(PROBE * float(newest[at].norm()) / max(float(column[at].norm()), 1e-30), 1.0)

    def _moved(self, step: Array) -> ByStep:
        """The plan with every unknown moved; velocity weights go no further than the guard lets them."""
        plan = dict(self.plan)
        for shift, amount in zip(self.shifts, step, strict=True):
            for i in shift.steps:
                plan[i] = shift.moved(plan[i], float(amount))
        return {
            i: ({group: _guarded(w, self.plan[i][0][group]) for group, w in by_group.items()}, anchors)
            for i, (by_group, anchors) in plan.items()
        }


def _guarded(weights: Weights, before: Weights) -> Weights:
    velocity = _within(weights.velocity, before.velocity, GUARD)
    return replace(weights, velocity=velocity, difference=_within(weights.difference, before.difference, COLUMNS))


def _within(weights: tuple[float, ...], before: tuple[float, ...], limit: float) -> tuple[float, ...]:
    """As far from ``before`` to ``weights`` as ``||w||_1 <= limit`` allows."""
    old, new = np.array(before), np.array(weights)
    if np.abs(new).sum() <= limit:
        return weights
    return tuple(map(float, old + blend(new, old, limit) * (new - old)))
