"""Pipelines of diffusers from the index, around tiny random transformers."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import threading
import weakref
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading  # noqa: E402

import device_standin  # noqa: E402
from device_standin import put, waits  # noqa: E402
from diffusers_helpers import CALLS, STEPS, euler, loop, pipe_of, reference_of, served_of  # noqa: E402
from forecache import Forecaster, Plan, calibrate  # noqa: E402
from forecache.rules import Linear  # noqa: E402
from forecache.snapshots import Snapshots  # noqa: E402
from forecache_adapters import attach  # noqa: E402
from forecache_adapters import diffusers as adapter  # noqa: E402
from forecache_adapters.diffusers import grid  # noqa: E402
from forecache_adapters.diffusers.call import Call  # noqa: E402
from forecache_adapters.diffusers.head import Head  # noqa: E402
from forecache_adapters.diffusers.run import Run  # noqa: E402
from forecache_adapters.diffusers.steps import Scheduled  # noqa: E402
from forecache_lab.controls import WrongSign  # noqa: E402
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES, slow, wake  # noqa: E402
from upstream_helpers import check_corrector, relative  # noqa: E402

GUIDED = [name for name, tiny in PIPELINES.items() if tiny.per_step == 2]


@pytest.fixture(params=list(PIPELINES))
def name(request):
    yield request.param
    adapter.disable(pipe_of(request.param))


@pytest.fixture
def calls(monkeypatch):
    """Batch sizes of the calls that reach the transformer's own ``forward``, whichever it is."""
    seen: list[int] = []
    for kind in {type(pipe_of(name).transformer) for name in PIPELINES}:
        forward = kind.forward

        @functools.wraps(forward)
        def counted(self, *args, forward=forward, **kwargs):
            seen.append(len(kwargs.get("hidden_states", args[0] if args else ())))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counted)
    return seen


def test_off_and_a_full_schedule_are_bit_identical(name, calls):
    tiny, pipe, reference = PIPELINES[name], pipe_of(name), reference_of(name)
    former = type(pipe)
    calls.clear()
    handle = adapter.enable(pipe, basis="dmd", interval=1)
    assert torch.equal(tiny.run(pipe), reference)
    assert len(calls) == tiny.per_step * STEPS == handle.trace.computed
    adapter.disable(pipe)
    assert type(pipe) is former and "forward" not in vars(pipe.transformer)
    calls.clear()
    assert torch.equal(tiny.run(pipe), reference) and len(calls) == tiny.per_step * STEPS


def test_forecast_steps_do_not_run_the_transformer(name, calls):
    """Drift is less than half of that with the wrong sign, the control; a second run equals the first."""
    tiny, pipe, reference = PIPELINES[name], pipe_of(name), reference_of(name)
    drift = {}
    for label, basis in {"linear": Linear(1), "wrong": WrongSign(Linear(1))}.items():
        with adapter.enabled(pipe, basis=basis, calls=CALLS) as handle:
            calls.clear()
            latents = tiny.run(pipe)
            assert len(calls) == tiny.per_step * CALLS == handle.trace.computed
            assert label == "wrong" or torch.equal(tiny.run(pipe), latents)
        for trace in handle.trace.branches.values():
            kinds = [step.kind for step in trace.steps]
            assert len(kinds) == STEPS and kinds.count("computed") == CALLS
            assert kinds[0] == kinds[-1] == "computed"
        drift[label] = relative(latents, reference)
    assert 0 < 2 * drift["linear"] < drift["wrong"], drift


def test_last_block_level(name):
    """Blocks run at computed steps alone, the head at every step; drift is bounded as above."""
    tiny, pipe, reference = PIPELINES[name], pipe_of(name), reference_of(name)
    head, seen, drift = Head(pipe.transformer), Counter(), {}
    hooks = [block.register_forward_hook(lambda *_: seen.update(["blocks"])) for block in head.blocks[-1]]
    hooks.append(pipe.transformer.register_forward_pre_hook(lambda *_: seen.update(["head"])))
    with adapter.enabled(pipe, level="last_block", interval=1):
        assert torch.equal(tiny.run(pipe), reference)
    for label, basis in {"linear": Linear(1), "wrong": WrongSign(Linear(1))}.items():
        with adapter.enabled(pipe, level="last_block", basis=basis, calls=CALLS) as handle:
            seen.clear()
            drift[label] = relative(tiny.run(pipe), reference)
        assert seen == {"blocks": tiny.per_step * CALLS * len(head.blocks[-1]), "head": tiny.per_step * STEPS}
        assert handle.trace.computed == tiny.per_step * CALLS
    for hook in hooks:
        hook.remove()
    assert 0 < 2 * drift["linear"] < drift["wrong"], drift


def test_the_corrector_is_on_where_the_scheduler_is_eulers(name):
    """Flow matching and DDIM, whole outputs; no other scheduler, and not what stands behind the last block."""
    tiny, pipe = PIPELINES[name], pipe_of(name)

    def traces(handle):
        return list(handle.trace.branches.values())

    possible = tiny.scheduler in ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler")
    enabled, run = partial(adapter.enabled, pipe), partial(tiny.run, pipe, steps=30)  # gentle guidance for so many
    check_corrector(enabled, run, traces, possible, calls=15)
    if possible:
        check_corrector(partial(enabled, level="last_block"), run, traces, False, calls=15)


