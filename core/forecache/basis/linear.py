"""Lagrange extrapolation in true time, at any anchor spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..snapshots import MAX_HISTORY, Array
from .reuse import Reuse
from .rule import Rule


def lagrange(times: Array, target: float, order: int) -> Array:
    """Weights through the last ``order + 1`` points: ``w_j = prod_{k != j} (t - t_k) / (t_j - t_k)``; older ones 0."""
    w = np.zeros(len(times))
    t = times[-(order + 1) :]
    for j in range(len(t)):
        others = np.delete(t, j)
        w[len(times) - len(t) + j] = np.prod((target - others) / (t[j] - others))
    return w


@dataclass(frozen=True)
class Linear(Rule):
    """Exact on polynomials of degree ``<= order`` in t at irregular anchors; fewer anchors give the order they allow.

    ``||w||_1 = 1 + 2g`` at order 1, ``g`` being the horizon in gaps, so the guard acts beyond g = 1.5.
    """

    order: int = 1
    uses_gram = False

    def __post_init__(self) -> None:
        if not 0 <= self.order < MAX_HISTORY:
            raise ValueError(f"order must be 0..{MAX_HISTORY - 1}, got {self.order}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"linear{self.order}"

    @property
    def window(self) -> int:  # type: ignore[override]
        return self.order + 1

    @property
    def floor(self) -> int:  # type: ignore[override]
        return self.order + 1

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        return lagrange(times, target, min(self.order, len(times) - 1))

    def lower(self) -> Rule | None:
        if self.order == 0:
            return Reuse()
        return Linear(self.order - 1) if self.order > 1 else None
