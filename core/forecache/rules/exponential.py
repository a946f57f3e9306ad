"""Constant + decaying exponentials at any spacing of the anchors, a straight line included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from operator import mul

import numpy as np

from ..snapshots import Array
from .dmd import EXACT, remembered
from .linear import Linear
from .rule import Rule, Unfit

Floats = list[float]

RIDGE = 1e-10  # of the trace of the normal equations: a line stays exact to as much
TERM = 0.25  # of the residual of one term: what two must leave at most


@cache
def rates(terms: int) -> Array:
    """Grid ``[g, terms]`` of exponents per mean gap: 0 (a line) and 8 that decay, or their 36 pairs."""
    return np.array(list(combinations(np.append(0.0, -np.geomspace(0.02, 0.6, 8)), terms)))


def terms_at(exponents: Array, tau: Array) -> Array:
    """``[..., m, terms]`` values of ``(exp(r tau) - 1) / r`` at ``tau[m]``, and of its limit ``tau`` where r = 0."""
    r, t = exponents[..., None, :], tau[:, None]
    return np.where(r == 0, t, np.expm1(r * t) / np.where(r == 0, 1, r))


def ahead(r: float, t: float) -> float:
    """:func:`terms_at` of one exponent and one time: plain arithmetic, since a forecast pays for it."""
    return t if r == 0 else math.expm1(r * t) / r


@lru_cache(maxsize=256)
def projections(tau: tuple[float, ...], recency: float) -> tuple[tuple[Array, Array, Array], ...]:
    """What :func:`fits` needs of the times of a window, for one term and for two.

    Exponents ``R [g, terms]`` of the grid; ``C [g, terms, m]``, which solves for the amplitudes; and ``K [g, m * m]``,
    the residual that each leaves as a linear function of D: ``tr(Om (I - H) D (I - H)^T) = <(I - H)^T Om (I - H), D>``.
    A schedule visits the same windows in every stream and run.
    """
    m, back = len(tau), np.array(tau)
    om = recency**-back
    made = []
    for terms in range(1, min(3, m)):
        design = terms_at(rates(terms), back)
        scaled = np.swapaxes(design * om[None, :, None], 1, 2)
        system = scaled @ design
        system = system + RIDGE * np.trace(system, axis1=1, axis2=2)[:, None, None] * np.eye(terms)
        solved = np.linalg.solve(system, scaled)
        miss = np.eye(m) - design @ solved
        made.append((rates(terms), solved, (np.swapaxes(miss, 1, 2) @ (om[:, None] * miss)).reshape(-1, m * m)))
    return tuple(made)


@remembered
def fits(gram: Array, tau: tuple[float, ...], recency: float) -> tuple[tuple[Floats, list[Floats]], ...]:
    """Fits of a window, best first: exponents ``[terms]`` and the ``n - 1`` columns of ``C``, in plain floats.

    ``v(tau) - v_n = sum_k c_k (exp(r_k tau) - 1)/r_k`` with ``c_k = sum_j C_kj (v_j - v_n)``: weighted least squares
    over the ``n - 1`` older anchors at ``tau_j < 0``, ``om_j = recency^(-tau_j)``, for the exponents of the grid that
    leave the least (variable projection, arXiv:1704.02343). The residual ``tr(Om (I - H) D (I - H)^T)`` needs only the
    Gram matrix D of the ``v_j - v_n``. Two terms, where the window determines them, must leave :data:`TERM` of it.
    """
    found: list[tuple[Floats, list[Floats]]] = []
    d = gram[:-1, :-1] - gram[:-1, -1:] - gram[-1:, :-1] + gram[-1, -1]
    left = float(recency ** -np.array(tau) @ np.diag(d))
    enough = EXACT * left
    for exponents, solved, costs in projections(tau, recency):
        cost = costs @ d.ravel()
        k = int(cost.argmin())
        if not found or cost[k] < TERM * left:
            found.insert(0, (exponents[k].tolist(), solved[k].T.tolist()))
        left = float(cost[k])
        if left <= enough:
            break
    return tuple(found)


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
