"""What is integrated: a flow with its grid, its guidance and a fine solution to compare with.

Time rises from noise (t = 0) to data (t = 1): ``x_t = (1 - t) z + t y``, ``v = dx/dt``. A seed names one condition and
its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forecache import Calibration, Guided, schedule

Seeds = Sequence[int]
Value = Any  # torch.Tensor, or Guided(cond, uncond)
EDGE = 1e-9  # a guidance edge that falls on a grid point belongs to the guided side, whatever the round-off


@dataclass(frozen=True, eq=False)
class Problem:
    """One flow on one grid.

    Attributes:
        key, title: short name, line for the table.
        times: the N + 1 times of the N-step sampler.
        start: noise ``[B, ...]`` of the seeds.
        branches: ``(x, t, seeds, guided) -> Guided(cond, uncond)`` if guided, else cond.
        budgets: network calls to measure at.
        shift: of the grid, ``s n / (1 + (s - 1) n)`` for the noise level ``n = 1 - t``.
        scale: ``g`` of ``u + g (c - u)``.
        interval: times between which guidance is on, ends included; ``None``: the flow has no guidance.
        exact: ``(seeds, times) -> [T, B, ...]``, the solution in closed form, where there is one.
        decode: mesh of one latent.
    """

    key: str
    title: str
    times: tuple[float, ...]
    start: Callable[[Seeds], torch.Tensor]
    branches: Callable[[torch.Tensor, float, Seeds, bool], Value]
    budgets: tuple[int, ...]
    shift: float = 1.0
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    exact: Callable[[Seeds, Sequence[float]], torch.Tensor] | None = None
    decode: Callable[[torch.Tensor], Any] | None = None
    uncached: dict[tuple[int, int], tuple[torch.Tensor, Value]] = field(default_factory=dict)
    #: (seed, step) -> state and value on the uncached path
    references: dict[int, torch.Tensor] = field(default_factory=dict)  #: seed -> fine states at `times`
    calibrations: dict[Any, Calibration] = field(default_factory=dict)  #: recordings that plans share

    @property
    def effective(self) -> tuple[int, ...]:
        """Steps that move the state."""
        return schedule.effective_steps(self.times)

    def guided(self, t: float) -> bool:
        """Whether guidance is on at the sampler's own time ``t``."""
        return self.interval is not None and self.interval[0] - EDGE <= t <= self.interval[1] + EDGE

    def edges(self, times: Sequence[float]) -> list[int]:
        """First steps of ``times`` after a guidance edge."""
        on = [self.guided(t) for t in times[:-1]]
        return [i for i in range(1, len(on)) if on[i] != on[i - 1]]

    def grid(self, steps: int) -> tuple[float, ...]:
        """A grid of ``steps`` moving steps with this problem's shift."""
        return shifted(steps, self.shift)


def shifted(steps: int, shift: float) -> tuple[float, ...]:
    """``1 - s n / (1 + (s - 1) n)`` at ``steps + 1`` even noise levels n from 1 to 0 (TRELLIS calls s `rescale_t`)."""
    noise = np.linspace(1, 0, steps + 1)
    return tuple((1 - shift * noise / (1 + (shift - 1) * noise)).tolist())


def combine(value: Value, scale: float) -> torch.Tensor:
    """``u + g (c - u)`` of two branches; a tensor is combined already, and ``Guided(c, None)`` is c."""
    if isinstance(value, Guided):
        if value.uncond is None:
            return value.cond  # type: ignore[no-any-return]
        return value.uncond + scale * (value.cond - value.uncond)  # type: ignore[no-any-return]
    return value  # type: ignore[no-any-return]


class Network:
    """A problem's velocity for a batch of seeds, counted per condition where it is evaluated."""

    def __init__(self, problem: Problem, seeds: Seeds) -> None:
        self.problem, self.seeds = problem, list(seeds)
        self.calls, self.cond, self.uncond = (np.zeros(len(self.seeds), dtype=np.int64) for _ in range(3))

    def branches(
        self, x: torch.Tensor, t: float, rows: torch.Tensor | None = None, guided: bool | None = None
    ) -> Value:
        """Branches at ``x [B, ...]`` or, with a mask ``rows [B]``, at ``x[rows]``. ``guided`` overrides the clock."""
        on = self.problem.guided(t) if guided is None else guided
        self._count(rows, on)
        if rows is None:
            return self.problem.branches(x, t, self.seeds, on)
        chosen = [seed for seed, wanted in zip(self.seeds, rows.tolist(), strict=True) if wanted]
        return self.problem.branches(x[rows], t, chosen, on)

    def velocity(self, x: torch.Tensor, t: float, guided: bool | None = None) -> torch.Tensor:
        """The velocity that the sampler integrates."""
        return combine(self.branches(x, t, guided=guided), self.problem.scale)

    def on_path(self, i: int, x: torch.Tensor, t: float) -> Value:
        """Branches where no step was forecast yet: evaluated once per state of the uncached run, counted every time."""
        known, keys = self.problem.uncached, [(seed, i) for seed in self.seeds]
        if not all(key in known and torch.equal(known[key][0], at) for key, at in zip(keys, x, strict=True)):
            value = self.branches(x, t)
            parts = zip(*value, strict=True) if isinstance(value, Guided) else value
            for key, at, part in zip(keys, x, parts, strict=True):
                known.setdefault(key, (at, Guided(*part) if isinstance(value, Guided) else part))
            return value
        self._count(None, self.problem.guided(t))
        rows = [known[key][1] for key in keys]
        if isinstance(rows[0], Guided):
            return Guided(torch.stack([row.cond for row in rows]), torch.stack([row.uncond for row in rows]))
        return torch.stack(rows)

    def _count(self, rows: torch.Tensor | None, guided: bool) -> None:
        counted = np.ones(len(self.seeds), dtype=np.int64) if rows is None else rows.numpy().astype(np.int64)
        self.calls += counted
        self.cond += counted
        self.uncond += guided * counted
