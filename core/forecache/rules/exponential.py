"""Constant + decaying exponentials at any spacing of the anchors, a straight line included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

import numpy as np

from ..snapshots import Array
from .linear import Linear
from .projection import Projection, anchored, best_first, grid, project
from .rule import Rule, Unfit, remembered

Floats = list[float]

RATES = (0.0, *map(float, -np.geomspace(0.02, 0.6, 8)))  # exponents per mean gap: a line, and 8 that decay
RIDGE = 1e-10  # of the trace of the normal equations: a line stays exact to as much


def terms_at(exponents: Array, tau: Array) -> Array:
    """``[..., m, terms]`` values of ``(exp(r tau) - 1) / r`` at ``tau[m]``, and of its limit ``tau`` where r = 0."""
    r, t = exponents[..., None, :], tau[:, None]
    return np.where(r == 0, t, np.expm1(r * t) / np.where(r == 0, 1, r))


def ahead(r: float, t: float) -> float:
    """:func:`terms_at` of one exponent and one time: plain arithmetic, since a forecast pays for it."""
    return t if r == 0 else math.expm1(r * t) / r


@lru_cache(maxsize=256)  # a schedule visits the same windows in every stream and run
def projections(tau: tuple[float, ...], recency: float) -> tuple[Projection, ...]:
    """One term and two, where the window determines two, for older anchors at ``tau_j < 0``."""
    back = np.array(tau)
    grids = (grid(RATES, terms) for terms in range(1, min(3, len(tau))))
    return tuple(project(each, terms_at(each, back), recency**-back, 0.0, of_trace=RIDGE) for each in grids)


@remembered
def fits(gram: Array, tau: tuple[float, ...], recency: float) -> tuple[tuple[Floats, list[Floats]], ...]:
    """Fits of a window, best first: exponents ``[terms]`` and the ``n - 1`` columns of ``C``, in plain floats.

    ``v(tau) - v_n = sum_k c_k (exp(r_k tau) - 1)/r_k`` with ``c_k = sum_j C_kj (v_j - v_n)``, fitted with the weights
    ``om_j = recency^(-tau_j)``; see :mod:`forecache.rules.projection`.
    """
    found = best_first(anchored(gram), recency ** -np.array(tau), projections(tau, recency))
    return tuple((exponents.tolist(), solved.T.tolist()) for exponents, solved in found)


@dataclass(frozen=True)
class Exponential(Rule):
    """Constant + one or two terms, each a decaying exponential or a line, fitted to unevenly spaced snapshots.

    For hosts whose computed steps are dense and sparse by turns (a mask 1 1 0 0 0 1 1 0 0 0), where an extrapolation of
    the newest gap alone has a large ``||w||_1``. Of the :attr:`recencies`, sharpest first, the first fit that meets the
    guard serves; each is exact on a line at any spacing. An oscillation is outside its family: there
    ``Auto((Linear(1), Linear(2), Exponential()))`` finds that a line is better, and this rule where it is.

    Attributes:
        recencies: weights of a snapshot per mean gap of age, each in (0, 1]; 1: all alike.

    Raises:
        ValueError: a recency out of its range.
    """

    recencies: tuple[float, ...] = (0.15, 0.4, 0.7, 1.0)
    name = "exponential"
    window = 6
    floor = 3

    def __post_init__(self) -> None:
        if not self.recencies or not all(0 < each <= 1 for each in self.recencies):
            raise ValueError(f"recencies must lie in (0, 1], got {self.recencies}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        n = len(times)
        if n < self.floor:
            raise Unfit(f"{n} of {self.floor} snapshots")
        *older, last = times.tolist()
        scale = (n - 1) / (last - older[0])
        back, goal = tuple((t - last) * scale for t in older), (target - last) * scale
        best: list[float] = []
        size = math.inf
        for recency in self.recencies:
            for exponents, solved in fits(gram, back, recency):
                reach = [ahead(r, goal) for r in exponents]
                w = [sum(map(mul, reach, column)) for column in solved]
                w.append(1 - sum(w))
                norm = sum(map(abs, w))
                if norm <= self.guard:
                    return np.array(w)
                if not best or norm < size:
                    best, size = w, norm
        return np.array(best)

    def lower(self) -> Rule | None:
        return Linear(1)
