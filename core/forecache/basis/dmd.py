"""Dynamic Mode Decomposition (Prony's method for vectors) computed from the Gram matrix of the snapshots.

A velocity trajectory is modelled as constant + sum of exponentials. Schmid 2010 takes the SVD of the ``[d, n]``
snapshot matrix; every quantity of it that a forecast needs is in the ``n x n`` Gram matrix (method of snapshots), and
the forecast is a weighted sum of the snapshots like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..snapshots import Array
from .linear import Linear
from .rule import Rule, Unfit, newest

Complex = npt.NDArray[np.complex128]

UNIFORM = 1e-3  # relative spread of gaps that still counts as even: float32 grids carry 1e-5, shifted grids 1e-2 and more
CLEAN = 1e-3  # innovation below which the window is treated as noise-free linear dynamics of its full rank
NOISY_RANK = 2
GROWTH = 1.25  # largest pole modulus per gap


def propagator(gram: Array, rtol: float, rank: int = 0, ridge: float = 0.0) -> tuple[Complex, Complex]:
    """Poles and modes of the linear map that advances the columns ``x_1 .. x_m`` by one.

    With ``X = [x_1 .. x_{m-1}]``, ``X' = [x_2 .. x_m]`` and ``X^T X = Q S^2 Q^T`` from the Gram matrix, the projected
    operator is ``A~ = S^-1 Q^T (X^T X') Q S^-1 = W diag(lambda) W^-1`` and the modes are ``X' Q S^-1 W``.

    Args:
        gram: ``[m, m]`` of the columns; rtol: singular values below ``rtol`` times the largest are noise;
        rank: keep exactly so many, noise or not, as far as there are columns (0: all above the cut).
        ridge: added to the singular values that map the modes back, as published.

    Returns:
        ``lambda[r]`` and ``C[m, r]``, the modes as combinations of the columns (row 1 is zero).

    Raises:
        Unfit: zero or non-finite columns.
    """
    if not np.isfinite(gram).all():
        raise Unfit("the Gram matrix is not finite")
    square, q = np.linalg.eigh(gram[:-1, :-1])
    s = np.sqrt(np.maximum(square[::-1], 0))
    if s[0] == 0:
        raise Unfit("the snapshots do not differ")
    kept = min(rank, len(s)) if rank > 0 else max(int((s > rtol * s[0]).sum()), 1)
    r = min(kept, int((s > 1e-8 * s[0]).sum()))  # float64 products carry no direction below sqrt(eps)
    left = q[:, ::-1][:, :r] / s[:r]
    basis = q[:, ::-1][:, :r] / (s[:r] + ridge)
    poles, w = np.linalg.eig(left.T @ gram[:-1, 1:] @ basis)
    modes = np.zeros((len(gram), r), dtype=np.complex128)
    modes[1:] = basis @ w
    return poles.astype(np.complex128), modes


def amplitudes(gram: Array, poles: Complex, modes: Complex, recency: float) -> Complex:
    """Least-squares amplitudes over *all* columns, ``min_b sum_j om_j ||x_j - modes diag(lambda^(j-1)) b||^2``.

    The normal equations of sparsity-promoting DMD (arXiv:1309.4165), ``om_j = recency^(m - j)``. Fitting the newest
    column alone would interpolate it and pass all its noise on.
    """
    m = len(gram)
    om = recency ** np.arange(m - 1, -1, -1.0)
    powers = poles[:, None] ** np.arange(m)  # T[k, j] = lambda_k^(j-1)
    system = (modes.conj().T @ gram @ modes) * ((powers.conj() * om) @ powers.T)
    right = ((powers.conj() * om) * (modes.conj().T @ gram)).sum(1)
    b: Complex = np.linalg.lstsq(system, right, rcond=1e-14)[0]
    return b


def dmd_weights(gram: Array, horizon: float, rank: int = 0, ridge: float = 1e-8, rtol: float = 1e-4) -> Array:
    """Plain DMD of the snapshots themselves, as published: ``w = Re(C diag(lambda^h) b)``, b fitted to the newest one.

    For :mod:`forecache.hicache`. The weights need not sum to 1, so a constant costs a pole; the :class:`DMD` rule uses
    the difference form. ``horizon`` in snapshot gaps, may be fractional or negative.

    Raises:
        Unfit: fewer than 3 snapshots, or no finite fit.
    """
    if len(gram) < 3:
        raise Unfit(f"{len(gram)} of 3 snapshots")
    poles, modes = propagator(gram, rtol, rank, ridge)
    project = modes.conj().T @ gram
    b: Complex = np.linalg.lstsq(project @ modes, project[:, -1], rcond=1e-14)[0]
    with np.errstate(all="ignore"):
        w = np.real(modes @ (poles ** complex(horizon) * b))
    if not np.isfinite(w).all():
        raise Unfit("the fit is not finite")
    return np.asarray(w)


def difference_dmd(gram: Array, horizon: float, rtol: float, recency: float) -> Array:
    """DMD of successive differences ``d_j = v_{j+1} - v_j``: exact on constant + exponentials and on a line.

    ``w = e_n + E Re(C diag(lambda^m g) b)``, ``g = (lambda^h - 1)/(lambda - 1)`` (``h`` where lambda = 1), where E
    takes the m = n - 1 differences. Sums to 1 by construction.

    The rank is capped at 2 unless the newest difference lies in the span of the earlier ones (innovation below
    ``CLEAN``): only then is a higher rank the dynamics and not the noise. For fractional horizons poles with
    ``Re(lambda) <= 0`` are removed, since their powers alias; moduli are clipped at ``GROWTH``.
    """
    n = len(gram)
    e = np.diff(np.eye(n), axis=0).T  # [n, m]: column j is e_{j+1} - e_j
    g = e.T @ gram @ e
    poles, modes = propagator(g, rtol, 0)
    if len(poles) > NOISY_RANK and innovation(g, rtol) > CLEAN:
        poles, modes = propagator(g, rtol, NOISY_RANK)
    if horizon != round(horizon):
        keep = poles.real > 0
        if not keep.any():
            raise Unfit("every pole aliases at a fractional horizon")
        poles, modes = poles[keep], modes[:, keep]
    modulus = np.abs(poles)
    poles = np.where(modulus > GROWTH, poles * (GROWTH / np.maximum(modulus, GROWTH)), poles)
    b = amplitudes(g, poles, modes, recency)
    # expm1 and log1p keep (lambda^h - 1) / (lambda - 1) accurate next to lambda = 1
    small = np.abs(poles - 1) < 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        advance = np.where(small, horizon, (poles ** complex(horizon) - 1) / np.where(small, 1, poles - 1))
        forecast = np.real(modes @ (poles ** (n - 1) * advance * b))
    return np.asarray(newest(n) + e @ forecast)


def innovation(gram: Array, rtol: float) -> float:
    """Relative distance of the newest column from the span of the earlier ones, from the Gram matrix."""
    square, q = np.linalg.eigh(gram[:-1, :-1])
    keep = square > (rtol**2) * square[-1]
    inside = ((q[:, keep].T @ gram[:-1, -1]) ** 2 / square[keep]).sum()
    return float(np.sqrt(max(gram[-1, -1] - inside, 0) / gram[-1, -1])) if gram[-1, -1] > 0 else 0.0


@cache
def _exponents(terms: int) -> tuple[tuple[float, ...], ...]:
    """Grid of decay rates per mean gap: 16 values, their 120 pairs."""
    rates = tuple(-float(r) for r in np.geomspace(0.02, 2.0, 16))
    return tuple(combinations(rates, terms))


def exponential_weights(times: Array, target: float, gram: Array, recency: float, ridge: float = 1e-6) -> Array:
    """Constant + one or two decaying exponentials at irregular times, by variable projection (arXiv:1704.02343).

    ``b(t) = [1, exp(om_k (t - t_n))]``; the exponents minimise ``tr(Om (I - H)^T G (I - H))`` over a grid, with
    ``H = Om B (B^T Om B + R)^-1 B^T`` and the constant unpenalised, so that the weights sum to 1. A second exponential
    is kept only if it halves the residual. Times are measured in mean gaps along the trajectory.
    """
    n = len(times)
    tau = (np.append(times, target) - times[-1]) * ((n - 1) / (times[-1] - times[0]))
    om = recency ** -tau[:-1]
    best: tuple[float, Array] | None = None
    for terms in (1, 2) if n >= 5 else (1,):
        rates = np.array(_exponents(terms))  # [grid, terms]
        b = np.exp(rates[:, None, :] * np.maximum(tau, -60)[None, :, None])
        b = np.concatenate([np.ones((*b.shape[:2], 1)), b], 2)
        design, wanted = b[:, :-1], b[:, -1]
        scaled = design * om[None, :, None]
        penalty = np.eye(terms + 1) * ridge
        penalty[0, 0] = 0
        system = np.swapaxes(scaled, 1, 2) @ design + penalty
        hat = scaled @ np.linalg.solve(system, np.swapaxes(design, 1, 2))  # [grid, n, n]
        miss = np.eye(n) - hat
        cost = np.einsum("j,gkj,kl,glj->g", om, miss, gram, miss)
        k = int(cost.argmin())
        w = scaled[k] @ np.linalg.solve(system[k], wanted[k])
        if best is None or cost[k] < best[0] / 4:
            best = (float(cost[k]), w)
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class DMD(Rule):
    """Exponential forecast: difference-form DMD on an evenly spaced tail, variable projection otherwise.

    Attributes:
        rtol: singular values of the differences below ``rtol`` times the largest are noise (float64 products).
        recency: weight of a snapshot per anchor of age, in (0, 1].
    """

    rtol: float = 1e-6
    recency: float = 0.6
    name = "dmd"
    floor = 4

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1), got {self.rtol}")
        if not 0 < self.recency <= 1:
            raise ValueError(f"recency must lie in (0, 1], got {self.recency}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        n = len(times)
        if n < self.floor:
            raise Unfit(f"{n} of {self.floor} snapshots")
        gaps = np.diff(times)
        uneven = np.nonzero(np.abs(gaps - gaps[-1]) > UNIFORM * abs(gaps[-1]))[0]
        first = int(uneven[-1]) + 1 if len(uneven) else 0  # start of the evenly spaced tail
        if n - first < self.floor:
            return exponential_weights(times, target, gram, self.recency)
        horizon = (target - times[-1]) / gaps[-1]
        nearest = round(horizon)
        horizon = float(nearest) if abs(horizon - nearest) < UNIFORM else float(horizon)
        w = np.zeros(n)
        w[first:] = difference_dmd(gram[first:, first:], horizon, self.rtol, self.recency)
        return w

    def lower(self) -> Rule | None:
        return Linear(1)