def test_no_corrector_where_guidance_is_steep_for_so_few_steps():
    tiny, pipe = PIPELINES["sd3"], pipe_of("sd3")
    for scale, steep in ((7.0, True), (2.0, False)):
        with adapter.enabled(pipe, calls=CALLS, corrector=True) as handle:
            tiny.run(pipe, guidance_scale=scale)
        found = list(handle.trace.branches.values())
        assert found and all(any(step.corrected for step in trace.steps) is not steep for trace in found)
        assert all(("no corrector: guidance of 7 is steep for 10 steps" in trace.notes) is steep for trace in found)


def test_ddim_drifts_less_with_the_corrector(monkeypatch):
    """Where the state moves by the differences of sigma / alpha; the timesteps in their place are the control."""
    tiny, pipe, steps, seeds = PIPELINES["dit"], pipe_of("dit"), 20, range(3)
    references, drift = [tiny.run(pipe, (seed,), steps) for seed in seeds], {}
    for label in ("off", "on", "timesteps"):
        if label == "timesteps":
            monkeypatch.setattr(grid, "ddim", lambda scheduler: ([*grid.numbers(scheduler.timesteps), 0.0], None))
        with adapter.enabled(pipe, calls=steps // 2, corrector=None if label != "off" else False):
            drift[label] = sum(relative(tiny.run(pipe, (s,), steps), references[s]) for s in seeds)
    assert drift["on"] < 0.8 * drift["off"] and drift["on"] < 0.97 * drift["timesteps"], drift


WIDTH = 0.3


class Points(torch.nn.Module):
    """What a network of any form puts out for data near one of five points."""

    def __init__(self, scheduler):
        super().__init__()
        self.form, self.kept = scheduler.config.prediction_type, scheduler.alphas_cumprod
        self.points = torch.randn(5, 1, 40, generator=torch.Generator().manual_seed(0)).double()
        self.calls = 0

    def forward(self, hidden_states, timestep):
        self.calls += 1
        share = float(self.kept[int(timestep)])
        alpha, sigma = share**0.5, (1 - share) ** 0.5
        off, wide = hidden_states - alpha * self.points, (alpha * WIDTH) ** 2 + sigma**2
        near = torch.softmax(-(off**2).sum(-1, keepdim=True) / 2 / wide, 0)
        data = (near * (self.points + alpha * WIDTH**2 / wide * off)).sum(0)
        noise = (hidden_states - alpha * data) / sigma
        return {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data}[self.form]

    def run(self, scheduler):
        scheduler.set_timesteps(25)
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)).double()
        for t in scheduler.timesteps:
            x = scheduler.step(self(hidden_states=x, timestep=t), t, x)[0]
        return x


@pytest.mark.parametrize("form", ["epsilon", "sample", "v_prediction"])
def test_every_form_of_a_network_is_forecast_alike(form):
    """DDIM's state moves by the noise, whatever the network puts out: that is forecast."""
    drift = {}
    for each, corrector in (("epsilon", None), (form, None), (form, False)):
        scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_end=0.012, prediction_type=each)
        network = Points(scheduler)
        reference, network.calls = network.run(scheduler), 0
        with adapter.enabled(network, scheduler=scheduler, calls=9, corrector=corrector) as handle:
            drift[each, corrector] = relative(network.run(scheduler), reference)
        assert network.calls == 9 and not handle.trace.notes
    assert drift[form, None] == pytest.approx(drift["epsilon", None], rel=1e-2)
    assert drift[form, None] < 0.8 * drift[form, False], drift  # control


def test_a_run_that_begins_with_noise_alone():
    """Zero terminal SNR: the positions begin at infinity, and the first output says nothing of the noise."""
    drift = {}
    for label in (None, False):
        scheduler = diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        network = Points(scheduler)
        reference = network.run(scheduler)
        with adapter.enabled(network, scheduler=scheduler, calls=9, corrector=label):
            drift[label] = relative(network.run(scheduler), reference)
    assert 0 < drift[None] < 0.8 * drift[False], drift


