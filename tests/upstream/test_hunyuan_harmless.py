"""Attaching never harms the shape pipelines of Hunyuan3D-2 and 2.1: what cannot be followed switches the cache off."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from forecache_adapters import hunyuan2 as adapter2
from forecache_adapters import hunyuan21 as adapter21
from forecache_adapters.attach import attached
from forecache_lab.generators.reference import TEST_SEED, hunyuan2, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE
from upstream_helpers import relative

STEPS = 12


@pytest.fixture(scope="module", params=["hunyuan2", "hunyuan21"])
def generator(request, checkouts) -> SimpleNamespace:
    """The adapter, the scheduler's class, and ``build()`` of a pipeline that nobody else has."""
    if request.param == "hunyuan2":
        classes = hunyuan2.load(checkouts("hunyuan2-released", patched=True, source="wheel"))
        return SimpleNamespace(adapter=adapter2, Scheduler=classes.Scheduler, build=lambda: hunyuan2.build(classes))
    classes = hunyuan21.load(checkouts("hunyuan21", patched=True))
    made = hunyuan21.build(classes)

    def build() -> Any:
        pipe = copy.copy(made)  # the networks are trained: shared
        pipe.scheduler = classes.Scheduler()
        return pipe

    return SimpleNamespace(adapter=adapter21, Scheduler=classes.Scheduler, build=build)


@pytest.fixture
def adapter(generator):
    return generator.adapter


@pytest.fixture
def pipe(generator):
    return generator.build()


def run(pipe, steps=STEPS, **options):
    picture = solids.picture(solids.solid(TEST_SEED)[1], PICTURE)[None]
    return pipe(
        image=[picture], num_inference_steps=steps, guidance_scale=options.pop("guidance", 3.0), output_type="latent",
        generator=[torch.Generator().manual_seed(0)], enable_pbar=False, **options,
    )  # fmt: skip


@pytest.fixture
def calls(pipe):
    seen: list[int] = []
    hook = pipe.model.register_forward_pre_hook(lambda *unused: seen.append(1))
    yield seen
    hook.remove()


def attach_and_run(adapter, pipe, **options):
    """The latents, and the trace, at an interval that forecasts."""
    with adapter.enabled(pipe, basis="linear", interval=3, warmup=2) as handle:
        return run(pipe, **options), handle.trace


# --- which step it is -------------------------------------------------------------------------------------------------
def test_a_scheduler_that_calls_the_network_twice_switches_the_cache_off(generator, adapter, pipe, calls):
    class HeunScheduler(generator.Scheduler):
        order = 2

    pipe.scheduler = HeunScheduler()
    reference = run(pipe)
    calls.clear()
    with pytest.warns(UserWarning, match="HeunScheduler calls the network 2 times a step"):
        latent, trace = attach_and_run(adapter, pipe)
    assert torch.equal(latent, reference) and len(calls) == STEPS
    assert trace.notes == ["off: scheduler: HeunScheduler calls the network 2 times a step"]


NO_GRID = f"has no grid of one sigma more than its {STEPS} timesteps"


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("stands still", "off: step 1 of the loop, but step None by the scheduler's own count"),
        ("is ahead", "off: step 0 of the loop, but step 7 by the scheduler's own count"),
        ("has no grid", NO_GRID),
        ("has another grid", NO_GRID),
    ],
)
def test_a_scheduler_whose_steps_cannot_be_told(generator, adapter, pipe, calls, fault, note):
    class Odd(generator.Scheduler):
        @property
        def step_index(self):
            return {"stands still": None, "is ahead": 7}.get(fault, self._step_index)

        def step(self, velocity, t, x):
            if self._step_index is None:
                self._init_step_index(t)
            moved = x + (self.grid[self._step_index + 1] - self.grid[self._step_index]) * velocity
            self._step_index += 1
            return SimpleNamespace(prev_sample=moved)

        def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None):
            super().set_timesteps(num_inference_steps, device, sigmas)
            self.grid = self.sigmas
            if fault == "has no grid":
                del self.sigmas
            elif fault == "has another grid":
                self.sigmas = self.sigmas[::2]

    pipe.scheduler = Odd()
    reference = run(pipe)
    calls.clear()
    with pytest.warns(UserWarning, match="forecache is off"):
        latent, trace = attach_and_run(adapter, pipe)
    assert torch.equal(latent, reference) and len(calls) == STEPS
    assert len(trace.notes) == 1 and note in trace.notes[0]


