import pytest
import torch

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig

STEPS, WARMUP, DIM = 10, 4, 16
CACHED_STEPS = (STEPS - WARMUP) // 2


class Block(torch.nn.Module):

  def __init__(self):
    super().__init__()
    self.linear = torch.nn.Linear(DIM, DIM)

  def forward(self, hidden_states, *args, **kwargs):
    return hidden_states + torch.tanh(self.linear(hidden_states))


class Transformer(torch.nn.Module):

  def __init__(self, num_blocks=4):
    super().__init__()
    torch.manual_seed(0)
    self.transformer_blocks = torch.nn.ModuleList([Block() for _ in range(num_blocks)])

  def forward(self, hidden_states):
    for block in self.transformer_blocks:
      hidden_states = block(hidden_states)
    return hidden_states


def make_config(separate_cfg):
  return DBCacheConfig(
    Fn_compute_blocks=1,
    Bn_compute_blocks=0,
    num_inference_steps=STEPS,
    max_warmup_steps=WARMUP,
    enable_separate_cfg=separate_cfg,
    steps_computation_mask=[1] * WARMUP + [0, 1] * CACHED_STEPS,
    steps_computation_policy="static",
  )


@torch.no_grad()
def generate(transformer, separate_cfg):
  """One generation of `STEPS` steps from fixed noise."""
  x = torch.randn(1, 8, DIM, generator=torch.Generator().manual_seed(1))
  for _ in range(STEPS):
    velocity = transformer(x)
    if separate_cfg:
      uncond = transformer(x + 1.0)
      velocity = uncond + 2.0 * (velocity - uncond)
    x = x - 0.05 * velocity
  return x


@pytest.fixture(params=[False, True], ids=["one_call", "separate_cfg"])
def separate_cfg(request):
  return request.param


@pytest.fixture
def transformer(separate_cfg):
  """A cached transformer in transformer-only mode."""
  transformer = Transformer()
  adapter = cache_dit.enable_cache(
    BlockAdapter(
      transformer=transformer,
      blocks=transformer.transformer_blocks,
      forward_pattern=ForwardPattern.Pattern_3,
    ),
    cache_config=make_config(separate_cfg),
    calibrator_config=TaylorSeerCalibratorConfig(),
  )
  yield transformer
  cache_dit.disable_cache(adapter)


def test_second_generation_equals_the_first(transformer, separate_cfg):
  first = generate(transformer, separate_cfg)
  for _ in range(3):
    assert torch.equal(generate(transformer, separate_cfg), first)


def test_explicit_refresh_equals_the_implicit_one(transformer, separate_cfg):
  first = generate(transformer, separate_cfg)
  cache_dit.refresh_context(
    transformer,
    cache_config=make_config(separate_cfg),
    calibrator_config=TaylorSeerCalibratorConfig(),
  )
  assert torch.equal(generate(transformer, separate_cfg), first)


def test_every_generation_counts_all_of_its_calls(transformer, separate_cfg):
  for _ in range(3):
    generate(transformer, separate_cfg)
    context = transformer._context_manager.current_context
    assert context.transformer_executed_steps == STEPS * (2 if separate_cfg else 1)


def test_stats_of_a_generation_stay_until_the_next(transformer, separate_cfg):
  for _ in range(2):
    generate(transformer, separate_cfg)
    stats = cache_dit.summary(transformer, logging=False)[-1]
    assert len(stats.cached_steps) == CACHED_STEPS
    assert len(stats.cfg_cached_steps) == (CACHED_STEPS if separate_cfg else 0)
