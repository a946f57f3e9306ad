"""What a sampler sees as its cache while a plan is made: a recorder, a probe, and the cached run under construction.

Each has the calls of :class:`forecache.Forecaster` (``needs_compute``, ``observe``, ``forecast``, ``step``), so the
sampler's code is the one that will run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import schedule, tree
from ..groups import Parts, combine, norms, parts
from ..plan import Weights
from ..snapshots import Array, products
from ..tree import Guided
from .recording import Recording, Velocity, flat, give_back

# weights of one step by leaf group, and the anchors that they belong to
Served = tuple[Mapping[str, Weights], Mapping[str, Sequence[int]]]


class Tape(ABC):
    """The calls of a forecaster."""

    @abstractmethod
    def needs_compute(self, i: int) -> bool: ...

    @abstractmethod
    def observe(self, i: int, value: Any, state: Any = None) -> Any: ...

    @abstractmethod
    def forecast(self, i: int, state: Any = None) -> Any: ...

    def step(self, i: int, compute: Callable[[], Any], state: Any = None) -> Any:
        """As :meth:`forecache.Forecaster.step`."""
        if self.needs_compute(i):
            return self.observe(i, compute(), state)
        return self.forecast(i, state)


class Recorder(Tape):
    """Computes every step that moves the state and keeps the velocities."""

    def __init__(self, times: Array, scale: float | None, groups: Mapping[str, Any] | None = None) -> None:
        self.moving = set(schedule.effective_steps(times.tolist()))
        self.recording = Recording(times, 1.0 if scale is None else scale)
        self._scale, self._groups = scale, groups or {}
        self._last: Any = None
        self._moved: torch.Tensor | None = None

    def needs_compute(self, i: int) -> bool:
        return i in self.moving

    def _follow(self, i: int, state: torch.Tensor) -> None:
        """The weights are fitted to an Euler sampler; a state that moves otherwise is not one."""
        start = self.recording.start
        if start is None:
            self.recording.start = state.clone()
        elif self._moved is not None:
            off = float((state - start - self._moved).norm())
            if off > 0.02 * float(self._moved.norm()) + 1e-3 * float(start.norm()):
                raise RuntimeError(
                    f"run: at step {i} the state is not x + sum h_j v_j (off by {off:.3g}): calibration needs an Euler "
                    "sampler in `times`, and the guidance_scale of the run if it returns Guided branches"
                )

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        if state is not None:
            self._follow(i, flat(state))
        velocity = Velocity.of(value)
        if velocity.difference is not None and self._scale is None:
            raise ValueError("guidance_scale must be given for a run that returns Guided(cond, uncond), got None")
        record = self.recording
        record.velocities[i], record.like, self._last = velocity, value, value
        if not record.parts:
            record.parts = parts(value.cond if isinstance(value, Guided) else value, self._groups)
        h = float(record.times[i + 1] - record.times[i])
        move = h * velocity.combined(record.scale)
        self._moved = move if self._moved is None else self._moved + move
        return value

    def forecast(self, i: int, state: Any = None) -> Any:
        return self._last

    def finish(self, sample: Any) -> Recording:
        """The recording, with its Gram matrix.

        Raises:
            RuntimeError: a step that the run did not ask for.
        """
        record = self.recording
        missing = sorted(self.moving - record.velocities.keys())
        if missing:
            raise RuntimeError(f"run did not ask the cache at steps {missing}")
        vector, expected = flat(sample), next(iter(record.velocities.values())).cond.numel()
        if self._groups and vector.numel() != expected:
            raise ValueError(
                f"run must return every leaf of the sample for groups: {expected} numbers, got {vector.numel()}"
            )
        record.final = norms(vector, record.parts)
        steps = sorted(record.velocities)
        window = torch.stack([record.relative(record.velocities[i].combined(record.scale)) for i in steps])
        record.gram = np.zeros((len(record.times) - 1,) * 2)
        for k, i in enumerate(steps):
            row = products(window[None, : k + 1], window[None, k])[0, :-1]
            record.gram[i, steps[: k + 1]] = record.gram[steps[: k + 1], i] = row
        return record


def record(
    run: Callable[[int, Any], Any], times: Array, seed: int, scale: float | None = None,
    groups: Mapping[str, Any] | None = None,
) -> Recording:  # fmt: skip
    """One uncached run.

    Raises:
        RuntimeError, ValueError: see :class:`Recorder`.
    """
    tape = Recorder(times, scale, groups)
    return tape.finish(run(seed, tape))


class Probe(Tape):
    """How much of a displacement made before step ``at`` is left at the end.

    Replays a recording up to step ``at - 3``, serves that velocity once or twice more (a small, typical forecast
    error), and computes from ``at`` on.
    """

    def __init__(self, recording: Recording, at: int) -> None:
        self.recording, self.at = recording, at
        steps = sorted(recording.velocities)
        place = steps.index(at)
        self.source = steps[max(place - 3, 0)]
        self.before: torch.Tensor | None = None
        self.after: torch.Tensor | None = None
        self._last: Any = None

    def needs_compute(self, i: int) -> bool:
        return i >= self.at and i in self.recording.velocities

    def _add(self, i: int, velocity: torch.Tensor) -> None:
        record = self.recording
        h = float(record.times[i + 1] - record.times[i])
        move = h * (velocity - record.velocities[i].combined(record.scale))
        self.after = move if self.after is None else self.after + move

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        if self.before is None:
            self.before = self.after
        self._last = value
        self._add(i, Velocity.of(value).combined(self.recording.scale))
        return value

    def forecast(self, i: int, state: Any = None) -> Any:
        if i not in self.recording.velocities:
            return self._last
        value = self.recording.value(i, min(i, self.source))
        if i > self.source:
            self._add(i, Velocity.of(value).combined(self.recording.scale))
        self._last = value
        return value

    def survival(self) -> float:
        """``||displacement of the sample|| / ||displacement at step `at`||``; 1 where the probe displaced nothing."""
        if self.before is None or self.after is None or not float(self.before.norm()):
            return 1.0
        before, after = self.recording.relative(self.before), self.recording.relative(self.after)
        return float(after.norm() / before.norm())


class Pause(BaseException):
    """Ends a calibration run early; not an ``Exception``, so that no sampler swallows it."""


class March(Tape):
    """One calibration run of the cached sampler under construction, resumed from what it already computed.

    Anchors are computed once and replayed afterwards; at an anchor that is not known yet the run computes it and
    pauses.

    Attributes:
        values: of the known anchors, as the sampler gave them. velocities: the same as vectors.
        weights: by step, of the skipped steps that move the state.
    """

    def __init__(self, recording: Recording, computed: Sequence[int]) -> None:
        self.recording, self.computed = recording, set(computed)
        self.values: dict[int, Any] = {}
        self.velocities: dict[int, Velocity] = {}
        self.weights: dict[int, Served] = {}

    def needs_compute(self, i: int) -> bool:
        return i in self.computed and i not in self.values

    def _keep(self, i: int, value: Any) -> None:
        self.values[i] = _owned(value)
        self.velocities[i] = Velocity.of(self.values[i])

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        self._keep(i, value)
        raise Pause

    def forecast(self, i: int, state: Any = None) -> Any:
        newest = max(k for k in self.values if k <= i)
        if i not in self.weights:  # an anchor as it is, or a step with dt = 0
            self._move(i, self.velocities[newest])
            return self.values[newest]
        known, guided = self.velocities, self.recording.guided(i)
        velocity = weighted_sum(self.weights[i], known, state, guided, self.recording.parts)
        self._move(i, velocity)
        return give_back(velocity, self.values[newest])

    def _move(self, i: int, velocity: Velocity) -> None:
        """The sampler moves by ``velocity`` in step ``i``."""


class Rollout(March):
    """One whole run of the cached sampler under given weights, also of a corrected anchor.

    Attributes:
        values: also of the anchors that were computed, when the run has ended. moved: displacement of the sample.
    """

    def __init__(
        self, recording: Recording, computed: Sequence[int], weights: Mapping[int, Served], values: Mapping[int, Any]
    ) -> None:
        super().__init__(recording, computed)
        self.weights, self.values = dict(weights), dict(values)
        self.velocities = {i: Velocity.of(value) for i, value in values.items()}
        self.moved: torch.Tensor | None = None

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        self._keep(i, value)
        return self.forecast(i, state)

    def _move(self, i: int, velocity: Velocity) -> None:
        h = float(self.recording.times[i + 1] - self.recording.times[i])
        move = h * velocity.combined(self.recording.scale)
        self.moved = move if self.moved is None else self.moved + move


def weighted_sum(served: Served, known: Mapping[int, Velocity], state: Any, guided: bool, where: Parts) -> Velocity:
    """One step's velocity from weights, anchors and the sampler's state."""
    weights, anchors = served
    columns = [known[k].cond for k in anchors["velocity"]]
    each = {group: np.array(w.velocity) for group, w in weights.items()}
    if any(w.state for w in weights.values()):
        columns.append(flat(state))
        each = {group: np.append(w, weights[group].state) for group, w in each.items()}
    velocity = Velocity(combine(each, torch.stack(columns), where))
    if guided:
        pieces = [known[k].difference for k in anchors["difference"]]
        columns = [piece for piece in pieces if piece is not None]
        each = {group: np.array(w.difference) for group, w in weights.items()}
        velocity.difference = combine(each, torch.stack(columns), where)
    return velocity


def _owned(value: Any) -> Any:
    """A copy: the network may write its next value into the same buffer."""
    leaves, structure = tree.flatten(value)
    return tree.unflatten({k: v.detach().clone() for k, v in leaves.items()}, structure)
