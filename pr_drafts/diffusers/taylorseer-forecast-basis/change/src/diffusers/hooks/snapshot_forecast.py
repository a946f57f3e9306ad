# Copyright 2026 HuggingFace Inc.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Forecasts of a module's output as a weighted sum of earlier outputs, for the bases of `TaylorSeerCacheConfig`."""

import torch


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


def fit_dmd(gram: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
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


def dmd_weights(fit: tuple[torch.Tensor, torch.Tensor, torch.Tensor], horizon: float) -> torch.Tensor:
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
    The newest outputs of a module, the steps they belong to and, for each item of the batch, their inner products.

    A forecast is fitted once, when it is first asked for after a snapshot, and never mixes the items of a batch.
    """

    def __init__(self, size: int, dtype: torch.dtype | None):
        self.size = size
        self.dtype = dtype
        self.steps: list[int] = []
        self.snapshots: list[torch.Tensor] = []
        self.gram: torch.Tensor | None = None
        self.eps = 0.0
        self.fits: list | None = None

    def append(self, step: int, output: torch.Tensor) -> None:
        snapshot = output.detach().to(self.dtype, copy=True)  # the module may reuse the memory of its output
        if self.snapshots and self.snapshots[-1].shape != snapshot.shape:
            self.steps, self.snapshots, self.gram = [], [], None
        self.steps = (self.steps + [step])[-self.size :]
        self.snapshots = (self.snapshots + [snapshot])[-self.size :]
        self.eps = max(torch.finfo(each.dtype).eps for each in (output, snapshot))
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
            return line.expand(len(self.gram), n)
        spacing = self.steps[-1] - self.steps[-2]
        line[-1] += offset / spacing
        line[-2] -= offset / spacing
        even = self.evenly_spaced()
        if even < 4:
            return line.expand(len(self.gram), n)
        if self.fits is None:
            self.fits = [fit_dmd(gram[n - even :, n - even :], self.eps) for gram in self.gram]
        rows = []
        for fit in self.fits:
            weights = line.clone()
            if fit is not None:
                found = dmd_weights(fit, offset / spacing)
                if torch.isfinite(found).all() and found.abs().sum() <= _MAX_WEIGHT:
                    weights = torch.cat((line.new_zeros(n - even), found))
            rows.append(weights)
        return torch.stack(rows)

    def forecast(self, step: int, dtype: torch.dtype) -> torch.Tensor:
        newest = self.snapshots[-1]
        weights = self.weights(step).to(newest.device, torch.float32)
        total = torch.zeros_like(newest, dtype=torch.float32)
        for column, snapshot in zip(weights.T, self.snapshots):
            total.addcmul_(snapshot, column.view(-1, *[1] * (newest.ndim - 1)))
        return total.to(dtype)