def test_no_corrector_where_the_output_has_not_the_states_form():
    """A network that puts out a variance too, or takes a mask beside the latents."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    scheduler.set_timesteps(20)
    network = torch.nn.Module()
    network.forward = lambda hidden_states, timestep: torch.cat((hidden_states, hidden_states * timestep), 1)
    with adapter.enabled(network, scheduler=scheduler, calls=6, corrector=True) as handle:
        for t in scheduler.timesteps:
            out = network(hidden_states=torch.ones(2, 8) * t, timestep=t)
            assert out.shape == (2, 16) and torch.isfinite(out).all()
    (trace,) = handle.trace.branches.values()
    assert trace.computed == 6 and not any(step.corrected for step in trace.steps)
    assert trace.notes == ["no corrector: this sampler does not just add a multiple of what is forecast"]


class Sounding(torch.nn.Module):
    """A transformer whose output has a part that does not come through ``norm_out``."""

    def __init__(self, sounds):
        super().__init__()
        self.blocks, self.norm_out, self.sounds = (
            torch.nn.ModuleList([torch.nn.Linear(4, 4)]),
            torch.nn.Identity(),
            sounds,
        )

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.norm_out(hidden_states), hidden_states if self.sounds else timestep


@pytest.mark.parametrize("sounds", [True, False])
def test_last_block_level_is_off_where_an_output_comes_from_elsewhere(sounds):
    network = Sounding(sounds)
    with adapter.enabled(network, steps=STEPS, level="last_block", interval=3) as handle:
        run = lambda: [network(torch.ones(1, 4), torch.tensor(t)) for t in range(STEPS)]  # noqa: E731
        if sounds:
            with pytest.warns(UserWarning, match="Sounding does not follow"):
                run()
            assert handle.trace.computed == STEPS
            assert handle.trace.notes == ["off: the output of Sounding does not follow from what enters its norm_out"]
        else:
            run()
            assert 0 < handle.trace.computed < STEPS


class ByNorm:
    """Weights that differ wherever the norms of the snapshots do, so between items; no fall-back covers it up."""

    def weights(self, times, target, gram):
        share = (gram.diagonal() / gram.diagonal().max()) ** 8
        return share / share.sum()


def test_batch_items_are_independent(name, monkeypatch):
    """An item of a batch of two equals its own run, as nearly as uncached; one fit for both, the control, does not."""
    tiny, pipe = PIPELINES[name], pipe_of(name)

    def coupling(**settings):
        with adapter.enabled(pipe, **settings):
            return relative(tiny.run(pipe, (0, 1))[:1], tiny.run(pipe, (0,)))

    floor = relative(tiny.run(pipe, (0, 1))[:1], reference_of(name))
    assert coupling(basis=ByNorm(), interval=3) <= 1e-6 + 10 * floor
    whole = lambda self, times, *rest: Forecaster(ByNorm(), times=times, computed=[0], batch_dim=None)  # noqa: E731
    monkeypatch.setattr("forecache_adapters.settings.Settings.history_of", whole)
    assert coupling(interval=3) > 1e-5 + 10 * floor


@pytest.mark.parametrize("name", GUIDED, indirect=True)
def test_contexts_are_apart(name, monkeypatch):
    """Reuse serves each context its own newest value; contexts that change places every second step are seen."""
    tiny, pipe, reference = PIPELINES[name], pipe_of(name), reference_of(name)
    call, newest, served = Run.call, {}, Counter()

    def watched(self, i, context, *rest):
        before = self.trace.computed
        (out,) = call(self, i, context, *rest)
        if self.trace.computed > before:
            newest[context] = out
        else:
            other = newest["uncond" if context == "cond" else "cond"]
            assert torch.equal(out, newest[context]) and not torch.equal(out, other)
            served[context] += 1
        return (out,)

    monkeypatch.setattr(Run, "call", watched)
    with adapter.enabled(pipe, basis="reuse", calls=CALLS):
        apart = tiny.run(pipe)
    assert served == {"cond": STEPS - CALLS, "uncond": STEPS - CALLS}
    assert not torch.equal(newest["cond"], newest["uncond"])

    def swapped(self, i, context, *rest):
        return call(self, i, context if i % 2 else {"cond": "uncond", "uncond": "cond"}[context], *rest)

    monkeypatch.setattr(Run, "call", swapped)
    with adapter.enabled(pipe, basis="reuse", calls=CALLS):
        assert relative(tiny.run(pipe), reference) > 1.5 * relative(apart, reference)


def test_callbacks_see_every_step():
    tiny, pipe = PIPELINES["flux"], pipe_of("flux")
    seen = []

    def note(pipe, i, t, given):
        seen.append(given["latents"].clone())
        return given

    with adapter.enabled(pipe, basis="linear", calls=CALLS):
        latents = tiny.run(pipe, callback_on_step_end=note)
    assert len(seen) == STEPS and torch.equal(seen[-1], latents)


def test_runs_do_not_mix():
    """Within a callback of one pipeline, another, and another that has the same transformer."""
    flux, qwen = PIPELINES["flux"], PIPELINES["qwen-image"]
    pipe, other = pipe_of("flux"), pipe_of("qwen-image")
    third = type(pipe)(**{**pipe.components, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})
    third.set_progress_bar_config(disable=True)
    with (
        adapter.enabled(pipe, basis="linear", calls=CALLS) as handle,
        adapter.enabled(other, basis="dmd", calls=CALLS + 1),
        adapter.enabled(third, basis="reuse", calls=CALLS + 2) as handle_3,
    ):
        alone, alone_2, alone_3 = flux.run(pipe), qwen.run(other), flux.run(third, (3,))
        assert not torch.equal(alone, alone_3)
        nested = []

        def interrupt(_, i, t, given):
            if i == 5:
                nested.extend([qwen.run(other), flux.run(third, (3,))])
            return given

        assert torch.equal(flux.run(pipe, callback_on_step_end=interrupt), alone)
        assert torch.equal(nested[0], alone_2) and torch.equal(nested[1], alone_3)
        assert handle.trace.computed == 2 * CALLS and handle_3.trace.computed == 2 * (CALLS + 2)


@pytest.fixture
def living(monkeypatch):
    """The windows of snapshots that are alive."""
    alive, begin = weakref.WeakSet(), Snapshots.__init__

    def born(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        alive.add(self)

    monkeypatch.setattr(Snapshots, "__init__", born)
    return alive


def left_of(living):
    """What is left of them; a collection takes long where so much is imported."""
    if living:
        gc.collect()
    return living


def test_a_snapshot_of_the_last_block_is_larger(living):
    """A network of width 32, latents of 16 channels; a branch keeps 6 where the rule can use them."""
    tiny, pipe, held = PIPELINES["flux2"], pipe_of("flux2"), {}

    def note(pipe, i, t, given):
        if i == STEPS - 2:
            held[level] = sum(each.nbytes for each in living), max(map(len, living))
        return given

    for level in ("velocity", "last_block"):
        with adapter.enabled(pipe, level=level, basis="dmd", interval=1):
            tiny.run(pipe, callback_on_step_end=note)
    assert held["last_block"][0] == 2 * held["velocity"][0] > 0
    assert held["last_block"][1] == held["velocity"][1] == 6


@pytest.mark.parametrize("how", ["callback", "interrupt", "network"])
def test_memory_is_freed_when_a_call_ends_or_raises(living, how, monkeypatch):
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    during, forward = [], type(pipe.transformer).forward

    def cancel(pipe, i, t, given):
        during.append(len(living))
        if i == 6 and how == "callback":
            raise KeyboardInterrupt
        pipe._interrupt = i >= 6 and how == "interrupt"
        return given

    def broken(self, *args, **kwargs):
        if len(during) >= 6 and how == "network":
            raise MemoryError
        return forward(self, *args, **kwargs)

    with adapter.enabled(pipe, basis="dmd", interval=3) as handle:
        reference = tiny.run(pipe)
        assert not left_of(living)
        monkeypatch.setattr(type(pipe.transformer), "forward", broken)
        if how == "interrupt":
            tiny.run(pipe, callback_on_step_end=cancel)
        else:
            with pytest.raises(KeyboardInterrupt if how == "callback" else MemoryError):
                tiny.run(pipe, callback_on_step_end=cancel)
        assert len(handle.trace.branches["call"].steps) < STEPS
        monkeypatch.undo()
        assert during[5] > 0, "the control: they are seen where they live"
        assert not left_of(living) and attach.worn(pipe.transformer) is None
        assert torch.equal(tiny.run(pipe), reference), "a cancelled run leaves nothing behind"
        assert tiny.run(pipe, (0, 1)).shape[0] == 2, "another shape is another run"


def test_progress_ticks_at_every_step(monkeypatch):
    module = pytest.importorskip("diffusers.pipelines.pipeline_utils")
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    ticks = Counter()

    class Bar(module.tqdm):
        def update(self, n=1):
            ticks["steps"] += n
            return super().update(n)

    monkeypatch.setattr(module, "tqdm", Bar)
    with adapter.enabled(pipe, basis="linear", calls=CALLS):
        tiny.run(pipe)
    assert ticks["steps"] == STEPS


def test_last_block_level_off_is_bit_identical():
    tiny, pipe, reference = PIPELINES["flux"], pipe_of("flux"), reference_of("flux")
    with adapter.enabled(pipe, level="last_block", interval=1):
        assert torch.equal(tiny.run(pipe), reference)
    with adapter.enabled(pipe, level="last_block", interval=2):
        assert not torch.equal(tiny.run(pipe), reference)
    assert torch.equal(tiny.run(pipe), reference)


def test_threads_do_not_mix():
    """Pipelines in threads give what they give alone, also two that share a transformer."""
    flux, qwen = PIPELINES["flux"], PIPELINES["qwen-image"]
    pipe, other = pipe_of("flux"), pipe_of("qwen-image")
    third = type(pipe)(**{**pipe.components, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})
    third.set_progress_bar_config(disable=True)
    at_step_5, finished = threading.Event(), threading.Event()

    def hold(pipe, i, t, given):
        if i == 5:
            at_step_5.set()
            assert finished.wait(60)
        return given

    with (
        adapter.enabled(pipe, basis="linear", calls=CALLS),
        adapter.enabled(other, basis="dmd", calls=CALLS + 1),
        adapter.enabled(third, basis="reuse", calls=CALLS + 2),
    ):
        alone, alone_2, alone_3 = flux.run(pipe), qwen.run(other), flux.run(third)
        results = []
        thread = threading.Thread(target=lambda: results.append(flux.run(pipe, callback_on_step_end=hold)))
        thread.start()
        try:
            assert at_step_5.wait(60)
            assert torch.equal(qwen.run(other), alone_2)
            assert torch.equal(flux.run(third), alone_3) and not torch.equal(alone_3, alone)
        finally:
            finished.set()
            thread.join()
        assert torch.equal(results[0], alone) and attach.worn(pipe.transformer) is None


def test_enable_twice_replaces_and_enabled_restores():
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    former = type(pipe)
    adapter.enable(pipe, basis="linear", calls=8)
    handle = adapter.enable(pipe, basis="linear", calls=CALLS)
    tiny.run(pipe)
    assert handle.trace.calls == {"call": CALLS}
    with adapter.enabled(pipe, interval=1) as inner:
        tiny.run(pipe)
    tiny.run(pipe)
    assert inner.trace.computed == STEPS and handle.trace.computed == CALLS
    adapter.disable(pipe)
    adapter.disable(pipe)
    assert type(pipe) is former


@pytest.mark.parametrize("steps", [4, 8])
def test_few_steps_switch_it_off(steps):
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    reference = tiny.run(pipe, steps=steps)
    with adapter.enabled(pipe, interval=2) as handle, pytest.warns(UserWarning, match=f"off: {steps} steps"):
        assert torch.equal(tiny.run(pipe, steps=steps), reference)
    assert handle.trace.calls == {"call": steps} and "off" in handle.trace.notes[0]
    with adapter.enabled(pipe, interval=2) as handle:
        tiny.run(pipe, steps=9)
    assert handle.trace.computed < 9 and not handle.trace.notes


def test_the_example_of_the_page_about_models():
    """Without ``true_cfg_scale``: one branch."""
    with adapter.enabled(pipe_of("flux"), basis="auto", calls=14) as handle:
        PIPELINES["flux"].run(pipe_of("flux"), steps=28, true_cfg_scale=1.0)
    assert handle.trace.calls == {"cond": 14}


class Fetched(ModelHook):
    """Stands for an offload hook, which moves weights before the forward."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def pre_forward(self, module, *args, **kwargs):
        self.times += 1
        return args, kwargs


