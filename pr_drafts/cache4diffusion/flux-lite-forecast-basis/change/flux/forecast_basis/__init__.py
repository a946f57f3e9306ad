"""
How a feature is forecast from the ones of earlier full steps: Taylor, scaled Hermite, or DMD. One dispatch for TaylorSeer,
TaylorSeer-Lite and ClusCa, chosen by `cache_dic['forecast_basis']` ('taylor' by default).
"""
import math
from typing import Dict, List, Optional, Tuple

import torch

BASES = ('taylor', 'hermite', 'dmd')
SIGMA = 0.5  # contraction of the Hermite polynomials (HiCache, arXiv:2508.16984)
# A fit whose weights add up to more than this in absolute value amplifies noise; the line is used instead.
_MAX_WEIGHT = 8.0
# Numbers of each snapshot that are multiplied at a time in float64, so that no float64 copy of a snapshot is made.
_CHUNK = 2**18


def scaled_hermite(order: int, x: float, sigma: float) -> float:
    """`sigma^n H_n(sigma x)` with the physicists' Hermite polynomials (HiCache, https://huggingface.co/papers/2508.16984)."""
    previous, current = 0.0, 1.0
    for n in range(order):
        previous, current = current, 2 * sigma * x * current - 2 * n * previous
    return sigma**order * current


