"""One uncached run as vectors: its velocities step by step, their Gram matrix, and its file.

A velocity is two vectors: the conditional ``c`` and, where guidance is on and the branches come apart, ``d = c - u``;
the sampler moves by ``v = c + (g - 1) d``, which is ``u + g (c - u)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import files, tree
from ..groups import WHOLE, Parts, relative
from ..snapshots import Array
from ..tree import Guided


def flat(value: Any) -> torch.Tensor:
    """All tensors of a value as one float32 vector on the CPU."""
    leaves, _ = tree.flatten(value)
    return torch.cat([leaf.detach().reshape(-1).float().cpu() for leaf in leaves.values()])


def rebuild(vector: torch.Tensor, like: Any) -> Any:
    """The inverse of :func:`flat`, in the shapes, dtypes and devices of ``like``."""
    leaves, structure = tree.flatten(like)
    parts = torch.split(vector, [leaf.numel() for leaf in leaves.values()])
    made = {name: part.reshape(leaf.shape).to(leaf) for part, (name, leaf) in zip(parts, leaves.items(), strict=True)}
    return tree.unflatten(made, structure)


@dataclass
class Velocity:
    """One step's velocity as vectors; ``difference`` is ``None`` where no second branch ran."""

    cond: torch.Tensor
    difference: torch.Tensor | None = None

    @classmethod
    def of(cls, value: Any) -> Velocity:
        """From what a network call returned."""
        if not isinstance(value, Guided):
            return cls(flat(value))
        cond = flat(value.cond)
        return cls(cond, None if value.uncond is None else cond - flat(value.uncond))

    def combined(self, scale: float) -> torch.Tensor:
        """``c + (g - 1) d``."""
        return self.cond if self.difference is None else self.cond + (scale - 1) * self.difference


@dataclass
class Recording:
    """One uncached run.

    Attributes:
        velocities: by step, without those that do not move the state. like: a value, for its structure.
        start: the state at the first step, if the sampler passes it.
        parts: where the leaf groups lie in these vectors. final: norm of the sample by group.
        gram: ``[N, N]`` dot products of the combined velocities, each relative to the sample; zero rows where dt = 0.
    """

    times: Array
    scale: float
    velocities: dict[int, Velocity] = field(default_factory=dict)
    like: Any = None
    start: torch.Tensor | None = None
    parts: Parts = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    gram: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def relative(self, vector: torch.Tensor) -> torch.Tensor:
        """``v`` in coordinates where the sample has norm 1 and every leaf group of it the same norm."""
        return relative(vector, self.final, self.parts)

    def guided(self, i: int) -> bool:
        return self.velocities[i].difference is not None

    def value(self, i: int, source: int) -> Any:
        """The velocity of step ``source`` in the structure that the sampler expects at step ``i``."""
        given, here = self.velocities[source], self.velocities[i]
        difference = None
        if here.difference is not None:
            difference = here.difference if given.difference is None else given.difference
        return give_back(Velocity(given.cond, difference), self.like)


def give_back(velocity: Velocity, like: Any) -> Any:
    """A value for the sampler: branches where ``like`` has them, the second one only if there is a difference."""
    if not isinstance(like, Guided):
        return rebuild(velocity.cond, like)
    cond = rebuild(velocity.cond, like.cond)
    if velocity.difference is None:
        return Guided(cond, None)
    return Guided(cond, rebuild(velocity.cond - velocity.difference, like.cond))


def positions(recording: Recording, at: Array) -> list[torch.Tensor]:
    """Displacements from the start, ``sum h_j v_j``, at the times ``at``, which must lie on the recording's grid.

    Raises:
        ValueError: a time that is not on the grid.
    """
    times, steps = recording.times, recording.velocities
    total, found, k = torch.zeros_like(next(iter(steps.values())).cond), [], 0
    span = abs(times[-1] - times[0])
    for i in range(len(times)):
        while k < len(at) and abs(times[i] - at[k]) < 1e-6 * span:
            found.append(total.clone())
            k += 1
        if i in steps:
            total = total + float(times[i + 1] - times[i]) * steps[i].combined(recording.scale)
    if k < len(at):
        raise ValueError(f"reference grid: time {at[k]} is not among its times")
    return found


def save(path: Path, recording: Recording, survival: Array, target: list[torch.Tensor]) -> None:
    """Write one condition of a calibration atomically; tensors and numbers only."""
    body = {
        "times": recording.times.tolist(), "scale": recording.scale, "start": recording.start, "final": recording.final,
        "parts": {group: at for group, at in recording.parts.items() if isinstance(at, torch.Tensor)},
        "gram": torch.from_numpy(recording.gram), "survival": torch.from_numpy(survival), "target": target,
        "cond": {i: v.cond for i, v in recording.velocities.items()},
        "difference": {i: v.difference for i, v in recording.velocities.items() if v.difference is not None},
    }  # fmt: skip
    files.replace(path, lambda partial: torch.save(body, partial))


def load(path: Path) -> tuple[Recording, Array, list[torch.Tensor]]:
    """What :func:`save` wrote.

    Raises:
        ValueError: not such a file.
    """
    try:
        body = torch.load(path, weights_only=True)
        recording = Recording(
            np.array(body["times"]), body["scale"],
            {i: Velocity(v, body["difference"].get(i)) for i, v in body["cond"].items()},
            None, body["start"], body["parts"] or WHOLE, body["final"], body["gram"].numpy(),
        )  # fmt: skip
        survival, target = body["survival"].numpy(), list(body["target"])
        _check(recording, survival, target)
        return recording, survival, target
    except Exception as error:  # torch.load raises half a dozen kinds for a damaged file
        raise ValueError(f"folder: {path} is not a recording: {error}; remove it to record the run again") from error


def _check(recording: Recording, survival: Array, target: list[torch.Tensor]) -> None:
    """Refuse contents that no run has, which would end in an error, or in a plan, that does not name the file."""
    n, velocities = len(recording.times) - 1, recording.velocities
    if not velocities or not all(0 <= i < n for i in velocities):
        raise ValueError(f"velocities must be of steps 0..{n - 1}, got {sorted(velocities)}")
    start = [] if recording.start is None else [recording.start]
    vectors = [vector for v in velocities.values() for vector in (v.cond, v.difference) if vector is not None]
    if {tuple(each.shape) for each in (*vectors, *start, *target)} != {(vectors[0].numel(),)}:
        raise ValueError("velocities, start and target must be vectors of one length")
    if recording.gram.shape != (n, n) or len(target) != n + 1 or survival.ndim != 1:
        raise ValueError(f"gram must be {n} x {n} and target {n + 1} states, got {recording.gram.shape}, {len(target)}")
    if not np.isfinite(recording.gram).all() or not np.isfinite(survival).all():
        raise ValueError("gram and survival must be finite")
    if recording.final.keys() != recording.parts.keys():
        raise ValueError(f"final must have the groups {sorted(recording.parts)}, got {sorted(recording.final)}")
