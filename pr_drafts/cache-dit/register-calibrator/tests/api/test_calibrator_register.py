import dataclasses

import pytest
import torch

import cache_dit
from cache_dit import (
  BlockAdapter,
  Calibrator,
  CalibratorBase,
  CalibratorConfig,
  DBCacheConfig,
  ForwardPattern,
)

STEPS, WARMUP, DIM = 8, 4, 16


@dataclasses.dataclass
class ReuseCalibratorConfig(CalibratorConfig):
  """Config of a calibrator that is not part of cache-dit."""

  enable_calibrator: bool = True
  calibrator_type: str = "test_reuse"
  scale: float = 1.0

  def strify(self, **kwargs) -> str:
    return "Reuse"

  def to_kwargs(self):
    return {"scale": self.scale}


class ReuseCalibrator(CalibratorBase):
  """Serves the newest value times a factor."""

  def __init__(self, scale):
    self.scale, self.values, self.served = scale, {}, 0

  def reset_cache(self):
    self.values.clear()

  def mark_step_begin(self):
    pass

  def update(self, Y, name="default"):
    self.values[name] = Y.detach().clone()

  def approximate(self, name="default"):
    self.served += 1
    return self.values[name] * self.scale


@pytest.fixture
def registered():
  Calibrator.register("test_reuse")(ReuseCalibrator)
  yield
  del Calibrator._registered["test_reuse"]


class Block(torch.nn.Module):

  def __init__(self):
    super().__init__()
    self.linear = torch.nn.Linear(DIM, DIM)

  def forward(self, hidden_states, *args, **kwargs):
    return hidden_states + torch.tanh(self.linear(hidden_states))


class Transformer(torch.nn.Module):

  def __init__(self):
    super().__init__()
    torch.manual_seed(0)
    self.transformer_blocks = torch.nn.ModuleList([Block() for _ in range(4)])

  def forward(self, hidden_states):
    for block in self.transformer_blocks:
      hidden_states = block(hidden_states)
    return hidden_states


@torch.no_grad()
def generate(calibrator_config):
  """One generation of a cached transformer; the sample and the calibrator that served it."""
  transformer = Transformer()
  adapter = cache_dit.enable_cache(
    BlockAdapter(
      transformer=transformer,
      blocks=transformer.transformer_blocks,
      forward_pattern=ForwardPattern.Pattern_3,
    ),
    cache_config=DBCacheConfig(
      Fn_compute_blocks=1,
      Bn_compute_blocks=0,
      num_inference_steps=STEPS,
      max_warmup_steps=WARMUP,
      steps_computation_mask=[1] * WARMUP + [0, 1] * (STEPS // 4),
      steps_computation_policy="static",
    ),
    calibrator_config=calibrator_config,
  )
  x = torch.randn(1, 8, DIM, generator=torch.Generator().manual_seed(1))
  for _ in range(STEPS):
    x = x - 0.05 * transformer(x)
  calibrator = transformer._context_manager.current_context.calibrator
  cache_dit.disable_cache(adapter)
  return x, calibrator


def test_registered_calibrator_is_selected_by_its_config(registered):
  calibrator = Calibrator(ReuseCalibratorConfig(scale=0.5))
  assert isinstance(calibrator, ReuseCalibrator) and calibrator.scale == 0.5


def test_registered_calibrator_serves_a_generation(registered):
  sample, calibrator = generate(ReuseCalibratorConfig())
  assert isinstance(calibrator, ReuseCalibrator) and calibrator.served == STEPS // 4
  reuse, none = generate(None)
  assert none is None
  torch.testing.assert_close(sample, reuse)
  other, _ = generate(ReuseCalibratorConfig(scale=0.5))
  assert not torch.allclose(other, reuse)


@pytest.mark.parametrize("name", ["taylorseer", "dmd", "foca"])
def test_names_of_built_in_calibrators_cannot_be_taken(name):
  with pytest.raises(ValueError, match="built in"):
    Calibrator.register(name)


def test_unknown_calibrator_is_refused_as_before():
  with pytest.raises(AssertionError, match="not supported"):
    Calibrator(CalibratorConfig(calibrator_type="unknown"))
