"""Lagrange extrapolation at any anchor spacing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..snapshots import Array
from .reuse import Reuse
from .rule import GUARD, Polynomial, Rule, newest


def lagrange(times: Array, target: float, order: int) -> Array:
    """Weights through the last ``order + 1`` points: ``w_j = prod_{k != j} (t - t_k) / (t_j - t_k)``; older ones 0."""
    w = np.zeros(len(times))
    t = times[-(order + 1) :].tolist()
    w[-len(t) :] = [math.prod((target - other) / (own - other) for other in t if other != own) for own in t]
    return w


@dataclass(frozen=True)
class Linear(Polynomial):
    """Exact on polynomials of degree ``<= order`` in t at irregular anchors; fewer anchors give the order they allow.

    ``||w||_1 = 1 + 2g`` at order 1, ``g`` being the horizon in gaps, so the guard acts beyond g = 1.5. With ``damping``
    c the forecast makes that share of the step away from the newest snapshot, ``w <- e_n + c (w - e_n)``: exact on a
    constant only, and less sensitive to snapshots that do not lie on a smooth curve, as those of trained networks.

    Raises:
        ValueError: ``damping`` outside (0, 1].
    """

    damping: float = 1.0
    guard: float = GUARD

    stem = "linear"
    least = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return super().name + (f" x {self.damping:g}" if self.damping < 1 else "")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        reuse = newest(len(times))
        return reuse + self.damping * (lagrange(times, target, min(self.order, len(times) - 1)) - reuse)

    def lower(self) -> Rule | None:
        if self.order == 0:
            return Reuse()
        return Linear(self.order - 1, self.damping, self.guard) if self.order > 1 else None
