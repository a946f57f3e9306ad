"""A plan: which steps compute, which weights serve the others, and what it was made for. A small JSON file."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from . import files

VERSION = 3
COLUMNS = 8.0  # largest norm of what a plan adds to the weights of the velocity (forecache.planned.Planner)


@dataclass(frozen=True)
class Weights:
    """What serves one step: ``v = sum_j velocity[j] v_j + state x``.

    A skipped step is served from the snapshots before it. A computed one is corrected: its own velocity is the newest
    of the snapshots.

    Attributes:
        velocity: of the newest snapshots, oldest first; they sum to 1. Of both guidance branches, if ``difference`` is
            empty.
        state: of the sampler's state x at the step.
        difference: of the newest snapshots of ``d = cond - uncond``, where the branches are forecast apart:
            ``cond = sum_j velocity[j] cond_j + state x`` and ``uncond = cond - sum_j difference[j] d_j``.
    """

    velocity: tuple[float, ...]
    state: float = 0.0
    difference: tuple[float, ...] = ()


class GroupWeights(NamedTuple):
    """Weights by step of a leaf group (:class:`forecache.groups.Group`)."""

    leaves: tuple[str, ...]
    weights: Mapping[int, Weights]


@dataclass(frozen=True)
class Plan:
    """Schedule and weights for one model and grid.

    Attributes:
        times: the N + 1 times of the grid it belongs to.
        computed: steps that call the network.
        weights: per step. A skipped step without an entry is served by the forecaster's calibration-free rule; a
            computed step without one, and only the last need have one, keeps the network's velocity.
        edges: as in :class:`forecache.Forecaster`.
        made_for: the key (weights, guidance scale, stage, dtype, ...): every entry must match where it is used.
        statistics: of the calibration, for people: seeds, target, expected errors by step.
        groups: leaf groups with weights of their own; ``weights`` are then those of the other leaves.

    Raises:
        ValueError: on creation, if the schedule is unsorted or outside the grid, or weights do not sum to 1.
    """

    times: tuple[float, ...]
    computed: tuple[int, ...]
    weights: Mapping[int, Weights] = field(default_factory=dict)
    edges: tuple[int, ...] = ()
    made_for: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, GroupWeights] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.times) - 1
        if steps < 1 or not all(math.isfinite(t) for t in self.times):
            raise ValueError(f"plan: times must be at least two finite numbers, got {list(self.times)}")
        if not self.computed or list(self.computed) != sorted(set(self.computed)):
            raise ValueError(f"plan: computed must be strictly increasing steps, got {list(self.computed)}")
        if any((b - a) * (self.times[-1] - self.times[0]) < 0 for a, b in pairwise(self.times)):
            raise ValueError(f"plan: times must rise or fall, got {list(self.times)}")
        if self.computed[0] < 0 or self.computed[-1] >= steps:
            raise ValueError(f"plan: computed must lie in 0..{steps - 1}, got {list(self.computed)}")
        if not set(self.edges) <= set(self.computed):
            raise ValueError(f"plan: edges must be computed steps, got {list(self.edges)}")
        served = {name: sorted(group.weights) for name, group in self.groups.items()}
        if len({*map(tuple, served.values()), *([tuple(sorted(self.weights))] if self.weights else [])}) > 1:
            raise ValueError(f"plan: groups must have weights for the same steps, got {served}")
        for step, w in [pair for each in self.by_group().values() for pair in each.items()]:
            if not self.computed[0] < step < steps:
                raise ValueError(f"plan: weights for step {step}, which has no snapshot before it")
            if not all(map(math.isfinite, (*w.velocity, w.state, *w.difference))):
                raise ValueError(f"plan: weights of step {step} must be finite, got {w}")
            if not w.velocity or abs(sum(w.velocity) - 1) > 1e-6:
                raise ValueError(f"plan: velocity weights of step {step} must sum to 1, got {list(w.velocity)}")
            known = sum(i <= step for i in self.computed)
            if max(len(w.velocity), len(w.difference)) > known:
                raise ValueError(f"plan: step {step} has more weights than the {known} snapshots that it can have")

    def by_group(self) -> dict[str, Mapping[int, Weights]]:
        """Weights by group; "": of the leaves of none."""
        return {"": self.weights, **{name: group.weights for name, group in self.groups.items()}}

    def differences(self, times: tuple[float, ...], made_for: Mapping[str, Any]) -> list[str]:
        """What a run is that the plan was not made for, in words; empty: it fits."""
        found = []
        if len(times) != len(self.times):
            found.append(f"steps: plan {len(self.times) - 1}, run {len(times) - 1}")
        elif any(abs(a - b) > 1e-5 * abs(times[-1] - times[0]) for a, b in zip(times, self.times, strict=True)):
            found.append("times: another grid of as many steps (shift or rescale differs)")
        for key in sorted({*self.made_for, *made_for}):
            mine, theirs = _plain(self.made_for.get(key)), _plain(made_for.get(key))
            if mine != theirs:
                found.append(f"{key}: plan {mine!r}, run {theirs!r}")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON atomically: the file is either the old plan or the new one, and keeps its mode; a symbolic link
        stays one. Threads and processes may save to one path.
        """
        body = {"forecache_plan": VERSION, **asdict(self)}
        body["weights"] = _steps(self.weights)
        body["groups"] = {
            name: {"leaves": list(group.leaves), "weights": _steps(group.weights)}
            for name, group in self.groups.items()
        }
        text = json.dumps(body, indent=1)
        files.replace(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            ValueError: not a plan, another version, or contents that a plan cannot have.
            OSError: unreadable.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:  # the same kind, with the argument that named the file
            raise type(error)(error.errno, f"plan={str(path)!r} cannot be read: {error.strerror}", str(path)) from None
        try:
            body = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
            version = body.pop("forecache_plan")
            if version != VERSION:
                raise ValueError(f"version {version!r}, this release reads {VERSION}: calibrate again")
            return cls(
                times=_numbers("times", body["times"]),
                computed=_whole("computed", body["computed"]),
                weights=_by_step(body["weights"]),
                groups={
                    name: GroupWeights(tuple(map(str, group["leaves"])), _by_step(group["weights"]))
                    for name, group in body["groups"].items()
                },
                edges=_whole("edges", body["edges"]),
                made_for=dict(body["made_for"]),
                statistics=dict(body["statistics"]),
            )
        except KeyError as error:
            raise ValueError(f"plan: {path} is not a plan: it has no {error}") from error
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"plan: {path} is not a plan: {error}") from error


