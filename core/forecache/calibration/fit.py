"""Closed-loop weights of one skipped step, shared by all calibration runs. No gradients: one small linear system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..plan import COLUMNS
from ..rules import GUARD, Linear
from ..rules.guard import blend, guarded
from ..snapshots import Array, gram_matrix


def prior(steps: Sequence[int], target: int) -> Array:
    """``w0``: guarded Lagrange weights of order <= 2, on the step index, of the snapshots of ``steps``."""
    return guarded(Linear(2), np.array(steps, dtype=np.float64), float(target), np.eye(len(steps))).weights


def fit(
    columns: Mapping[int, torch.Tensor], wanted: Mapping[int, torch.Tensor], prior: Array, ones: int, ridge: float,
    apart: int = 0,
) -> tuple[Array, float]:  # fmt: skip
    """``min sum_s ||F_s w - u_s||^2 / ||u_s||^2 + lam ||w - w0||^2`` with the first ``ones`` weights summing to 1.

    Args:
        columns: per run the columns ``F_s^T [m, d]``: velocity snapshots first, then whatever else may serve.
        wanted: per run ``u_s [d]``, the velocity that lands on the target.
        prior: ``w0 [m]``.
        ones: how many columns are velocity snapshots; their weights sum to 1 and keep ``||w||_1 <= 4``.
        ridge: ``lam = ridge tr(K) / ones`` over the velocity columns of ``K = sum F_s^T F_s / ||u_s||^2``.
        apart: how many columns after those are guidance differences; their weights keep ``||w||_1 <= 8``.

    Returns:
        Weights ``[m]`` (blended toward the prior where the guard asks for it), and the root mean square over the runs
        of the relative misfit ``||F_s w - u_s|| / ||u_s||``.
    """
    m = len(prior)
    k, r, rows = np.zeros((m, m)), np.zeros(m), []
    for seed, f in columns.items():
        g = gram_matrix(torch.cat((f, wanted[seed][None])))
        scale = max(g[m, m], 1e-300)
        k += g[:m, :m] / scale
        r += g[:m, m] / scale
        rows.append(g / scale)
    w = solve(k, r, prior, ones, ridge, apart)
    signed = np.append(-w, 1.0)
    return w, float(np.sqrt(np.mean([max(signed @ g @ signed, 0) for g in rows])))


def solve(k: Array, r: Array, prior: Array, ones: int, ridge: float, apart: int = 0) -> Array:
    """The minimiser above from its normal equations ``K [m, m]``, ``r [m]``."""
    m = len(prior)
    lam = ridge * float(np.trace(k[:ones, :ones])) / ones
    system = np.zeros((m + 1, m + 1))
    system[:m, :m] = k + lam * np.eye(m)
    system[:ones, m] = system[m, :ones] = 1
    w: Array = np.linalg.solve(system, np.append(r + lam * prior, 1.0))[:m]
    for part, limit in ((slice(ones), GUARD), (slice(ones, ones + apart), COLUMNS)):
        if np.abs(w[part]).sum() > limit:
            w = prior + blend(w[part], prior[part], limit) * (w - prior)
    return w