def test_later_hooks_of_the_registry_stay_inside():
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    reference = tiny.run(pipe)
    adapter.enable(pipe, basis="linear", calls=CALLS)
    hook = Fetched()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).register_hook(hook, "fetched")
    tiny.run(pipe)
    assert hook.times == CALLS
    adapter.disable(pipe)
    assert torch.equal(tiny.run(pipe), reference) and hook.times == CALLS + STEPS


def offload(pipe, how, monkeypatch):
    """Set up on the transformer, with the CPU in both places; counts how often the whole's weights are fetched."""
    fetched, cpu = Counter(), torch.device("cpu")

    def counting(kind, method):
        fetch = getattr(kind, method)

        def counted(self, *args, **kwargs):
            fetched["times"] += 1
            return fetch(self, *args, **kwargs)

        monkeypatch.setattr(kind, method, counted)

    if how.endswith("_level"):
        if diffusers.__version__ < "0.41" and not torch.accelerator.is_available():
            pytest.skip("groups of diffusers 0.40 need an accelerator")
        counting(pytest.importorskip("diffusers.hooks.group_offloading").ModuleGroup, "onload_")
        blocks = {"num_blocks_per_group": 1} if how == "block_level" else {}
        apply_group_offloading(pipe.transformer, onload_device=cpu, offload_device=cpu, offload_type=how, **blocks)
        return fetched
    hooks = pytest.importorskip("accelerate.hooks", reason="model and sequential offload are accelerate's")
    accelerate = pytest.importorskip("accelerate")
    if how == "model":
        counting(hooks.CpuOffload, "pre_forward")
        accelerate.cpu_offload_with_hook(pipe.transformer, cpu)
    else:
        counting(hooks.AlignDevicesHook, "pre_forward")
        accelerate.cpu_offload(pipe.transformer, cpu)
    return fetched


