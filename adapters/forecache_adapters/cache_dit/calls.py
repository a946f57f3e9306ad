"""Which run, step and request a call of a transformer is: cache-dit counts calls, and a count alone may be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

JUMP = 2.5  # times the way of the step before; shifted schedules stay below but for their last steps, if they are few


class Calls:
    """Places calls by their timestep and their latents, and by the scheduler's index where there is one.

    A step is one timestep with one state. Its second request is the other branch; a timestep that a dtype rounded to
    that of the step before has another state, and only a scheduler can tell it from a second tile.

    A run begins with a call of the pipeline. A transformer in a loop of one's own begins one after ``total`` steps, and
    where the timesteps turn back: the run before was broken off. Two runs by turns do both, and are told by the step
    that goes on behind where another was broken off. Where a timestep jumps, a run may have begun late.

    Args:
        within: whether somebody else says where a run begins, as a pipeline does.
    """

    def __init__(self, within: bool) -> None:
        self.within = within
        self.direction = 0.0  # in which timesteps go
        self.broken: set[float] = set()  # last timesteps of runs that were broken off
        self.usual = 0.0  # way of a step, in this run or the one before
        self.clear()

    def clear(self) -> None:
        """The next call begins a run."""
        self.step, self.request = -1, 0
        self.time: float | None = None
        self.way = 0.0  # to that timestep from the one before
        self.jumped = False
        self.index: int | None = None
        self.state: list[Any] = []

    def place(self, time: float | None, state: Any, index: int | None, total: int | None) -> tuple[bool, str]:
        """Take the next call, as ``step`` and ``request``; whether it begins a run, and why it cannot be placed."""
        before, self.time = self.time, time
        indexed, self.index = index != self.index, index
        same, self.state = same_values(self.state, state), copies(state)
        if self.step < 0:
            self.step = self.request = 0
            return True, ""
        if not indexed and (same if time is None else time == before):
            self.request += 1
            return False, "" if same else "two calls at one timestep with different latents"
        self.step, self.request = self.step + 1, 0
        way = 0.0 if time is None or before is None else time - before
        turned = way * self.direction < 0
        over = total is not None and self.step >= total
        if (turned and (over or not self.within)) or (over and time is None):
            self.broken = self.broken if over or before is None else self.broken | {before}
            self.step, self.way, self.jumped = 0, 0.0, False
            return True, ""
        self.direction = self.direction or way
        low, high = sorted((before or 0.0, time or 0.0))
        turns = high - low > 1.5 * self.usual and any(low < each < high for each in self.broken)
        self.jumped, self.way = 0 < JUMP * abs(self.way) < abs(way), way
        self.usual = self.usual if turns else abs(way)
        if turned:
            return False, "the timesteps turn back"
        if over:
            return False, f"num_inference_steps={total}, but the run goes on"
        return False, "two runs take turns" if turns else ""


def copies(state: Any) -> list[Any]:
    """The leaves of a value as they are now."""
    return [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(state)]


def same_values(before: list[Any], state: Any) -> bool:
    """Whether ``before`` are :func:`copies` of ``state``."""
    now = tree_leaves(state)
    return len(before) == len(now) and all(map(_same, before, now))


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return a is b
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b.detach())
