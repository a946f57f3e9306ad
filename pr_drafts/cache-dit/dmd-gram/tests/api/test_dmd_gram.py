import math

import pytest
import torch

from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator, TaylorSeerCalibrator

EVEN = [1] * 6 + [0, 0, 0, 1] * 6
UNEVEN = [1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def smooth(t, shape=(2, 256), dtype=torch.float64):
  """A slow decay, one damped oscillation and a fast decay: 4 well separated modes."""
  g = torch.Generator().manual_seed(0)
  a, b, c, d = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(4))
  damped = 0.8 * 0.93 ** t
  y = (a * 0.97 ** t + b * damped * math.cos(0.9 * t) + c * damped * math.sin(0.9 * t) +
       d * 0.9 * 0.7 ** t)
  return y.to(dtype)


def slow(t):
  """As smooth, with the slow oscillation of a denoising trajectory."""
  g = torch.Generator().manual_seed(0)
  a, b, c = (torch.randn(2, 256, generator=g, dtype=torch.float64) for _ in range(3))
  damped = 0.5 * 0.93 ** t
  return a * 0.97 ** t + b * damped * math.cos(0.35 * t) + c * damped * math.sin(0.35 * t)


def forecasts(calibrator, mask, truth, start=7):
  """Forecast of every skipped step from `start` on, by step."""
  served = {}
  for t, compute in enumerate(mask):
    calibrator.mark_step_begin()
    if compute:
      calibrator.update(truth(t))
    elif t >= start:
      served[t] = calibrator.approximate()
  return served


def mean_error(calibrator, mask, truth):
  served = forecasts(calibrator, mask, truth)
  errors = [float((y - truth(t)).norm() / truth(0).norm()) for t, y in served.items()]
  return sum(errors) / len(errors)


def svd_forecast(snapshots, k, cut=1e-4):
  """DMD of one item as published, from the SVD of the snapshot matrix."""
  traj = torch.stack(snapshots, dim=1)
  U, S, Vh = torch.linalg.svd(traj[:, :-1], full_matrices=False)
  r = int((S > S[0] * cut).sum())
  lift = traj[:, 1:] @ Vh[:r].T / S[:r]
  evals, W = torch.linalg.eig(U[:, :r].T @ lift)
  modes = lift.to(W.dtype) @ W
  b = torch.linalg.lstsq(modes, traj[:, -1:].to(W.dtype)).solution[:, 0]
  return (modes @ (evals.pow(k) * b)).real


def held_bytes(obj, seen):
  """Bytes of all tensors that are reachable from `obj`, each storage once."""
  if isinstance(obj, torch.Tensor):
    storage = obj.untyped_storage()
    known = storage.data_ptr() in seen
    seen.add(storage.data_ptr())
    return 0 if known else storage.nbytes()
  if isinstance(obj, dict):
    return sum(held_bytes(value, seen) for value in obj.values())
  if isinstance(obj, (list, tuple)):
    return sum(held_bytes(value, seen) for value in obj)
  return held_bytes(vars(obj), seen) if hasattr(obj, "__dict__") else 0


@pytest.mark.parametrize("skip", [1, 2, 3, 4])
def test_dmd_equals_the_svd_fit(skip):
  served = forecasts(DMDCalibrator(), [1] * 6 + [0] * 4, smooth, start=6)
  y = served[5 + skip]
  for item in range(2):
    reference = svd_forecast([smooth(t)[item] for t in range(6)], float(skip))
    assert (y[item] - reference).norm() <= 1e-6 * reference.norm()


def test_dmd_forecasts_from_uneven_steps():
  taylor = mean_error(TaylorSeerCalibrator(n_derivatives=1), UNEVEN, slow)
  assert mean_error(DMDCalibrator(), UNEVEN, slow) < taylor / 3


def test_dmd_is_exact_on_a_line_from_uneven_steps():
  line = lambda t: slow(0) + slow(1) * t  # noqa: E731
  for t, y in forecasts(DMDCalibrator(), UNEVEN, line).items():
    torch.testing.assert_close(y, line(t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_dmd_short_history_equals_taylorseer(order):
  taylor = forecasts(TaylorSeerCalibrator(n_derivatives=order), UNEVEN, slow, start=4)
  for t, y in forecasts(DMDCalibrator(history=3, n_derivatives=order), UNEVEN, slow, 4).items():
    torch.testing.assert_close(y, taylor[t])


def test_dmd_keeps_nothing_but_its_snapshots():
  dmd = DMDCalibrator(history=6)
  served = forecasts(dmd, EVEN, lambda t: smooth(t, shape=(1, 1 << 16), dtype=torch.float32))
  assert len(served) == 17
  snapshots = 6 * (1 << 16) * 4
  assert snapshots <= held_bytes(dmd.states, set()) < 1.01 * snapshots


def test_dmd_keeps_no_live_tensor():
  dmd = DMDCalibrator()
  for t in range(3):
    dmd.mark_step_begin()
    y = smooth(t)
    dmd.update(y)
  dmd.mark_step_begin()
  before = dmd.approximate()
  y.zero_()
  torch.testing.assert_close(dmd.approximate(), before)


def test_dmd_fits_once_per_window(monkeypatch):
  calls, eig = [], torch.linalg.eig
  monkeypatch.setattr(torch.linalg, "eig", lambda A: calls.append(1) or eig(A))
  dmd = DMDCalibrator()
  forecasts(dmd, [1] * 6 + [0] * 8, smooth)
  assert len(calls) == 2  # one per batch item


@pytest.mark.parametrize("mask", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_dmd_batch_items_are_independent(mask):
  both = forecasts(DMDCalibrator(), mask, smooth)
  alone = forecasts(DMDCalibrator(), mask, lambda t: smooth(t)[:1])
  for t, y in alone.items():
    torch.testing.assert_close(both[t][:1], y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dmd_keeps_dtype_and_shape(dtype):
  truth = lambda t: smooth(t, shape=(2, 4, 8), dtype=dtype)  # noqa: E731
  for y in forecasts(DMDCalibrator(), EVEN, truth).values():
    assert y.dtype == dtype and y.shape == (2, 4, 8)


def test_dmd_reuses_the_newest_snapshot_when_the_fit_is_degenerate():
  dmd = DMDCalibrator()
  for y in forecasts(dmd, EVEN, lambda t: torch.zeros(2, 8)).values():
    assert torch.equal(y, torch.zeros(2, 8))