def fit_dmd(gram: torch.Tensor, eps: float) -> Optional[Tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """
    Dynamic Mode Decomposition of the differences `d_j = y_{j+1} - y_j` of one item's evenly spaced snapshots.

    Only the snapshots' inner products are needed (method of snapshots). With `X = [d_1 .. d_{m-1}] = U S Q^T` and
    `X' = [d_2 .. d_m]` the operator `U^T X' Q S^-1` advances a difference by one spacing.

    Args:
        gram (`torch.Tensor`): `[n, n]`, float64, on the CPU.
        eps (`float`): Relative rounding error of the snapshots; differences below it are noise.

    Returns:
        The poles `[r]`, the modes as combinations of the snapshots `[n, r]`, and the amplitudes `[r]` of the newest
        difference; `None` if the snapshots do not differ or are not finite.
    """
    difference = torch.diff(torch.eye(len(gram), dtype=gram.dtype), dim=0)
    inner = difference @ gram @ difference.T
    if not torch.isfinite(inner).all() or inner[-1, -1] <= 0:
        return None
    square, q = torch.linalg.eigh(inner[:-1, :-1])
    singular = square.clamp_min(0).sqrt()
    keep = singular > eps * gram.diagonal().max().sqrt()
    if not keep.any():
        return None
    to_snapshots = q[:, keep] / singular[keep]  # Q S^-1
    poles, vectors = torch.linalg.eig(to_snapshots.T @ inner[:-1, 1:] @ to_snapshots)
    newest = (to_snapshots.T @ inner[:-1, -1]).to(poles.dtype)
    amplitudes = torch.linalg.lstsq(vectors, newest[:, None]).solution[:, 0]
    modes = difference[:-1].T.to(poles.dtype) @ to_snapshots.to(poles.dtype) @ vectors
    # A pole outside of the unit circle would grow without bound, one left of the axis has no real fractional power.
    poles = poles / poles.abs().clamp_min(1)
    kept = poles.real > 0
    return poles[kept], modes[:, kept], amplitudes[kept]


def dmd_weights(fit: Tuple[torch.Tensor, torch.Tensor, torch.Tensor], horizon: float) -> torch.Tensor:
    """
    Weights `[n]` of the snapshots, `horizon` spacings behind the newest one. They sum to 1.

    `y(h) = y_n + sum_r modes_r b_r (lambda_r + .. + lambda_r^h)`, with the geometric sum continued to fractions. Exact
    on a constant plus exponentials, and on a straight line (a pole at 1).
    """
    poles, modes, amplitudes = fit
    at_one = (poles - 1).abs() < 1e-9
    ratio = torch.where(at_one, 2 * torch.ones_like(poles), poles)
    advance = torch.where(at_one, horizon * torch.ones_like(poles), ratio * (ratio**horizon - 1) / (ratio - 1))
    weights = (modes @ (amplitudes * advance)).real
    weights[-1] += 1
    return weights


class SnapshotWindow:
    """
    The features of the newest full steps, the steps they belong to and, for each item of the batch, their inner products.

    A forecast is fitted once, when it is first asked for after a snapshot, and never mixes the items of a batch.
    """

    def __init__(self, size: int = 6):
        self.size = size
        self.steps: List[int] = []
        self.snapshots: List[torch.Tensor] = []
        self.gram: Optional[torch.Tensor] = None
        self.fits: Optional[List] = None

    def append(self, step: int, output: torch.Tensor) -> None:
        snapshot = output.detach().clone()  # ClusCa writes fresh tokens into the feature it keeps
        if self.snapshots and self.snapshots[-1].shape != snapshot.shape:
            self.steps, self.snapshots, self.gram = [], [], None
        self.steps = (self.steps + [step])[-self.size :]
        self.snapshots = (self.snapshots + [snapshot])[-self.size :]
        n, row = len(self.snapshots), self._products().cpu()
        gram = row.new_zeros(len(row), n, n)
        if n > 1:
            gram[:, :-1, :-1] = self.gram[:, 1 - n :, 1 - n :]
        gram[:, -1] = gram[:, :, -1] = row
        self.gram = gram
        self.fits = None

    def _products(self) -> torch.Tensor:
        """`[batch, n]`, float64: the newest snapshot with each, item by item."""
        flat = [each.reshape(len(each), -1) for each in self.snapshots]
        total = flat[0].new_zeros(len(flat[0]), len(flat), dtype=torch.float64)
        for start in range(0, flat[0].shape[1], _CHUNK):
            block = torch.stack([each[:, start : start + _CHUNK] for each in flat], 1).double()
            total += (block @ block[:, -1:].mT)[..., 0]
        return total

    def evenly_spaced(self) -> int:
        """How many of the newest snapshots are the same number of steps apart."""
        gaps = [b - a for a, b in zip(self.steps, self.steps[1:])]
        count = next((k for k, gap in enumerate(reversed(gaps)) if gap != gaps[-1]), len(gaps))
        return count + 1

    def weights(self, step: int) -> torch.Tensor:
        """`[batch, n]`: DMD where four or more snapshots are evenly spaced, else the line through the last two."""
        n, offset = len(self.snapshots), step - self.steps[-1]
        line = torch.zeros(n, dtype=torch.float64)
        line[-1] = 1
        if n == 1:
            return line.repeat(len(self.gram), 1)
        spacing = self.steps[-1] - self.steps[-2]
        line[-1] += offset / spacing
        line[-2] -= offset / spacing
        even = self.evenly_spaced()
        if even < 4:
            return line.repeat(len(self.gram), 1)
        if self.fits is None:
            self.fits = [fit_dmd(gram[n - even :, n - even :], torch.finfo(self.snapshots[-1].dtype).eps) for gram in self.gram]
        rows = []
        for fit in self.fits:
            weights = line.clone()
            if fit is not None:
                found = dmd_weights(fit, offset / spacing)
                if torch.isfinite(found).all() and found.abs().sum() <= _MAX_WEIGHT:
                    weights = torch.cat((line.new_zeros(n - even), found))
            rows.append(weights)
        return torch.stack(rows)

    def increment(self, distance: int) -> torch.Tensor:
        """What the forecast adds to the newest feature, `distance` steps behind it."""
        newest = self.snapshots[-1]
        weights = self.weights(self.steps[-1] + int(distance))
        weights[:, -1] -= 1
        total = torch.zeros_like(newest, dtype=torch.float32)
        for column, snapshot in zip(weights.to(newest.device, torch.float32).T, self.snapshots):
            total.addcmul_(snapshot, column.view(-1, *[1] * (newest.ndim - 1)))
        return total.to(newest.dtype)


def basis_of(cache_dic: Dict) -> str:
    basis = cache_dic.get('forecast_basis', 'taylor')
    if basis not in BASES:
        raise ValueError(f"forecast_basis must be one of {BASES}, got {basis!r}")
    return basis


def record(cache_dic: Dict, current: Dict, module: Dict, feature: torch.Tensor) -> Dict:
    """
    The entry of a module after a full step: `{0: feature, 1: first difference, ..}`, with the basis for 'hermite' and the
    window of whole features for 'dmd'.
    """
    basis = basis_of(cache_dic)
    if basis == 'dmd':
        window = module.get('window') or SnapshotWindow()
        window.append(current['step'], feature)
        return {0: feature.clone(), 'window': window}
    entry = {0: feature}
    distance = current['activated_steps'][-1] - current['activated_steps'][-2]
    if current['step'] > cache_dic['first_enhance'] - 2:
        for i in range(cache_dic['max_order']):
            if module.get(i) is None:
                break
            entry[i + 1] = (entry[i] - module[i]) / distance
    if basis == 'hermite':
        entry['basis'] = basis
    return entry


def forecast(module: Dict, distance: int) -> torch.Tensor:
    """
    The feature `distance` steps behind its last full step. Order 0 stays in front, since ClusCa replaces tokens of it
    by fresh ones: the basis adds what the feature has moved since.
    """
    if 'window' in module:
        return module[0] + module['window'].increment(distance)
    hermite = module.get('basis') == 'hermite'
    output = module[0]
    for i in range(1, len(module) - hermite):
        power = scaled_hermite(i, distance, SIGMA) if hermite else distance**i
        output = output + module[i] * (power / math.factorial(i))
    return output
