# Forecasts as weighted sums of snapshots, with the weights computed from the Gram matrix of the
# snapshots: all large tensors are touched once when a snapshot arrives (its dot products with the
# window) and once when a forecast is served (the weighted sum). Everything else is arithmetic on
# n x n numbers, n <= 6 by default.
import math
from typing import List, Optional, Sequence, Tuple

import torch

# (modes, eigenvalues, amplitudes); modes as combinations of the snapshots, shape [n, r].
DMDFit = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]

SPECTRUM_CUT = 1e-4  # singular values below this part of the largest are noise
DIFFERENCE_CUT = 1e-1  # as above for differences of resampled snapshots: they amplify noise
_PRODUCT_FLOOR = 1e-8  # float64 products carry no direction below this part of the largest


def gram_row(snapshots: Sequence[torch.Tensor], items: int) -> torch.Tensor:
  """Dot products of the newest snapshot with every snapshot, per batch item.

  The products are formed and summed in float64: what matters are small differences between large
  entries. Chunks bound the memory of the float64 copies.

  :param snapshots: Same-shape tensors, oldest first.
  :param items: Number of independent batch items along axis 0.
  :returns: A float64 tensor of shape ``[items, n]``.
  """

  flat = [s.reshape(items, -1) for s in snapshots]
  chunk = 1 << (15 if flat[0].device.type == "cpu" else 20)
  row = torch.zeros(items, len(flat), dtype=torch.float64, device=flat[0].device)
  for start in range(0, flat[0].shape[1], chunk):
    block = torch.stack([f[:, start:start + chunk] for f in flat], dim=1).double()
    row += (block @ block[:, -1:].mT).squeeze(-1)
  return row


def grow_gram(gram: Optional[torch.Tensor], row: torch.Tensor) -> torch.Tensor:
  """Gram matrix of the window after a snapshot arrived, without the products of evicted ones.

  :param gram: Matrix before, ``[items, m, m]``, or ``None`` for the first snapshot.
  :param row: Result of :func:`gram_row` for the new window of n snapshots.
  :returns: Matrix of shape ``[items, n, n]``.
  """

  items, n = row.shape
  grown = row.new_zeros(items, n, n)
  if n > 1:
    grown[:, :-1, :-1] = gram[:, 1 - n:, 1 - n:]
  grown[:, -1] = row
  grown[:, :, -1] = row
  return grown


def dmd_fit(
  gram: torch.Tensor,
  rank: int = 0,
  ridge: float = 1e-8,
  cut: float = SPECTRUM_CUT,
) -> Optional[DMDFit]:
  """Fit DMD to evenly spaced snapshots from their Gram matrix (the method of snapshots).

  With ``X = [y_1 .. y_{n-1}]``, ``X' = [y_2 .. y_n]`` and ``X^T X = V S^2 V^T``, the projected
  propagator is ``S^-1 V^T (X^T X') V (S + ridge)^-1 = W diag(lambda) W^-1``, the modes are
  ``X' V (S + ridge)^-1 W``, and the amplitudes are the least-squares fit to ``y_n``. ``X^T X`` and
  ``X^T X'`` are blocks of the Gram matrix, so that no mode of feature length is formed.

  :param gram: Gram matrix of one batch item, ``[n, n]``, float64 on the CPU.
  :param rank: Truncation rank; 0 drops modes by ``cut``.
  :param ridge: Tikhonov term added to the inverted singular values.
  :param cut: Smallest singular value kept with ``rank=0``, relative to the leading one.
  :returns: The horizon-free fit, or ``None`` when it is degenerate.
  """

  if not torch.isfinite(gram).all():
    return None
  try:
    squares, V = torch.linalg.eigh(gram[:-1, :-1])
    S, V = squares.flip(0).clamp(min=0).sqrt(), V.flip(1)
    if S[0] == 0:
      return None
    r = rank if rank > 0 else max(int((S > S[0] * cut).sum()), 1)
    r = min(r, int((S > S[0] * _PRODUCT_FLOOR).sum()))
    left, right = V[:, :r] / S[:r], V[:, :r] / (S[:r] + ridge)
    evals, W = torch.linalg.eig(left.T @ gram[:-1, 1:] @ right)
    modes = torch.zeros(len(gram), r, dtype=W.dtype)
    modes[1:] = right.to(W.dtype) @ W
    projected = modes.mH @ gram.to(W.dtype)
    b = torch.linalg.lstsq(projected @ modes, projected[:, -1:], driver="gelsd").solution[:, 0]
  except torch.linalg.LinAlgError:
    return None
  return modes, evals, b