@pytest.mark.parametrize("how", ["block_level", "leaf_level", "model", "sequential"])
@pytest.mark.parametrize("cache_first", [True, False])
def test_offloading_goes_on_and_a_forecast_step_fetches_nothing(how, cache_first, monkeypatch):
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    reference, expected = reference_of("flux2"), served_of("flux2")
    if cache_first:
        adapter.enable(pipe, basis="linear", calls=CALLS)
    fetched = offload(pipe, how, monkeypatch)
    if not cache_first:
        adapter.enable(pipe, basis="linear", calls=CALLS)
    assert torch.equal(tiny.run(pipe), expected)
    cached, _ = fetched["times"], fetched.clear()
    assert torch.equal(tiny.run(pipe), expected) and fetched["times"] == cached
    if how == "sequential":
        with pytest.raises(ValueError, match="sequential offloading keeps the weights of transformer"):
            adapter.key(pipe)
        plan = Plan(tuple(map(float, pipe.scheduler.sigmas)), tuple(range(0, STEPS, 2)))
        with adapter.enabled(pipe, plan=plan), pytest.raises(ValueError, match="plan: sequential offloading keeps"):
            tiny.run(pipe)
    adapter.disable(pipe)
    fetched.clear()
    assert torch.equal(tiny.run(pipe), reference)
    assert 0 < cached * STEPS == fetched["times"] * CALLS, "the control: each call of the transformer fetches as much"


