"""The hook of the Euler sampler: with nothing attached a plain loop, otherwise asked at every run, step and branch.

The sampler is the repository's own file; the network is a small function, and no package is needed but easydict.
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch


PACKAGE = "trellis"    # below FOLDER
FOLDER = Path(__file__).parents[1]
STEPS, RESCALE, STRENGTH, INTERVAL = 12, 3.0, 5.0, (0.5, 1.0)
COND, NEGATIVE = torch.linspace(-1, 1, 4).reshape(1, 1, 4), torch.zeros(1, 1, 4)


def load(folder):
    """The sampler from the package below `folder`, under a name of its own."""
    name = f"tree{sum(module.startswith('tree') for module in sys.modules)}"
    for package, place in ((name, ""), (f"{name}.pipelines", "pipelines")):    # not what their __init__ imports
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(Path(folder, PACKAGE, place))]
    return importlib.import_module(f"{name}.pipelines.samplers").FlowEulerGuidanceIntervalSampler


def network(x, t, cond):
    network.calls += 1
    return torch.tanh(1.7 * x.roll(1, -1) - x) * (1 + t[:, None, None] / 1000) + cond


def noise(seed):
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed))


def sample(sampler, seed=0, hook=None):
    made = sampler(1e-5)
    if hook is not None:
        made.forecache = hook
    network.calls = 0
    cond, negative = (each.expand(2, 1, 4).clone() for each in (COND, NEGATIVE))
    return made.sample(
        network, noise(seed), cond, neg_cond=negative, steps=STEPS, rescale_t=RESCALE, cfg_strength=STRENGTH,
        cfg_interval=INTERVAL, verbose=False,
    ).samples    # fmt: skip


def guide(cond, negative):
    return (1 + STRENGTH) * cond - STRENGTH * negative


def grid():
    times = np.linspace(1, 0, STEPS + 1)
    return list(RESCALE * times / (1 + (RESCALE - 1) * times))


def plain(seed=0, every=1):
    """Euler with guidance in an interval, in our own words; on others than every `every`-th step branches repeat."""
    x, times, kept = noise(seed), grid(), {}

    def branch(i, name, cond):
        if i % every == 0 or name not in kept:
            kept[name] = network(x, torch.tensor([1000 * times[i]] * 2, dtype=torch.float32), cond)
        return kept[name]

    for i, (t, after) in enumerate(zip(times, times[1:])):
        v = branch(i, "cond", COND)
        if INTERVAL[0] <= t <= INTERVAL[1]:
            v = guide(v, branch(i, "negative", NEGATIVE))
        x = x - (t - after) * v
    return x


class Hook:
    """Computes a branch on every `every`-th step, and repeats what it gave on the others."""

    def __init__(self, every=1):
        self.every, self.events, self.kept, self.i = every, [], {}, -1

    def run(self, call, *args, **kwargs):
        self.events.append("run")
        return call(*args, **kwargs)

    def begin(self, pairs):
        self.pairs = pairs

    def step(self, call, *args, **kwargs):
        self.i += 1
        self.events.append("step")
        return call(*args, **kwargs)

    def branch(self, call, model, x, t, cond=None, **kwargs):
        self.events.append("branch")
        name = float(cond.abs().sum())
        if self.i % self.every == 0 or name not in self.kept:
            self.kept[name] = call(model, x, t, cond, **kwargs)
        return self.kept[name]


@pytest.fixture(scope="module")
def sampler():
    return load(FOLDER)


def test_with_nothing_attached_it_is_the_plain_loop(sampler):
    guided = sum(INTERVAL[0] <= t <= INTERVAL[1] for t in grid()[:-1])
    for seed in (0, 1):
        assert torch.equal(sample(sampler, seed), plain(seed))
    sample(sampler)
    assert network.calls == STEPS + guided and 0 < guided < STEPS
    assert not torch.equal(sample(sampler, 0), sample(sampler, 1))


def test_nothing_is_attached_by_default(sampler):
    assert sampler.forecache is None


def test_what_is_attached_is_asked_at_every_step_and_branch(sampler):
    hook = Hook()
    assert torch.equal(sample(sampler, hook=hook), sample(sampler))
    assert hook.events.count("run") == 1 and hook.events.count("step") == STEPS
    assert hook.events.count("branch") == network.calls > STEPS
    assert [pair[0] for pair in hook.pairs] == grid()[:-1] and [pair[1] for pair in hook.pairs] == grid()[1:]


def test_served_steps_do_not_call_the_network(sampler):
    served = sample(sampler, hook=Hook(3))
    guided = sum(INTERVAL[0] <= t <= INTERVAL[1] for t in grid()[:-1][::3])
    assert network.calls == STEPS // 3 + guided
    assert torch.equal(served, plain(every=3))
    assert not torch.equal(served, plain())