def test_a_still_step_is_computed_where_the_scheduler_may_read_it(generator, adapter, pipe, calls):
    class Corrector(generator.Scheduler):
        """Puts a share of the newest velocity on the sample, whether time moves or not."""

        def step(self, velocity, t, x):
            outputs = super().step(velocity, t, x)
            outputs.prev_sample = outputs.prev_sample + 0.1 * velocity
            return outputs

    pipe.scheduler = Corrector()
    reference = run(pipe)
    calls.clear()
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(run(pipe), reference)
    assert len(calls) == STEPS
    pipe.scheduler = type("Renamed", (generator.Scheduler,), {})()
    calls.clear()
    with adapter.enabled(pipe, interval=1):
        run(pipe)
    assert len(calls) == STEPS - 1, "control: the upstream's own step reads no velocity where time stands still"


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"steps": 1}, {"steps": 2}, {"sigmas": np.zeros(STEPS)}, {"sigmas": np.full(STEPS, np.nan)},
        {"sigmas": np.r_[np.linspace(0, 1, 6), np.linspace(1, 0, 6)]}, {"sigmas": np.linspace(0, 1, STEPS)[::2].copy()},
    ],
)  # fmt: skip
@pytest.mark.parametrize("settings", [{"interval": 1}, {"calls": 6}, {"calls": 50}, {"interval": 1, "few_steps": True}])
@pytest.mark.filterwarnings("ignore:forecache is off", "ignore:forecache. auto with")
def test_degenerate_grids_pass_through(adapter, pipe, options, settings):
    try:
        reference = run(pipe, **options)
    except IndexError:  # the upstream's own, of a grid that names a time twice
        with adapter.enabled(pipe, **settings), pytest.raises(IndexError):
            run(pipe, **options)
        return
    with adapter.enabled(pipe, **settings):
        assert torch.allclose(run(pipe, **options), reference, rtol=0, atol=0, equal_nan=True)


# --- what kind of call it is ------------------------------------------------------------------------------------------
def test_another_network_within_the_run_gets_a_history_of_its_own(adapter, pipe):
    first, second = pipe.model, copy.deepcopy(pipe.model)
    with torch.no_grad():
        second.final_layer.linear.bias.add_(3.0)

    def swap(step, t, outputs):
        pipe.model = second if step == 5 else pipe.model

    def sample(**options):
        pipe.model = first
        return run(pipe, callback=swap, callback_steps=1, **options)

    reference = sample()
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(sample(), reference)
    with adapter.enabled(pipe, basis="linear", interval=3, warmup=2) as handle:
        latent = sample()
    kinds = {step.index: step.kind for step in handle.trace.steps}
    assert kinds[6] == "computed" and kinds[5] == kinds[3] == "forecast"
    assert any("another network" in note for note in handle.trace.notes)
    pipe.model = first
    plain, untouched = run(pipe), attach_and_run(adapter, pipe)
    assert relative(latent, reference) < 10 * relative(untouched[0], plain)
    assert {step.index: step.kind for step in untouched[1].steps}[6] == "forecast", "control: on the same schedule"


def test_a_callback_that_resizes_the_latents(adapter, pipe):
    """More tokens than before: the next step is computed, though the loop hands the latents over too late to see it."""

    def grow(step, t, outputs):
        if step == 5:
            kept = outputs.prev_sample.clone()
            outputs.prev_sample.resize_(1, 2 * kept.shape[1], kept.shape[2]).copy_(torch.cat([kept, kept], 1))

    options = {"callback": grow, "callback_steps": 1}
    try:
        reference = run(pipe, **options)
    except RuntimeError:
        pytest.skip("the network has a place for each token: such a run does not work uncached either")
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(run(pipe, **options), reference)
    latent, trace = attach_and_run(adapter, pipe, **options)
    assert latent.shape == reference.shape and torch.isfinite(latent).all()
    assert {step.index: step.kind for step in trace.steps}[6] == "computed"
    assert any("form of the latents" in note for note in trace.notes)