@pytest.mark.parametrize("how", ["block_level", "leaf_level", "model", "sequential"])
@pytest.mark.parametrize("cache_first", [True, False])
def test_offloading_of_a_bare_transformer(transformer, how, cache_first, monkeypatch):
    reference = loop(transformer, euler())
    settings = {"steps": STEPS, "basis": "linear", "calls": CALLS}
    if cache_first:
        adapter.enable(transformer, **settings)
    fetched = offload(SimpleNamespace(transformer=transformer), how, monkeypatch)
    if not cache_first:
        adapter.enable(transformer, **settings)
    loop(transformer, euler())
    cached = fetched.pop("times")
    adapter.disable(transformer)
    assert torch.equal(loop(transformer, euler()), reference)
    assert 0 < cached * STEPS == fetched["times"] * CALLS


def test_the_last_block_of_an_offloaded_transformer(monkeypatch):
    """Embeddings and head run at every step, so it is fetched there; once more to look at the head first."""
    tiny, counts = PIPELINES["flux2"], {}
    pipe = tiny.build()
    fetched = offload(pipe, "model", monkeypatch)
    for level in ("velocity", "last_block"):
        with adapter.enabled(pipe, level=level, basis="linear", calls=CALLS):
            tiny.run(pipe)
        counts[level] = fetched.pop("times")
    assert counts == {"velocity": CALLS, "last_block": STEPS + 1}


def test_the_hooks_of_accelerate_may_come_and_go():
    """As in a pipeline with model offload, which takes them off and puts them on again as each call ends."""
    hooks = pytest.importorskip("accelerate.hooks", reason="model offload is accelerate's")
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    cpu, forward = torch.device("cpu"), pipe.transformer.forward
    again = lambda: hooks.add_hook_to_module(pipe.transformer, hooks.CpuOffload(cpu))  # noqa: E731

    def free():
        hooks.remove_hook_from_module(pipe.transformer)
        again()

    again()
    pipe.maybe_free_model_hooks = free
    adapter.enable(pipe, basis="linear", calls=CALLS)
    first = tiny.run(pipe)
    assert torch.equal(tiny.run(pipe), first)
    adapter.disable(pipe)
    assert torch.equal(tiny.run(pipe), reference_of("flux2"))
    hooks.remove_hook_from_module(pipe.transformer)
    assert pipe.transformer.forward == forward


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_graphs_are_those_without_the_cache(whole):
    """No graph breaks (``fullgraph``), and not one graph more than uncached: the cache stays outside."""
    tiny, graphs, levels = PIPELINES["flux"], [], ["velocity", "last_block"]
    pipe = tiny.build()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    if whole:
        made_for = adapter.key(pipe)
        pipe.transformer = torch.compile(pipe.transformer, backend=backend, fullgraph=True)
        assert adapter.key(pipe) == made_for
        with pytest.raises(TypeError, match="one graph"):
            adapter.enable(pipe, level=levels.pop())
    else:
        pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    assert torch.equal(tiny.run(pipe), reference_of("flux"))
    uncached = len(graphs)
    assert uncached > 0
    for level in levels:
        with adapter.enabled(pipe_of("flux"), level=level, basis="linear", calls=CALLS):
            expected = tiny.run(pipe_of("flux"))
        with adapter.enabled(pipe, level=level, basis="linear", calls=CALLS) as handle:
            for _ in range(2):
                assert torch.equal(tiny.run(pipe), expected)
                assert handle.trace.computed == tiny.per_step * CALLS
    assert torch.equal(tiny.run(pipe), reference_of("flux"))
    assert len(graphs) == uncached


@pytest.fixture
def transformer():
    network = PIPELINES["flux"].build().transformer
    yield network
    adapter.disable(network)


@pytest.mark.parametrize(
    ("contexts", "counted", "return_dict"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, True)],
)
def test_a_transformer_in_a_loop_of_ones_own(transformer, contexts, counted, return_dict):
    scheduler = euler()
    options = {"contexts": contexts, "return_dict": return_dict}
    reference = loop(transformer, scheduler, **options)
    grid = {"steps": STEPS} if counted else {"scheduler": scheduler}
    handle = adapter.enable(transformer, basis="linear", calls=CALLS, **grid)
    scheduler.set_timesteps(STEPS)
    first = loop(transformer, scheduler, **options)
    assert handle.trace.calls == dict.fromkeys(("cond", "uncond") if contexts else ("call", "call[1]"), CALLS)
    assert 0 < relative(first, reference) < 0.1
    for stop in (7, None):  # a run that is broken off leaves nothing behind
        scheduler.set_timesteps(STEPS)
        latents = loop(transformer, scheduler, stop=stop, **options)
    assert torch.equal(latents, first)
    adapter.disable(transformer)
    scheduler.set_timesteps(STEPS)
    assert torch.equal(loop(transformer, scheduler, **options), reference)


