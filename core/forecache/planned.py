"""A plan at work in one run: what serves a skipped step, and what corrects the last computed one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from . import schedule, tree
from .groups import Group, Groups
from .history import Asked
from .plan import COLUMNS, Plan, Weights
from .rules import GUARD
from .rules.guard import ROUNDING, Served, norm, with_reuse
from .rules.rule import newest
from .snapshots import MAX_HISTORY, Array, read
from .streams import Stream
from .trace import Step

PLAN = "plan"  # what the trace calls it; nothing else depends on this name


class Planner:
    """Serves the streams of a forecaster: by the weights of a plan where it has some that fit, else by their own rules.

    Weights fit the snapshots that they were made for, at the times that the schedule gives them. In a run whose history
    began anew unplanned, the rule serves until the window is again the plan's. No weights beyond the guard are served,
    of no column: ``||velocity||_1``, ``||difference||_1`` and, since a sampler adds ``h v``, ``|h state|``.

    A sum with a column for the state may overflow or be NaN whatever the snapshots are, because the state's size is not
    known. It is looked at where it lies, and an item of it that is not finite is replaced there by the newest snapshot:
    the host waits for nothing. On a CPU the trace says so at once; elsewhere the host reads it together with the next
    computed value, or in :meth:`settle`.

    Args:
        plan: ``None``: no weights at all. effective: steps that move the state. computed: of the run.
        times: the grid. groups: of the run.
        guard: largest norm of each kind of column; ``None``: 4 for the velocity, 8 for the others.
        history: snapshots that are kept.

    Raises:
        ValueError: a history shorter than the weights of the plan; a guard that reuse would not meet.
    """

    def __init__(
        self, plan: Plan | None, effective: Sequence[int], computed: Sequence[int], times: Sequence[float],
        groups: Groups, guard: float | None, history: int = MAX_HISTORY,
    ) -> None:  # fmt: skip
        if guard is not None and not guard >= 1:
            raise ValueError(f"guard must be >= 1 (the norm of reuse), got {guard}")
        self.times, self.groups, self.guard, self.computed = times, groups, guard, frozenset(computed)
        self.weights: dict[str, dict[int, Weights]] = {}
        self.asked: list[Asked] = []  #: what the device knows of earlier steps and the trace does not
        self._anchors: dict[int, tuple[float, ...]] = {}  # by step, times of the snapshots that the weights are for
        if plan is not None:
            self.weights = {
                group: {i: w for i, w in each.items() if i in effective} for group, each in plan.by_group().items()
            }
            for i in {i for each in self.weights.values() for i in each}:
                known = schedule.window([k for k in computed if k <= i], MAX_HISTORY, plan.edges)
                self._anchors[i] = tuple(times[k] for k in known)
        if history < self.longest:
            raise ValueError(f"history must be >= {self.longest}, the longest weights of the plan, got {history}")

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

    def check_state(self, i: int, state: Any, values: Mapping[str, torch.Tensor]) -> None:
        """Refuse a state that is missing, or has not the form of ``values`` (of one branch, by stream), where the plan
        has a column for it.

        Raises:
            ValueError: names the step.
        """
        if any(w.state for w in self.at(i).values()):
            self._states(i, state, values)

    def _states(self, i: int, state: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state by stream; both branches have the same."""
        if state is None:
            raise ValueError(f"state must be given at step {i}: this plan has a column for it (step(..., state=x))")
        mine = [name for name in values if self.groups.branch(name) != "uncond"]
        parts = list(self.groups.pack(tree.flatten(state)[0]).values())
        if misfit := tree.misfit([values[name] for name in mine], parts):
            raise ValueError(f"state of step {i} must have the form of the velocity, {misfit}")
        found = dict(zip(mine, parts, strict=True))
        return {name: found[self._cond(name)].detach() for name in values}

    def _cond(self, stream: str) -> str:
        """The conditional stream that belongs to one of ``uncond``; any other is its own."""
        return stream.removeprefix("un") if self.groups.branch(stream) == "uncond" else stream

    # --- one step ---------------------------------------------------------------------------------------------------
    def forecast(self, i: int, streams: Mapping[str, Stream], state: Any, entry: Step) -> dict[str, torch.Tensor]:
        """The values of a skipped step by stream; ``entry`` of the trace is told how each was made."""
        return self._values(i, streams, state, entry, lambda stream: stream.forecast(i, self.times[i]))[0]

    def correct(self, i: int, streams: Mapping[str, Stream], state: Any, entry: Step) -> dict[str, torch.Tensor] | None:
        """The computed values of step ``i``, the newest snapshots, with what the plan adds to them; ``None``: it adds
        nothing to any. ``entry`` is told how.
        """

        def as_computed(stream: Stream) -> tuple[torch.Tensor, list[Served]]:
            return stream.reuse(), [Served(newest(len(stream.snapshots)), "reuse")]

        values, planned = self._values(i, streams, state, entry, as_computed)
        return values if planned else None

    def _values(
        self, i: int, streams: Mapping[str, Stream], state: Any, entry: Step,
        otherwise: Callable[[Stream], tuple[torch.Tensor, list[Served]]],
    ) -> tuple[dict[str, torch.Tensor], bool]:  # fmt: skip
        """The values, by the plan's weights where they fit and else by ``otherwise``; whether the plan served any."""
        values: dict[str, torch.Tensor] = {}
        planned: dict[str, Weights] = {}
        for name, stream in streams.items():
            w, why = self._chosen(i, name, streams)
            if w is None:
                values[name], served = otherwise(stream)
                entry.tell(name, [replace(each, fallbacks=(*why, *each.fallbacks)) for each in served])
            else:
                values[name], planned[name] = _sum(stream, w.velocity), w
        xs = self._states(i, state, values) if any(w.state for w in planned.values()) else {}
        for name, w in planned.items():  # cond before uncond, as in a Guided
            mine, cond = streams[name], self._cond(name)
            if cond != name and w.difference:
                values[name] = values[cond] - (_sum(streams[cond], w.difference) - _sum(mine, w.difference))
            elif w.state:  # more than the dtype holds is infinite: add_() would raise
                most = torch.finfo(values[name].dtype).max
                values[name].add_(xs[name], alpha=w.state if abs(w.state) <= most else math.copysign(math.inf, w.state))
            served = [Served(_padded(w.velocity, len(mine.snapshots)), PLAN)]
            if w.state or (cond != name and w.difference):
                values[name] = self._watched(mine, values[name], entry, name, served)
            else:
                values[name], served = mine.checked(values[name], served)
                entry.tell(name, served)
        if self.corrects(i):  # the last computed step: no other one will read what is asked
            self.settle()
        return values, bool(planned)

    def _chosen(self, i: int, name: str, streams: Mapping[str, Stream]) -> tuple[Weights | None, tuple[str, ...]]:
        """The weights of step ``i`` that serve a stream, or ``None`` and why there are none."""
        w = self.weights.get(self.groups.of_stream(name), {}).get(i)
        if w is None:
            return None, (f"{PLAN}: no weights for this step",) if self._all() else ()
        cond = self._cond(name)
        apart = [(streams[each], len(w.difference)) for each in (cond, name)] if cond != name else []
        for stream, n in [(streams[name], len(w.velocity)), *apart]:
            times = tuple(stream.snapshots.times)
            if n > len(times):
                return None, (f"{PLAN}: {len(times)} of {n} snapshots",)
            if n and times[-n:] != self._anchors[i][-n:]:
                return None, (f"{PLAN}: other snapshots than the plan's",)
        h = self.times[i + 1] - self.times[i]
        sizes = {"|w|_1": norm(np.array(w.velocity)), "|difference|_1": norm(np.array(w.difference)),
                 "|h state|": abs(h * w.state)}  # fmt: skip
        for what, size in sizes.items():
            limit = self.guard if self.guard is not None else GUARD if what == "|w|_1" else COLUMNS
            if not size <= limit * (1 + ROUNDING):
                return None, (f"{PLAN}: {what} = {size:.3g} > {limit:g}",)
        return w, ()

    def _watched(
        self, stream: Stream, value: torch.Tensor, entry: Step, name: str, served: list[Served]
    ) -> torch.Tensor:
        """``value`` without items that are not finite; ``entry`` is told which were, as soon as the host knows."""
        value, finite = stream.mended(value)

        def tell(known: Array) -> None:
            entry.tell(name, with_reuse(served, known.astype(bool).tolist(), "not finite"))

        entry.tell(name, served)
        if finite.device.type == "cpu":
            tell(finite.numpy())
        else:
            self.asked.append((finite.float()[:, None], tell))
        return value

    # --- what the trace does not know yet ---------------------------------------------------------------------------
    def taken(self) -> list[Asked]:
        """What is still asked of the device, for whoever reads it now."""
        asked, self.asked = self.asked, []
        return asked

    def settle(self) -> None:
        """Read what is still asked. A device that fails at that fails again where its values are needed, not here."""
        if asked := self.taken():
            with contextlib.suppress(RuntimeError):
                for (_, tell), known in zip(asked, read([flags for flags, _ in asked]), strict=True):
                    tell(known)


def agreed(
    plan: Plan | None, edges: Sequence[int], groups: Mapping[str, Group | Sequence[str]] | None
) -> tuple[Sequence[int], Mapping[str, Group | Sequence[str]]]:
    """Edges and groups of a run: the plan's, where there is one.

    Raises:
        ValueError: what is given is not the plan's.
    """
    if plan is None:
        return edges, groups or {}
    if edges and tuple(sorted(edges)) != plan.edges:
        raise ValueError(f"edges must be the plan's {list(plan.edges)}, got {list(edges)}")
    theirs = {name: each.leaves for name, each in plan.groups.items()}
    if theirs and groups and {name: each.leaves for name, each in Groups(groups, None).groups.items()} != theirs:
        raise ValueError(f"groups must be the plan's {theirs}, got {dict(groups)}")
    return plan.edges, groups or theirs


def _sum(stream: Stream, weights: Sequence[float]) -> torch.Tensor:
    return stream.snapshots.combine(_padded(weights, len(stream.snapshots)))


def _padded(weights: Sequence[float], n: int) -> Array:
    """Weights of the newest snapshots as weights of all ``n``."""
    return np.concatenate([np.zeros(n - len(weights)), weights])