def plan_of_run(
    plan: Plan | str | Path | None,
    times: tuple[float, ...],
    made_for: Mapping[str, Any],
    strict: bool,
    others: Sequence[Any],
) -> tuple[Plan | None, str, int]:
    """The plan of a run, given as it is or as a file, with "" and 0. If it was made for something else: ``None``, the
    reason, and how many calls it would make.

    Raises:
        TypeError, OSError: no plan, or a file that cannot be read.
        ValueError: made for something else, and ``strict`` or one of ``others`` sets the schedule too.
    """
    if isinstance(plan, (str, Path)):
        plan = Plan.load(plan)
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan or the path of its file, got {plan!r}")
    if plan is None or not (found := plan.differences(times, made_for)):
        return plan, "", 0
    if strict:
        raise ValueError("plan was made for something else: " + "; ".join(found))
    if any(other is not None for other in others):
        raise ValueError("give one of interval, calls, computed, plan; got plan and another")
    return None, f"plan not used, it was made for something else: {'; '.join(found)}", len(plan.computed)


def _steps(weights: Mapping[int, Weights]) -> dict[str, dict[str, Any]]:
    return {str(k): {n: v for n, v in asdict(w).items() if v} for k, w in weights.items()}


def _by_step(body: Mapping[str, Any]) -> dict[int, Weights]:
    odd = [k for k in body if not k.isdecimal() or str(int(k)) != k]
    if odd:
        raise ValueError(f"weights must be named by steps, got {odd}")
    return {int(k): _weights(**w) for k, w in body.items()}


def _weights(velocity: list[float], state: float = 0.0, difference: Sequence[float] = ()) -> Weights:
    return Weights(_numbers("velocity", velocity), _numbers("state", [state])[0], _numbers("difference", difference))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the file; a key that stands there twice would be read as the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"keys {twice} stand there twice")
    return found


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """A list of numbers of the file; a text or true would pass for one."""
    if not isinstance(values, (list, tuple)) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{name} must be a list of numbers, got {values!r:.80}")
    return tuple(map(float, values))


def _whole(name: str, values: Any) -> tuple[int, ...]:
    """A list of steps of the file: 2.5 is no step."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r:.80}")
    return tuple(values)


def _plain(value: Any) -> Any:
    """As JSON hands it back: a tuple in a key is the list that the file holds.

    Raises:
        TypeError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"made_for must hold what JSON can, got {value!r:.80}: {error}") from None