def test_two_transformers_have_a_run_each():
    """As in Wan 2.2: one for the noisy steps, one for the others."""
    plain = PIPELINES["wan"]

    def second():
        return {"transformer_2": slow(wake(diffusers.WanTransformer3DModel(**plain.network))), "boundary_ratio": 0.6}

    tiny = dataclasses.replace(plain, parts=second)
    pipe = tiny.build()
    reference = tiny.run(pipe)
    with adapter.enabled(pipe, basis="linear", interval=2, warmup=1, few_steps=True) as handle:
        latents = tiny.run(pipe)
        assert torch.equal(tiny.run(pipe), latents)
    assert 0 < relative(latents, reference) < 0.1
    kinds = {name: [step.kind for step in trace.branches["cond"].steps] for name, trace in handle.traces.items()}
    assert set(kinds) == {"transformer", "transformer_2"} and sum(map(len, kinds.values())) == STEPS
    assert all(each[0] == each[-1] == "computed" and "forecast" in each for each in kinds.values())
    with adapter.enabled(pipe, basis="linear", calls=6) as handle:  # the run is long enough, its parts are not
        tiny.run(pipe)
    shares = {name: (trace.calls["cond"], len(trace.branches["cond"].steps)) for name, trace in handle.traces.items()}
    assert sum(calls for calls, _ in shares.values()) == 6 and sum(steps for _, steps in shares.values()) == STEPS
    assert all(abs(calls - 6 * steps / STEPS) <= 0.5 for calls, steps in shares.values())
    assert len({steps for _, steps in shares.values()}) == 2, "control: equal parts would hide a budget of 3 each"
    reference = tiny.run(pipe, steps=8)
    with adapter.enabled(pipe, interval=2) as handle, pytest.warns(UserWarning, match="off: 8 steps"):
        assert torch.equal(tiny.run(pipe, steps=8), reference)
    assert [trace.notes[0].split(",")[0] for trace in handle.traces.values()] == ["off: 8 steps"] * 2


