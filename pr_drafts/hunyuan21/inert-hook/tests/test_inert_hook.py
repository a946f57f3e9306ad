"""The hook of the flow-matching pipeline: with nothing attached a plain Euler loop, otherwise asked at every step.

Loop and scheduler are the repository's own files. Encoder, decoder and export are left out, the network is a small
function, and packages that the loop does not need are stood in for by empty modules.
"""

import contextlib
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch


PACKAGE = "hy3dshape"    # below FOLDER
FOLDER = Path(__file__).parents[1] / "hy3dshape"
STEPS, GUIDANCE = 12, 3.0


class Empty(types.ModuleType):
    """Every name is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def timer(name):
    yield


def load(folder):
    """Pipeline and scheduler from the package below `folder`, under a name of their own."""
    name = f"tree{sum(module.startswith('tree') for module in sys.modules)}"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(folder, PACKAGE))]
    sys.modules[name] = package
    for part in ("models", "models.autoencoders", "utils"):
        sys.modules[f"{name}.{part}"] = Empty(f"{name}.{part}")
    sys.modules[f"{name}.utils"].synchronize_timer = timer
    for needless in ("trimesh", "yaml"):
        if importlib.util.find_spec(needless) is None:
            sys.modules[needless] = Empty(needless)
    loop = importlib.import_module(f"{name}.pipelines").Hunyuan3DDiTFlowMatchingPipeline
    scheduler = importlib.import_module(f"{name}.schedulers").FlowMatchEulerDiscreteScheduler
    return types.SimpleNamespace(pipeline=small(loop), scheduler=scheduler)


def small(loop):
    class Small(loop):
        def __init__(self, scheduler):
            self.scheduler, self.model, self.calls = scheduler, self.network, []
            self.device, self.dtype = torch.device("cpu"), torch.float32

        def network(self, x, t, cond, guidance=None):
            self.calls.append(float(t[0]))
            return torch.tanh(1.7 * x.roll(1, -1) - x) * (1 + t[:, None, None]) + cond

        def set_surface_extractor(self, mc_algo):
            pass

        def prepare_image(self, image, mask=None):
            return {"image": image}

        def encode_cond(self, image, do_classifier_free_guidance, **unused):
            return torch.cat([image, 0 * image]) if do_classifier_free_guidance else image

        def prepare_latents(self, batch_size, dtype, device, generator):
            return torch.randn(batch_size, 6, 4, generator=generator)

        def _export(self, latents, *unused, **also_unused):
            return latents

    return Small


def sample(tree, seed=0, hook=None, guidance=GUIDANCE, **options):
    pipe = tree.pipeline(tree.scheduler())
    if hook is not None:
        pipe.forecache = hook
    names = set(vars(pipe))
    latents = pipe(
        image=torch.linspace(-1, 1, 8).reshape(2, 1, 4), num_inference_steps=STEPS, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed), enable_pbar=False, **options,
    )    # fmt: skip
    assert set(vars(pipe)) == names, "a run leaves nothing on the pipeline"
    sample.calls = len(pipe.calls)
    return latents


def plain(tree, seed=0, guidance=GUIDANCE, every=1):
    """Euler with guidance in our own words; every `every`-th step computes, the others repeat its velocity."""
    pipe, scheduler = tree.pipeline(tree.scheduler()), tree.scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(0, 1, STEPS), device="cpu")
    cond = pipe.encode_cond(torch.linspace(-1, 1, 8).reshape(2, 1, 4), guidance >= 0)
    x = pipe.prepare_latents(2, None, None, torch.Generator().manual_seed(seed))
    for i, t in enumerate(scheduler.timesteps):
        if i % every == 0:
            both = torch.cat([x, x]) if guidance >= 0 else x
            v = pipe.network(both, t.expand(len(both)) / scheduler.config.num_train_timesteps, cond)
            if guidance >= 0:
                v = v[2:] + guidance * (v[:2] - v[2:])
        x = scheduler.step(v, t, x).prev_sample
    return x


class Hook:
    """Computes every `every`-th step and repeats its velocity on the others."""

    def __init__(self, every=1):
        self.every, self.asked, self.seen, self.begun = every, [], [], []

    def begin(self, scheduler, guidance):
        self.begun.append((len(scheduler.timesteps), guidance))
        return self

    def needs_compute(self, i):
        self.asked.append(i)
        return i % self.every == 0

    def observe(self, i, velocity, x):
        self.seen.append((i, tuple(velocity.shape)))
        self.newest = velocity
        return velocity

    def forecast(self, i, x):
        guidance = self.begun[-1][1]    # `observe` sees the output before guidance, the scheduler takes it after
        return self.newest[2:] + guidance * (self.newest[:2] - self.newest[2:])


@pytest.fixture(scope="module")
def tree():
    return load(FOLDER)


def test_with_nothing_attached_it_is_the_plain_loop(tree):
    for seed, guidance in ((0, GUIDANCE), (1, GUIDANCE), (0, -1.0)):
        assert torch.equal(sample(tree, seed, guidance=guidance), plain(tree, seed, guidance))
        assert sample.calls == STEPS
    assert not torch.equal(sample(tree, 0), sample(tree, 1))


def test_nothing_is_attached_by_default(tree):
    assert tree.pipeline.forecache is None


def test_what_is_attached_is_asked_at_every_step(tree):
    for guidance, told, batch in ((GUIDANCE, GUIDANCE, 4), (-1.0, None, 2)):
        hook = Hook()
        assert torch.equal(sample(tree, hook=hook, guidance=guidance), sample(tree, guidance=guidance))
        assert hook.begun == [(STEPS, told)] and hook.asked == list(range(STEPS))
        assert hook.seen == [(i, (batch, 6, 4)) for i in range(STEPS)]


def test_served_steps_do_not_call_the_network(tree):
    ticks = []
    served = sample(tree, hook=Hook(3), callback=lambda i, t, out: ticks.append(i), callback_steps=1)
    assert sample.calls == STEPS // 3 and ticks == list(range(STEPS))
    assert torch.equal(served, plain(tree, every=3))
    assert not torch.equal(served, plain(tree))