def dmd_weights(fit: DMDFit, k: float) -> torch.Tensor:
  """Weights of the snapshots for the forecast at a (fractional) horizon.

  :param fit: Result of :func:`dmd_fit`.
  :param k: Horizon in snapshot intervals.
  :returns: A float64 tensor of shape ``[n]``.
  """

  modes, evals, b = fit
  return (modes @ (evals.pow(float(k)) * b)).real


def dmd_increment(fit: DMDFit, k: float) -> torch.Tensor:
  """Weights of the differences of successive snapshots for the change over a (fractional) horizon.

  With ``d_{n+h} = sum_i modes_i lambda_i^h b_i``, the differences ahead add up to the factors
  ``lambda (lambda^k - 1) / (lambda - 1)``, or k where ``lambda = 1``.

  :param fit: Result of :func:`dmd_fit` for the differences.
  :param k: Horizon in snapshot intervals.
  :returns: A float64 tensor with one weight per difference.
  """

  modes, evals, b = fit
  still = (evals - 1).abs() < 1e-9
  sums = evals * (evals.pow(float(k)) - 1) / torch.where(still, 1.0, evals - 1)
  return (modes @ (torch.where(still, float(k), sums) * b)).real


def taylor_weights(steps: Sequence[int], target: int, n_derivatives: int) -> torch.Tensor:
  """Weights of the snapshots for the TaylorSeer forecast, at any spacing.

  The divided-difference ladder ``D_{i+1}(n) = (D_i(n) - D_i(n-1)) / (t_n - t_{n-1})`` is linear in
  the snapshots, so it is carried out on their weights and needs no tensor of its own.

  :param steps: Steps of the snapshots, oldest first.
  :param target: Step to forecast.
  :param n_derivatives: Highest order of the expansion.
  :returns: A float64 tensor of shape ``[n]``.
  """

  n = len(steps)
  unit = torch.eye(n, dtype=torch.float64)
  ladder: List[torch.Tensor] = []
  for j in range(n):
    previous, ladder = ladder, [unit[j]]
    # As in TaylorSeer, there is no derivative up to step 1.
    for below in previous[:n_derivatives] if steps[j] > 1 else []:
      ladder.append((ladder[-1] - below) / (steps[j] - steps[j - 1]))
  weights, factor = torch.zeros(n, dtype=torch.float64), 1.0
  for order, derivative in enumerate(ladder):
    factor = factor * (target - steps[-1]) / order if order else 1.0
    weights += factor * derivative
  return weights


def resampling(steps: Sequence[int]) -> Tuple[torch.Tensor, float]:
  """Weights that interpolate unevenly spaced snapshots at as many evenly spaced times.

  Each new snapshot is the Lagrange interpolation of the (at most) four snapshots next to it; oldest
  and newest stay what they are. A fit to the new ones needs no tensor of its own: their Gram matrix
  is ``L G L^T``.

  :param steps: Steps of the snapshots, oldest first, at least two.
  :returns: ``L`` of shape ``[n, n]``, one row per new snapshot, and their spacing in steps.
  """

  n = len(steps)
  spacing = (steps[-1] - steps[0]) / (n - 1)
  L = torch.zeros(n, n, dtype=torch.float64)
  for i in range(n):
    at = steps[0] + i * spacing
    near = sorted(range(n), key=lambda j: abs(steps[j] - at))[:4]
    for j in near:
      L[i, j] = math.prod((at - steps[m]) / (steps[j] - steps[m]) for m in near if m != j)
  return L, spacing


def combine(snapshots: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
  """Weighted sum of the snapshots, each batch item with its own weights.

  :param snapshots: Same-shape tensors, oldest first.
  :param weights: Float64 weights on the CPU, ``[items, n]``.
  :returns: A tensor of the shape and dtype of the snapshots, summed in at least float32.
  """

  newest = snapshots[-1]
  dtype = torch.promote_types(newest.dtype, torch.float32)
  out = torch.zeros(newest.shape, dtype=dtype, device=newest.device)
  rows = out.view(len(weights), -1)
  for snapshot, column in zip(snapshots, weights.T.tolist()):
    for row, value, weight in zip(rows, snapshot.reshape(len(weights), -1), column):
      if weight != 0.0:
        row.add_(value, alpha=weight)
  return out.to(newest.dtype)