class Positional(torch.nn.Module):
    """Called as Black Forest Labs' own FLUX module is."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(4, 4)

    def forward(self, img, img_ids, txt, txt_ids, timesteps, y, guidance=None):
        return self.project(img) * timesteps


def test_a_module_that_is_not_of_diffusers():
    network = Positional()
    handle = adapter.enable(network, steps=STEPS, basis="linear", interval=2, warmup=2)
    img = torch.ones(1, 2, 4)
    for i in range(STEPS):
        t = torch.tensor([1 - i / STEPS])
        given = (img, None, None, None, t, None)
        assert torch.allclose(network(*given), network.project(img) * t, atol=1e-6), "linear in time: exact"
    assert 0 < handle.trace.calls["call"] < STEPS
    adapter.disable(network)


def test_chipmunk_flux_has_that_signature():
    pytest.importorskip("chipmunk.modules", reason="Chipmunk is built from its repository, for a CUDA GPU")
    flux = pytest.importorskip("flux.model", reason="needs the examples/flux/src of Chipmunk's repository")
    assert list(inspect.signature(flux.Flux.forward).parameters) == list(
        inspect.signature(Positional.forward).parameters
    )


def test_a_step_that_moves_nothing_is_never_computed(transformer, living):
    scheduler = euler(sigmas=[1 - i / 11 for i in range(12)])  # the scheduler ends with 0 too: dt = 0
    reference = loop(transformer, scheduler)
    handle = adapter.enable(transformer, scheduler=scheduler, basis="linear", interval=1)
    scheduler.set_timesteps(sigmas=[1 - i / 11 for i in range(12)])
    assert torch.equal(loop(transformer, scheduler), reference)
    kinds = [step.kind for step in handle.trace.branches["cond"].steps]
    assert kinds == ["computed"] * 11 + ["still"]
    handle.reset()
    assert not left_of(living)


def test_a_run_that_begins_late_has_the_rest_of_the_grid(transformer):
    """Picture to picture: ``set_begin_index`` cuts the grid, and the budget is of what is left."""
    scheduler = euler(steps=24)
    handle = adapter.enable(transformer, scheduler=scheduler, basis="linear", calls=CALLS)
    scheduler.set_begin_index(12)
    scheduler.timesteps, rest = scheduler.timesteps, scheduler.timesteps[12:]

    class Sliced:
        timesteps, step = rest, staticmethod(scheduler.step)

    loop(transformer, Sliced)
    assert handle.trace.calls == {"cond": CALLS, "uncond": CALLS}
    assert [step.index for step in handle.trace.branches["cond"].steps] == list(range(12))
    assert handle.trace.branches["cond"].steps[0].time == pytest.approx(float(scheduler.sigmas[12]))


@pytest.mark.parametrize("counts", [True, False])
def test_a_grid_on_a_gpu_is_read_once_a_run(counts):
    """Timesteps that a pipeline puts on the device; one more read a call where the scheduler does not count them."""

    class Scheduler:
        timesteps = put(torch.linspace(900, 100, STEPS))
        config, order, begin_index = {}, 1, None

    steps, waited = Scheduled(lambda: Scheduler), []
    with device_standin.device() as counter:
        for i, t in enumerate(Scheduler.timesteps.unbind()):
            if counts:
                Scheduler.step_index = i
            with waits(counter, waited):
                assert steps.locate(Call({"timestep": t})).i == i
    assert waited == ([2] + [0] * (STEPS - 1) if counts else [3] + [1] * (STEPS - 1))
    with device_standin.device() as counter:  # the control: number by number
        assert [float(t) for t in Scheduler.timesteps] == steps.track.times[:-1]
        assert counter.reads == STEPS


def test_a_plan_serves_a_pipeline():
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    tiny.run(pipe)
    times = [float(sigma) for sigma in pipe.scheduler.sigmas]

    def run(seed, cache):
        with adapter.enabled(pipe, cache=cache):
            return tiny.run(pipe, (seed,))

    plan = calibrate(run, times=times, calls=CALLS, seeds=range(2), made_for=adapter.key(pipe))
    reference = tiny.run(pipe, (9,))
    with adapter.enabled(pipe, plan=plan) as handle:
        planned = tiny.run(pipe, (9,))
    assert handle.trace.calls == {"call": CALLS} and 0 < relative(planned, reference) < 0.1
    with adapter.enabled(pipe, plan=plan), pytest.raises(ValueError, match="guidance_scale"):
        tiny.run(pipe, guidance_scale=1.5)
    with (
        adapter.enabled(pipe_of("flux"), cache=Forecaster("linear", steps=STEPS)),
        pytest.raises(ValueError, match="one branch"),
    ):
        PIPELINES["flux"].run(pipe_of("flux"))


def test_a_plan_knows_every_strength_of_guidance():
    """Qwen-Image guides by ``true_cfg_scale``; its ``guidance_scale`` is for distilled networks."""
    tiny, pipe = PIPELINES["qwen-image"], pipe_of("qwen-image")
    tiny.run(pipe)
    times = tuple(float(sigma) for sigma in pipe.scheduler.sigmas)
    plan = Plan(times, tuple(range(0, STEPS, 2)), made_for=adapter.key(pipe, true_cfg_scale=3.0))
    with adapter.enabled(pipe, plan=plan) as handle:
        tiny.run(pipe)
    assert handle.trace.calls["cond"] == STEPS // 2
    with adapter.enabled(pipe, plan=plan), pytest.raises(ValueError, match=r"true_cfg_scale: plan 3\.0, run 2\.0"):
        tiny.run(pipe, true_cfg_scale=2.0)
    assert adapter.key(pipe)["true_cfg_scale"] == 4.0  # the call's default
    with pytest.raises(ValueError, match=r"strengths must be among guidance_scale, true_cfg_scale, got guidance$"):
        adapter.key(pipe, guidance=3.0)


def test_what_is_refused():
    pipe = pipe_of("flux2")
    unet = object.__new__(diffusers.UNet2DConditionModel)
    torch.nn.Module.__init__(unet)
    with pytest.raises(TypeError, match="pipe_or_transformer: UNet2DConditionModel is a UNet"):
        adapter.enable(unet, steps=STEPS)
    with pytest.raises(TypeError, match="no transformer"):
        adapter.enable(object())
    with pytest.raises(ValueError, match="adaptive_guidance"):
        adapter.enable(pipe, adaptive_guidance=True)
    with pytest.raises(ValueError, match="calls must be >= 1"):
        adapter.enable(pipe, calls=0)
    with pytest.raises(ValueError, match="cache: give it alone"):
        adapter.enable(pipe, cache=Forecaster("linear", steps=STEPS), interval=3)
    with pytest.raises(ValueError, match="level must be among velocity, last_block, got 'block'"):
        adapter.enable(pipe, level="block")
    with pytest.raises(ValueError, match="plan are for velocities"):
        adapter.enable(pipe, level="last_block", plan="plan.json")
    other = object.__new__(diffusers.ZImageTransformer2DModel)
    torch.nn.Module.__init__(other)
    with pytest.raises(TypeError, match="level: ZImageTransformer2DModel has no norm_out behind "):
        adapter.enable(other, steps=STEPS, level="last_block")
    with pytest.raises(ValueError, match="belong to a transformer"):
        adapter.enable(pipe, steps=STEPS)
    with pytest.raises(ValueError, match="needs one of them"):
        adapter.enable(pipe.transformer)
    tiny = PIPELINES["flux"].build()
    tiny.transformer.enable_cache(diffusers.TaylorSeerCacheConfig())
    with pytest.raises(TypeError, match="disable_cache"):
        adapter.enable(tiny)
    tiny.transformer.disable_cache()
    tiny.transformer.compile()
    with pytest.raises(TypeError, match="level: 'last_block' leaves out the blocks, which are one graph"):
        adapter.enable(tiny, level="last_block")


def test_wake_draws_what_is_zero():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    assert wake(layer).weight.any()
