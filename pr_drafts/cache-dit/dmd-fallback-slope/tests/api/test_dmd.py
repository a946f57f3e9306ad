import math

import pytest
import torch

import cache_dit
from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator, TaylorSeerCalibrator

# 1: computed step, 0: skipped step
MASKS = {
  "scm_medium": cache_dit.steps_mask(total_steps=28, mask_policy="medium"),
  "scm_fast": cache_dit.steps_mask(total_steps=28, mask_policy="fast"),
  "every_4th": [1, 1, 1] + [0, 0, 0, 1] * 6,
}
# The ladder needs a few computed steps: earlier forecasts are plain reuse in both calibrators.
FIRST_CHECKED_STEP = 7


def smooth(t, shape=(2, 64)):
  """A slow decay, one damped oscillation and a fast decay."""
  g = torch.Generator().manual_seed(0)
  a, b, c, d = (torch.randn(*shape, generator=g) for _ in range(4))
  damped = 0.5 * 0.93 ** t
  return (a * 0.97 ** t + b * damped * math.cos(0.35 * t) + c * damped * math.sin(0.35 * t) +
          d * 0.2 * 0.8 ** t)


def line(t, shape=(2, 64)):
  g = torch.Generator().manual_seed(0)
  a, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
  return a + b * t


def is_fallback(dmd):
  """Whether the current step is served by the Taylor fallback of the DMD calibrator."""
  vels, _ = dmd.states["default"]._uniform_tail()
  return len(vels) < 4


def forecasts(calibrator, mask, truth, only=lambda calibrator: True):
  """Forecast of every skipped step for which `only` holds, by step."""
  served = {}
  for t, compute in enumerate(mask):
    calibrator.mark_step_begin()
    if compute:
      calibrator.update(truth(t))
    elif t >= FIRST_CHECKED_STEP and only(calibrator):
      served[t] = calibrator.approximate()
  return served


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_dmd_fallback_is_exact_on_a_line(mask):
  served = forecasts(DMDCalibrator(), mask, line, only=is_fallback)
  assert len(served) >= 6
  for t, forecast in served.items():
    torch.testing.assert_close(forecast, line(t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_dmd_fallback_equals_taylorseer(mask, order):
  taylor = forecasts(TaylorSeerCalibrator(n_derivatives=order), mask, smooth)
  served = forecasts(DMDCalibrator(n_derivatives=order), mask, smooth, only=is_fallback)
  assert len(served) >= 6
  for t, forecast in served.items():
    torch.testing.assert_close(forecast, taylor[t])


def test_dmd_is_exact_on_exponentials():
  mask = [1] * 6 + [0] * 4
  dmd = DMDCalibrator()
  for t, forecast in forecasts(dmd, mask, smooth).items():
    assert not is_fallback(dmd)
    torch.testing.assert_close(forecast, smooth(t), rtol=0, atol=1e-3)


def test_dmd_starts_over_on_a_new_shape():
  dmd = DMDCalibrator()
  for t in range(6):
    dmd.mark_step_begin()
    dmd.update(smooth(t))
  dmd.mark_step_begin()
  new = smooth(6, shape=(3, 32))
  dmd.update(new)
  dmd.mark_step_begin()
  torch.testing.assert_close(dmd.approximate(), new)