def test_groups_that_do_not_fit_switch_the_cache_off(adapter, pipe, calls):
    reference = run(pipe)
    calls.clear()
    with (
        adapter.enabled(pipe, basis="linear", interval=3, groups={"pose": ("scale",)}) as handle,
        pytest.warns(UserWarning, match="forecache is off: .*scale"),
    ):
        assert torch.equal(run(pipe), reference)
    assert len(calls) == STEPS and handle.trace.notes[0].startswith("off: ")


# --- what it is attached to -------------------------------------------------------------------------------------------
def rebuilt(pipe):
    parts = ("vae", "model", "scheduler", "conditioner", "image_processor")
    return type(pipe)(**{name: getattr(pipe, name) for name in parts}, device="cpu", dtype=pipe.dtype)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, rebuilt, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_is_plain_and_leaves_the_original_alone(adapter, pipe, make):
    pipe.vae = torch.nn.Identity()  # the reference's is of a local class, which no pickle can name
    former, handle = type(pipe), adapter.enable(pipe, basis="linear", interval=3)
    other = make(pipe)
    assert type(other) is former and other.forecache is None and attached(other) is None
    adapter.disable(other)
    assert pipe.forecache is attached(pipe) is handle
    mine = adapter.enable(other, interval=2)
    assert pipe.forecache is handle and other.forecache is mine
    adapter.disable(pipe)
    assert type(pipe) is former and "forecache" not in vars(pipe) and other.forecache is mine
    adapter.disable(pipe)
    again = pickle.loads(pickle.dumps(copy.deepcopy(handle)))
    assert again.settings == handle.settings and again.pipe() is None
    pipe.forecache = again  # by hand, where the class has a place for it
    with pytest.warns(UserWarning, match="the pipeline that this handle was made for is gone"):
        assert again.begin(pipe.scheduler, 3.0) is None


def test_a_copy_makes_the_uncached_sample(adapter, pipe, calls):
    reference = run(pipe)
    adapter.enable(pipe, basis="linear", interval=3)
    other = copy.copy(pipe)
    calls.clear()
    assert torch.equal(run(other), reference) and len(calls) == STEPS
    assert not torch.equal(run(pipe), reference), "control: the original forecasts"


def test_blocks_that_end_in_any_order(adapter, pipe):
    outer = adapter.enable(pipe, interval=4)
    one, two = contextlib.ExitStack(), contextlib.ExitStack()
    first = one.enter_context(adapter.enabled(pipe, interval=2))
    second = two.enter_context(adapter.enabled(pipe, interval=3))
    assert pipe.forecache is second
    one.close()
    assert pipe.forecache is second, "the newer block goes on"
    two.close()
    assert pipe.forecache is outer and pipe.forecache is not first, "what is over does not come back"
    with adapter.enabled(pipe, interval=2):
        adapter.disable(pipe)
        assert pipe.forecache is None
    assert pipe.forecache is outer
    with pytest.raises(ValueError, match="interval"), adapter.enabled(pipe, interval=0):
        pass
    assert pipe.forecache is outer
    adapter.disable(pipe)
    assert pipe.forecache is None


def test_a_kept_handle_keeps_no_pipeline(adapter, generator):
    pipe = generator.build()
    handle = adapter.enable(pipe, interval=3)
    run(pipe)
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None and handle.trace.computed > 0


def test_the_callback_is_the_users_own(adapter, pipe):
    """A run within a callback, and an error in it."""
    seen, nested = [], []

    def inner(step, t, outputs):
        seen.append(step)
        if step == 3 and not nested:
            mine, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
            nested.append(run(pipe, callback=inner, callback_steps=2))
            pipe.scheduler = mine

    def fail(step, t, outputs):
        raise KeyError("mine")

    with adapter.enabled(pipe, basis="linear", interval=3) as handle:
        alone = run(pipe)
        assert torch.equal(run(pipe, callback=inner, callback_steps=1), alone) and torch.equal(nested[0], alone)
        assert seen == [*range(4), *range(0, STEPS, 2), *range(4, STEPS)]
        with pytest.raises(KeyError, match="mine"):
            run(pipe, callback=fail, callback_steps=1)
        assert handle._here.calls == []
        assert torch.equal(run(pipe), alone)
