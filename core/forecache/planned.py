"""A plan at work in one run: what serves a skipped step, and what corrects the last computed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from . import tree
from .basis import Reuse, Rule, Unfit
from .basis.guard import Served, serve
from .groups import Groups
from .plan import Plan, Weights
from .snapshots import Array
from .streams import Stream


class Planned(Rule):
    """A plan's weights where it has them, the calibration-free rule elsewhere."""

    name = "plan"
    uses_gram = True  # for the rule below it

    def __init__(self, plan: Mapping[int, Weights], times: Sequence[float], otherwise: Rule) -> None:
        self._otherwise = otherwise
        self._weights = {times[step]: np.array(w.velocity) for step, w in plan.items()}

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        w = self._weights.get(target)
        if w is None:
            raise Unfit("no weights for this step")
        if len(w) > len(times):
            raise Unfit(f"{len(times)} of {len(w)} snapshots")
        return np.concatenate([np.zeros(len(times) - len(w)), w])

    def lower(self) -> Rule | None:
        return self._otherwise


class Planner:
    """The weights of a plan by step and leaf group, applied to the streams of a forecaster.

    Args:
        plan: ``None``: no weights at all. effective: steps that move the state. computed: of the run.
        times: the grid. groups: of the run. guard: largest ``||w||_1`` of a correction.
    """

    def __init__(
        self, plan: Plan | None, effective: Sequence[int], computed: Sequence[int], times: Sequence[float],
        groups: Groups, guard: float | None,
    ) -> None:  # fmt: skip
        self.times, self.groups, self.guard, self.computed = times, groups, guard, frozenset(computed)
        self.weights: dict[str, dict[int, Weights]] = {}
        if plan is not None:
            self.weights = {
                group: {i: w for i, w in each.items() if i in effective} for group, each in plan.by_group().items()
            }

    def _all(self) -> list[Weights]:
        return [w for each in self.weights.values() for w in each.values()]

    def at(self, i: int) -> dict[str, Weights]:
        """The weights of step ``i`` by group; empty: the plan has none."""
        return {group: each[i] for group, each in self.weights.items() if i in each}

    def corrects(self, i: int) -> bool:
        """Whether a computed value of step ``i`` is corrected."""
        return i in self.computed and bool(self.at(i))

    @property
    def longest(self) -> int:
        """Snapshots that the plan needs."""
        return max((max(len(w.velocity), len(w.difference)) for w in self._all()), default=0)

    @property
    def needs_branches(self) -> bool:
        """Whether the plan has weights for ``cond - uncond``."""
        return any(w.difference for w in self._all())

    def rule(self, group: str, otherwise: Rule) -> Rule:
        """The rule of a stream: the plan's weights where it has them for skipped steps, ``otherwise`` elsewhere."""
        if not self.weights.get(group):
            return otherwise
        skipped = {i: w for i, w in self.weights[group].items() if i not in self.computed}
        return Planned(skipped, self.times, otherwise)  # also for a correction alone: it needs the plan's snapshots

    def check_state(self, i: int, state: Any, values: Mapping[str, torch.Tensor]) -> None:
        """Refuse a state that is missing, or has not the form of ``values`` (of one branch, by stream), where the plan
        has a column for it.

        Raises:
            ValueError: names the step.
        """
        if not any(w.state for w in self.at(i).values()):
            return
        if state is None:
            raise ValueError(f"state must be given at step {i}: this plan has a column for it (step(..., state=x))")
        given = [(tuple(x.shape), x.device) for x in self.groups.pack(tree.flatten(state)[0]).values()]
        wanted = [(tuple(v.shape), v.device) for name, v in values.items() if not name.startswith("uncond")]
        if given != wanted:
            shown = ("; ".join(f"{shape} {device}" for shape, device in each) for each in (wanted, given))
            raise ValueError(f"state of step {i} must have the form of the velocity, {', got '.join(shown)}")

    def correct(
        self, i: int, streams: Mapping[str, Stream], state: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, Served]]:
        """The computed values of step ``i``, the newest snapshots, with what the plan adds to them; and how."""
        values, served = {}, {}
        for name, stream in streams.items():
            known, mine = stream.snapshots, self.weights.get(self.groups.of_stream(name), {})
            rule = Planned({k: w for k, w in mine.items() if k == i}, self.times, Reuse())
            served[name] = serve(rule, np.array(known.times), self.times[i], np.eye(len(known)), self.guard)
            values[name] = known.combine(served[name].weights)
        if not any(each.fallbacks for each in served.values()):
            self.add_columns(i, streams, values, state)
        return values, served

    def add_columns(self, i: int, streams: Mapping[str, Stream], values: dict[str, torch.Tensor], state: Any) -> None:
        """What a plan adds to the sums of velocities: the state, and weights of their own for ``cond - uncond``."""
        weights = {name: self.weights[self.groups.of_stream(name)][i] for name in values}
        if any(w.state for w in weights.values()):
            given = self.groups.pack(tree.flatten(state)[0])
            names = [name for name in values if not name.startswith("uncond")]
            for name, x in zip(names, given.values(), strict=True):
                values[name].add_(x.detach(), alpha=weights[name].state)
        for name in [name for name in values if name.startswith("uncond") and weights[name].difference]:
            n, w = len(weights[name].difference), np.array(weights[name].difference)
            cond, uncond = (streams[key].snapshots for key in (name.removeprefix("un"), name))
            d = cond.combine(np.pad(w, (len(cond) - n, 0))) - uncond.combine(np.pad(w, (len(uncond) - n, 0)))
            values[name] = values[name.removeprefix("un")] - d
