"""Variable projection (arXiv:1704.02343): fit a sum of exponentials to a window by trying a grid of exponents.

The model is ``v(tau) - v_n = sum_k c_k b_k(tau)`` with ``b_k(0) = 0``: each b_k is an exponential less 1, or a line
where the exponent is 0, and v_n is the newest snapshot. For given exponents the amplitudes c_k are a linear function of
the ``v_j - v_n``. The exponents are those of the grid that leave the least residual, which follows from D, the Gram
matrix of the ``v_j - v_n``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ..snapshots import Array

EXACT = 1e-12  # of the squared motion: a residual below it means that the terms reproduce the window
TERM = 0.25  # of the residual of one term: what two terms must leave at most


class Projection(NamedTuple):
    """All fits of a number of terms to the m older snapshots of a window; they depend on its times alone."""

    exponents: Array  #: ``[g, terms]`` of the grid
    solved: Array  #: ``[g, terms, m]``, takes the ``v_j - v_n`` to the amplitudes
    costs: Array  #: ``[g, m * m]``, takes the entries of D to what each fit leaves


@cache
def grid(rates: tuple[float, ...], terms: int) -> Array:
    """``[g, terms]``: each of ``rates``, or each pair of two of them."""
    return np.array(list(combinations(rates, terms)))


def project(exponents: Array, design: Array, om: Array, ridge: float, of_trace: float = 0.0) -> Projection:
    """Weighted least squares for every choice of exponents.

    Args:
        exponents: ``[g, terms]``.
        design: ``B [g, m, terms]``, values of the terms at the times of the older snapshots.
        om: ``[m]``, weights of the snapshots.
        ridge: is added to the diagonal of the normal equations ``B^T Om B``, and so is
        of_trace: that share of their trace.

    With ``H = B C``, ``C = (B^T Om B + ...)^-1 B^T Om``, the residual ``tr(Om (I - H) D (I - H)^T)`` is the linear
    function ``<(I - H)^T Om (I - H), D>`` of D.
    """
    m, terms = design.shape[1:]
    scaled = np.swapaxes(design * om[None, :, None], 1, 2)
    system = scaled @ design
    added = ridge + of_trace * np.trace(system, axis1=1, axis2=2)[:, None, None]
    solved = np.asarray(np.linalg.solve(system + added * np.eye(terms), scaled), dtype=np.float64)
    miss = np.eye(m) - design @ solved
    return Projection(exponents, solved, (np.swapaxes(miss, 1, 2) @ (om[:, None] * miss)).reshape(-1, m * m))


def best_first(d: Array, om: Array, projections: Iterable[Projection]) -> list[tuple[Array, Array]]:
    """The best fit of each number of terms, as exponents ``[terms]`` and amplitudes ``C [terms, m]``.

    Two terms must leave at most :data:`TERM` of what one leaves, and then come first.
    """
    found: list[tuple[Array, Array]] = []
    left = float(om @ np.diag(d))
    enough = EXACT * left
    for exponents, solved, costs in projections:
        cost = costs @ d.ravel()
        k = int(cost.argmin())
        if not found or cost[k] < TERM * left:
            found.insert(0, (exponents[k], solved[k]))
        left = float(cost[k])
        if left <= enough:
            break
    return found


def anchored(gram: Array) -> Array:
    """D, the Gram matrix of the ``v_j - v_n``, from that of the snapshots."""
    return np.asarray(gram[:-1, :-1] - gram[:-1, -1:] - gram[-1:, :-1] + gram[-1, -1])
