"""Dynamic Mode Decomposition (Prony's method for vectors) computed from the Gram matrix of the snapshots.

A velocity trajectory is modelled as constant + sum of exponentials. Schmid 2010 takes the SVD of the ``[d, n]``
snapshot matrix; every quantity of it that a forecast needs is in the ``n x n`` Gram matrix (method of snapshots), and
the forecast is a weighted sum of the snapshots like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..snapshots import Array
from .linear import Linear
from .projection import Projection, anchored, best_first, grid, project
from .rule import Rule, Unfit, remembered

Flags = npt.NDArray[np.bool_]
Complex = npt.NDArray[np.complex128]

UNIFORM = 1e-3  # relative spread of gaps that still counts as even: float32 grids carry 1e-5, shifted ones 1e-2 or more
CLEAN = 1e-3  # innovation of the differences below which a window counts as noise-free linear dynamics
RTOL = 1e-6  # of singular values of differences: float64 products, float32 snapshots
SUM = 1e-9  # relative: what round-off may leave of a sum of weights that is 1
GROWTH = 1.25  # largest pole modulus per gap
RATES = (*map(float, -np.geomspace(0.02, 0.6, 8)), 0.0, *map(float, np.geomspace(0.02, 0.6, 8)))  # per mean gap
UNEVEN_FLOOR, UNEVEN_GAPS, UNEVEN_RECENCY = 5, 3.0, 0.15  # measured on a trained network, see docs/results.md


def propagator(gram: Array, rtol: float, rank: int = 0, ridge: float = 0.0) -> tuple[Complex, Complex]:
    """Poles and modes of the linear map that advances the columns ``x_1 .. x_m`` by one.

    With ``X = [x_1 .. x_{m-1}]``, ``X' = [x_2 .. x_m]`` and ``X^T X = Q S^2 Q^T`` from the Gram matrix, the projected
    operator is ``A~ = S^-1 Q^T (X^T X') Q S^-1 = W diag(lambda) W^-1`` and the modes are ``X' Q S^-1 W``.

    Args:
        gram: ``[m, m]`` of the columns.
        rtol: singular values below ``rtol`` times the largest are noise.
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
    return np.asarray(np.linalg.lstsq(system, right, rcond=1e-14)[0], dtype=np.complex128)


def dmd_weights(gram: Array, horizon: float, rank: int = 0, ridge: float = 0.0, rtol: float = 1e-4) -> Array:
    """Plain DMD of the snapshots themselves, as published: ``w = Re(C diag(lambda^h) b)``, b fitted to the newest one.

    The weights need not sum to 1, and a constant costs a pole. ``horizon`` in snapshot gaps, fractional or negative.

    Raises:
        Unfit: fewer than 3 snapshots, or no finite fit.
    """
    if len(gram) < 3:
        raise Unfit(f"{len(gram)} of 3 snapshots")
    poles, modes, b = plain_fit(gram, rtol, rank, ridge)
    with np.errstate(all="ignore"):
        w = np.real(modes @ (poles ** complex(horizon) * b))
    if not np.isfinite(w).all():
        raise Unfit("the fit is not finite")
    return np.asarray(w)


@remembered
def plain_fit(gram: Array, rtol: float, rank: int, ridge: float) -> tuple[Complex, Complex, Complex]:
    """Poles, modes and the amplitudes that fit the newest snapshot."""
    poles, modes = propagator(gram, rtol, rank, ridge)
    project = modes.conj().T @ gram
    b = np.linalg.lstsq(project @ modes, project[:, -1], rcond=1e-14)[0]
    return poles, modes, np.asarray(b, dtype=np.complex128)


def difference_dmd(gram: Array, horizon: float, rtol: float, recency: float) -> Array:
    """DMD of successive differences ``d_j = v_{j+1} - v_j``: exact on constant + exponentials and on a line.

    ``w = e_n + E Re(C diag(lambda^m g) b)``, ``g = (lambda^h - 1)/(lambda - 1)`` (``h`` where lambda = 1), where E
    takes the m = n - 1 differences. Sums to 1 by construction. Differences amplify noise, so this form is for windows
    that carry none. For fractional horizons poles with ``Re(lambda) <= 0`` are removed, since their powers alias;
    moduli are clipped at ``GROWTH``.
    """
    poles, still, response = difference_fit(gram, rtol, recency, horizon == round(horizon))
    with np.errstate(all="ignore"):
        advance = poles ** complex(horizon) - 1
        advance[still] = horizon
        w = (response @ advance).real
    w[-1] += 1
    return w


@remembered
def difference_fit(gram: Array, rtol: float, recency: float, whole: bool) -> tuple[Complex, Flags, Complex]:
    """Poles, which are 1, and ``E C diag(lambda^m b / (lambda - 1))``, for horizons of ``whole`` gaps or any."""
    n = len(gram)
    e = differences(n)
    gram = e.T @ gram @ e
    poles, modes = propagator(gram, rtol)
    if not whole:
        keep = poles.real > 0
        if not keep.any():
            raise Unfit("every pole aliases at a fractional horizon")
        poles, modes = poles[keep], modes[:, keep]
    modulus = np.abs(poles)
    poles = np.where(modulus > GROWTH, poles * (GROWTH / np.maximum(modulus, GROWTH)), poles)
    still = np.abs(poles - 1) < 1e-9
    b = amplitudes(gram, poles, modes, recency)
    return poles, still, e @ modes * (poles ** (n - 1) * b / np.where(still, 1, poles - 1))


@remembered
def clean(gram: Array) -> bool:
    """Whether the newest difference of the snapshots lies in the span of the earlier ones."""
    e = differences(len(gram))
    return innovation(e.T @ gram @ e, RTOL) < CLEAN


def differences(n: int) -> Array:
    """``E [n, n - 1]``, column j is ``e_{j+1} - e_j``."""
    return np.asarray(np.diff(np.eye(n), axis=0).T)


def sum_to_one(w: Array, gram: Array) -> Array:
    """The weights nearest to ``w`` that sum to 1, in the metric of the forecast they make.

    ``min ||V (w' - w)||^2 + eps ||w' - w||^2`` subject to ``1^T w' = 1``: the correction is ``(G + eps I)^-1 1``,
    scaled. eps is the squared innovation of the newest snapshot, in mean diagonals: with clean snapshots the correction
    lies in the null space and leaves the forecast as it is, with noisy ones it stays small.

    Raises:
        Unfit: a window so small, large or badly conditioned that round-off keeps the sum from being 1.
    """
    w = np.asarray(w + (1 - w.sum()) * missing(gram))
    if not abs(w.sum() - 1) <= SUM * np.abs(w).sum():
        raise Unfit(f"the weights sum to {w.sum():.3g}")
    return w


@remembered
def missing(gram: Array) -> Array:
    """``(G + eps I)^-1 1``, scaled to sum to 1: see :func:`sum_to_one`."""
    n = len(gram)
    unit = gram / (np.trace(gram) / n)  # an inverse of the norms themselves may overflow
    z = np.linalg.solve(unit + max(innovation(gram, 1e-6) ** 2, 1e-11) * np.eye(n), np.ones(n))
    return np.asarray(z / z.sum())


@remembered
def innovation(gram: Array, rtol: float) -> float:
    """Relative distance of the newest column from the span of the earlier ones, from the Gram matrix."""
    square, q = np.linalg.eigh(gram[:-1, :-1])
    keep = square > (rtol**2) * square[-1]
    inside = ((q[:, keep].T @ gram[:-1, -1]) ** 2 / square[keep]).sum()
    return float(np.sqrt(max(gram[-1, -1] - inside, 0) / gram[-1, -1])) if gram[-1, -1] > 0 else 0.0


def exponential_weights(times: Array, target: float, gram: Array, recency: float, ridge: float = 1e-6) -> Array:
    """Constant + one or two terms, each a real exponential or a line, at irregular times.

    Anchored at the newest snapshot: ``v_j - v_n`` is regressed on ``b_j = exp(om (t_j - t_n)) - 1`` (``t_j - t_n``
    where om = 0), so the weights sum to 1. Times are measured in mean gaps along the trajectory.
    """
    *older, last = times.tolist()
    scale = len(older) / (last - older[0])
    exponents, solved = uneven_fit(gram, tuple((t - last) * scale for t in older), recency, ridge)
    wanted = (target - last) * scale
    w = np.append(np.where(exponents == 0, wanted, np.expm1(exponents * wanted)) @ solved, 0)
    w[-1] = 1 - w.sum()
    return w


@remembered
def uneven_fit(gram: Array, tau: tuple[float, ...], recency: float, ridge: float) -> tuple[Array, Array]:
    """The best exponents ``[terms]``, of one term or two, and ``C [terms, n - 1]``, which takes the ``v_j - v_n`` to
    the amplitudes; see :mod:`forecache.rules.projection`.
    """
    d = anchored(gram)
    if not np.isfinite(d).all():  # before the search: no cost would be the least
        raise Unfit("the Gram matrix is not finite")
    return best_first(d, recency ** -np.array(tau), uneven_projections(tau, recency, ridge))[0]


@lru_cache(maxsize=256)  # a schedule visits the same windows in every stream and run
def uneven_projections(tau: tuple[float, ...], recency: float, ridge: float) -> tuple[Projection, ...]:
    """One term and two, for older anchors at ``tau_j < 0``. Terms are divided by their largest value; the ridge is of
    two terms only.
    """
    back, found = np.array(tau), []
    for terms in (1, 2):
        rates = grid(RATES, terms)
        b = np.where(rates == 0, back[:, None, None], np.expm1(rates * back[:, None, None])).swapaxes(0, 1)
        largest = np.abs(b).max(1)
        made = project(rates, b / largest[:, None], recency**-back, ridge if terms > 1 else 0.0)
        found.append(made._replace(solved=made.solved / largest[:, :, None]))
    return tuple(found)


@dataclass(frozen=True)
class DMD(Rule):
    """Exponential forecast of the evenly spaced tail of the window; of the whole window where there is none.

    - A tail of >= 4 snapshots without noise (the newest difference lies in the span of the earlier ones):
      :func:`difference_dmd`, exact on constant + exponentials.
    - A tail with noise: DMD of the snapshots themselves (:func:`dmd_weights`), made to sum to 1.
    - >= 5 unevenly spaced snapshots whose gaps differ by at most a factor 3: :func:`exponential_weights`.
    - Otherwise, as at the edge of a dense warm-up: ``fallback``.

    Attributes:
        recency: weight of a snapshot per anchor of age in the clean fit, in (0, 1].
        fallback: rule of the warm-up and of windows without a fit.
    """

    recency: float = 0.6
    fallback: Rule = Linear(2)  # noqa: RUF009  frozen
    name = "dmd"
    floor = 4

    def __post_init__(self) -> None:
        if not 0 < self.recency <= 1:
            raise ValueError(f"recency must lie in (0, 1], got {self.recency}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        n = len(times)
        if n < self.floor:
            raise Unfit(f"{n} of {self.floor} snapshots")
        gaps = [abs(later - earlier) for earlier, later in pairwise(times.tolist())]
        uneven = [j for j, gap in enumerate(gaps) if abs(gap - gaps[-1]) > UNIFORM * gaps[-1]]
        first = uneven[-1] + 1 if uneven else 0  # start of the evenly spaced tail
        if n - first < self.floor:
            if n < UNEVEN_FLOOR or max(gaps) > UNEVEN_GAPS * (1 + UNIFORM) * min(gaps):
                raise Unfit("no evenly spaced tail, and gaps too few or too different")
            return exponential_weights(times, target, gram, UNEVEN_RECENCY)
        horizon = float(abs(target - times[-1]) / gaps[-1])
        horizon = float(round(horizon)) if abs(horizon - round(horizon)) < UNIFORM else horizon
        tail = gram[first:, first:]
        w = np.zeros(n)
        if clean(tail):
            w[first:] = difference_dmd(tail, horizon, RTOL, self.recency)
        else:
            w[first:] = sum_to_one(dmd_weights(tail, horizon), tail)
        return w

    def lower(self) -> Rule | None:
        return self.fallback
