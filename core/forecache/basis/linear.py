"""Lagrange extrapolation in true time, at any anchor spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..snapshots import Array
from .reuse import Reuse
from .rule import Polynomial, Rule


def lagrange(times: Array, target: float, order: int) -> Array:
    """Weights through the last ``order + 1`` points: ``w_j = prod_{k != j} (t - t_k) / (t_j - t_k)``; older ones 0."""
    w = np.zeros(len(times))
    t = times[-(order + 1) :]
    for j in range(len(t)):
        others = np.delete(t, j)
        w[len(times) - len(t) + j] = np.prod((target - others) / (t[j] - others))
    return w


@dataclass(frozen=True)
class Linear(Polynomial):
    """Exact on polynomials of degree ``<= order`` in t at irregular anchors; fewer anchors give the order they allow.

    ``||w||_1 = 1 + 2g`` at order 1, ``g`` being the horizon in gaps, so the guard acts beyond g = 1.5.
    """

    stem = "linear"
    least = 0

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        return lagrange(times, target, min(self.order, len(times) - 1))

    def lower(self) -> Rule | None:
        if self.order == 0:
            return Reuse()
        return Linear(self.order - 1) if self.order > 1 else None
