"""cache-dit with our forecasts harms no run that works without: other calls, copies, other caches, trouble."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install 'forecache[cache-dit]'")

import cache_dit
import diffusers
from diffusers import FluxTransformer2DModel

from cache_dit_helpers import MASK, STEPS, N, always, denoise, masked, schedule, tiny, transformer
from forecache_adapters import cache_dit as adapter
from forecache_adapters.attach import Worn, attached
from forecache_adapters.cache_dit import Config, Forecasts
from forecache_adapters.cache_dit.calls import Calls
from forecache_adapters.others import cache_on, count_skipped, counters
from forecache_lab.generators.reference.tiny_diffusers import slow, wake

torch.set_num_threads(1)


def off(what: str):
    return pytest.warns(UserWarning, match=f"off for the rest of this run: .*{what}")


# --- requests that are not the schedule's -----------------------------------------------------------------------------
def test_two_branches_without_separate_guidance_are_computed():
    """FLUX with ``true_cfg_scale``: one history would hold both."""
    one = tiny("flux")
    pipe = one.build()
    bare = one.run(pipe, (0,), N)
    handle = adapter.enable(pipe, masked(one, enable_separate_cfg=False))
    for _ in range(2):
        with off("enable_separate_cfg=True"):
            assert torch.equal(one.run(pipe, (0,), N), bare)
        assert any("two calls at one timestep" in note for note in handle.trace.notes) and handle.nbytes == 0
    single = one.run(pipe, (0,), N, true_cfg_scale=1.0)
    assert not handle.trace.notes and not torch.equal(single, bare), "a run with one call a step is cached again"
    assert sum(trace.forecast for trace in handle.trace.branches.values()) == MASK.count(0) * len(handle.trace.branches)


def test_guidance_that_begins_within_a_run_is_not_served_from_the_other_branch():
    network = transformer()
    bare = denoise(network, lambda i: i >= 12)
    with adapter.enabled(network, schedule()) as handle, off("two calls at one timestep"):
        served = denoise(network, lambda i: i >= 12)
    assert torch.dist(served, bare) < 0.02 * bare.norm() and handle.trace.notes


def test_a_third_branch_and_a_first_that_is_left_out_switch_off():
    network = transformer()
    bare = denoise(network, always)

    def three(**given):
        out = network(**given)
        if torch.equal(given["encoder_hidden_states"], three.second):
            network(**{**given, "encoder_hidden_states": 2 * three.second})
        return out

    three.second = -torch.randn(1, 16 * 4 + 8 * 16, generator=torch.Generator().manual_seed(1))[:, 64:].view(1, 8, 16)
    with adapter.enabled(network, schedule(separate_cfg=True)) as handle, off("three calls at one timestep"):
        assert torch.equal(denoise(three, always), bare)
    assert handle.trace.notes
    first = dataclasses.replace(schedule(separate_cfg=True), cfg_compute_first=True, cfg_diff_compute_separate=False)
    bare = denoise(network, lambda i: i < 12)
    with adapter.enabled(network, first) as handle, off("cfg_compute_first"):
        served = denoise(network, lambda i: i < 12)
        assert torch.dist(served, bare) < 0.02 * bare.norm()


def test_a_solver_of_several_calls_a_step_is_computed():
    one = tiny("sd3")
    pipe = one.build()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    bare = one.run(pipe, (0,), N)
    with adapter.enabled(pipe, masked(one)), off("FlowMatchHeunDiscreteScheduler calls the network 2 times a step"):
        assert torch.equal(one.run(pipe, (0,), N), bare)


def test_the_same_asked_again_is_computed_and_changes_nothing():
    network = transformer()
    with adapter.enabled(network, schedule()) as handle:
        whole = denoise(network)
        assert torch.equal(denoise(lambda **given: (network(**given), network(**given))[0]), whole)
        assert not handle.trace.notes


def test_tiles_are_computed():
    network = transformer()

    def tiles(**given):
        other = {**given, "hidden_states": given["hidden_states"].flip(1)}
        return [(network(**given)[0] + network(**other)[0].flip(1)) / 2]

    bare = denoise(tiles)
    with adapter.enabled(network, schedule()) as handle, off("different latents"):
        assert torch.equal(denoise(tiles), bare) and handle.trace.notes


# --- another kind of call ---------------------------------------------------------------------------------------------
def shrink(i, x, text):
    """The batch, as where guidance ends for good."""
    if i == 0:
        return torch.cat([x, x.flip(1)]), torch.cat([text, -text])
    return (x[:1], text[:1]) if i == 14 else (x, text)


def reword(i, x, text):
    return (x, text.flip(1)) if i == 14 else (x, text)


def shorten(i, x, text):
    return (x, text[:, :5]) if i == 14 else (x, text)


@pytest.mark.parametrize("change", [shrink, reword, shorten])
def test_a_history_serves_its_own_kind_of_call(change):
    """Step 14 is forecast in the mask."""
    network = transformer()

    def run():
        return denoise(network, change=change)

    assert schedule().steps_computation_mask[14] == 0
    bare = run()
    with adapter.enabled(network, schedule()) as handle:
        served = run()
        (streams,) = handle.traces.values()
        assert served.shape == bare.shape and torch.dist(served, bare) < 0.02 * bare.norm()
        assert [step.kind for step in streams["calibrator"].steps][14] == "computed"
        assert any("step 14: a new history begins: another" in note for note in handle.trace.notes)
        assert torch.equal(run(), served)


def test_control_cache_dit_alone_serves_another_kind_of_call():
    network = transformer()
    config = cache_dit.TaylorSeerCalibratorConfig()
    cache_dit.enable_cache(network, cache_config=schedule(), calibrator_config=config)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        denoise(network, change=shrink)
    cache_dit.disable_cache(network)


def test_guidance_that_ends_by_a_callback():
    """SD3's batch of both branches becomes one of the condition alone."""
    one = tiny("sd3")
    pipe = one.build()

    def end(pipe, i, t, given):
        if i != 5:
            return {}
        pipe._guidance_scale = 0.0
        return {name: each.chunk(2)[-1] for name, each in given.items() if name != "latents"}

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    run = lambda: one.run(pipe, (0,), N, callback_on_step_end=end, callback_on_step_end_tensor_inputs=names)  # noqa: E731
    bare = run()
    with adapter.enabled(pipe, masked(one)) as handle:
        served = run()
    assert served.shape == bare.shape and torch.dist(served, bare) < 0.02 * bare.norm()
    assert any("step 6: a new history begins: another hidden_states" in note for note in handle.trace.notes)


def controlled(one):
    """FLUX with a ControlNet that matters."""
    base = one.build()
    torch.manual_seed(5)
    control = slow(wake(diffusers.FluxControlNetModel(**one.network)))
    with torch.no_grad():
        for name, each in control.named_parameters():
            if "controlnet_" in name:
                each.mul_(20)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0, **blocks,
    )  # fmt: skip
    kind = diffusers.FluxControlNetPipeline
    given = {"transformer": base.transformer, "scheduler": base.scheduler, "vae": wake(vae), "controlnet": control}
    pipe = kind(**given, **dict.fromkeys(name for name in kind._get_signature_keys(kind)[0] if name not in given))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_controlnet_reaches_every_block():
    """cache-dit runs a list of blocks as one, so that it alone leaves out all residuals but the first."""
    one = dataclasses.replace(tiny("flux"), call={}, per_step=1)
    pipe = controlled(one)
    size = pipe.vae_scale_factor * 8
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def run(end):
        draw = torch.Generator().manual_seed(0)
        return pipe(
            control_image=hint, height=size, width=size, num_inference_steps=N, control_guidance_end=end,
            output_type="latent", return_dict=False, generator=draw, **one.inputs((0,)),
        )[0]  # fmt: skip

    bare = {end: run(end) for end in (1.0, 0.3)}
    with adapter.enabled(pipe, masked(one)) as handle:
        assert all(torch.equal(run(end), bare[end]) for end in bare)
        assert "computed where there is controlnet_block_samples" in handle.notes[0]
    cache_dit.enable_cache(pipe, cache_config=masked(one, steps_computation_mask=[1] * N))
    assert torch.dist(run(1.0), bare[1.0]) > 0.05 * bare[1.0].norm(), "once this fails, the comparison may go"
    cache_dit.disable_cache(pipe)


def test_where_a_controlnet_ends_a_history_begins():
    network = transformer()
    draw = torch.Generator().manual_seed(2)
    residuals = [torch.randn(1, 16, 32, generator=draw) for _ in range(2)]

    def run():
        return denoise(network, more=lambda i: {"controlnet_block_samples": residuals if i < 14 else None})

    bare = run()
    with adapter.enabled(network, schedule()) as handle:
        served = run()
        (streams,) = handle.traces.values()
        kinds = {step.index: step.kind for step in streams["calibrator"].steps}
        assert min(i for i in kinds if i) == 14 and kinds[14] == "computed", "the mask would forecast it"
        assert "forecast" in kinds.values() and torch.dist(served, bare) < 0.02 * bare.norm()
        assert torch.equal(run(), served)


# --- which step of which run ------------------------------------------------------------------------------------------
def placed(calls, times, states=None, indices=None, total=6):
    states = states or [torch.full((2,), float(i)) for i in range(len(times))]
    found = []
    for i, time in enumerate(times):
        fresh, lost = calls.place(time, states[i], None if indices is None else indices[i], total)
        found.append((calls.step, calls.request, fresh, lost))
    return found


def test_steps_are_told_by_timestep_and_latents():
    x = [torch.zeros(2), torch.zeros(2), torch.ones(2), torch.ones(2)]
    assert placed(Calls(False), [9.0, 9.0, 8.0, 8.0], x) == [
        (0, 0, True, ""), (0, 1, False, ""), (1, 0, False, ""), (1, 1, False, ""),
    ]  # fmt: skip
    assert "different latents" in placed(Calls(False), [9.0, 9.0])[1][3]
    rounded = placed(Calls(True), [9.0, 9.0, 8.0], indices=[-1, 1, 2])
    assert [each[0] for each in rounded] == [0, 1, 2] and not any(each[3] for each in rounded)
    copied = placed(Calls(True), [9.0, 8.0, 7.0], indices=[-1, -1, -1])
    assert [each[0] for each in copied] == [0, 1, 2], "a pipeline that steps a copy of its scheduler"


def test_runs_are_told_from_one_another():
    run = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert [each[2] for each in placed(Calls(False), run * 2)] == [True, *[False] * 5] * 2
    longer = placed(Calls(False), [*run, 0.5, 0.2, *run])
    assert "num_inference_steps=6" in longer[6][3] and "num_inference_steps=6" in longer[7][3] and longer[8][2]
    broken = placed(Calls(False), [*run[:3], *run])
    assert broken[3][:3] == (0, 0, True) and not any(each[3] for each in broken)
    assert "turn back" in placed(Calls(True), [*run[:3], *run])[3][3], "somebody else's call within the pipeline's"
    turns = placed(Calls(False), [6.0, 5.0, 6.0, 4.0, 5.0, 3.0])  # one run a step before the other
    assert [each[3] for each in turns[3::2]] == ["two runs take turns"] * 2
    calls = Calls(False)
    placed(calls, [6.0, 5.0, 2.0])
    assert calls.jumped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_timesteps(dtype):
    """100 steps of a shifted schedule in half precision, of which the scheduler knows the index."""
    one, steps = dataclasses.replace(tiny("flux"), call={"height": 64, "width": 64}, per_step=1), 100
    pipe = one.build()
    pipe.scheduler = type(pipe.scheduler)(shift=9.0)
    pipe.transformer.to(dtype)
    inputs = {name: each.to(dtype) for name, each in one.inputs((0,)).items() if "negative" not in name}
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep"])), with_kwargs=True
    )
    run = lambda: pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent",  # noqa: E731
                       return_dict=False, height=64, width=64, **inputs)[0]  # fmt: skip
    bare = run()
    hook.remove()
    assert dtype == torch.float16 or len(set(seen)) < steps, "control: timesteps collide"
    mask = [1] * 4 + [0, 1] * 47 + [1, 1]
    config = dataclasses.replace(masked(one), num_inference_steps=steps, steps_computation_mask=mask)
    with adapter.enabled(pipe, config) as handle:
        assert torch.dist(run().float(), bare.float()) < 0.05 * bare.float().norm()
        served = {(trace.computed, trace.forecast) for trace in handle.trace.branches.values() if trace.steps}
        assert served == {(mask.count(1), mask.count(0))} and not handle.trace.notes


@pytest.mark.parametrize("steps", [20, 40])
def test_a_run_of_another_length_harms_neither_itself_nor_the_next(steps):
    network = transformer()
    bare = denoise(network, steps=steps, of=steps)
    with adapter.enabled(network, schedule()) as handle:
        whole = denoise(network)
        if steps > STEPS:
            with off("num_inference_steps=28, but the run goes on"):
                served = denoise(network, steps=steps, of=steps)
        else:
            served = denoise(network, steps=steps, of=steps)
        assert torch.dist(served, bare) < 0.02 * bare.norm()
        assert torch.equal(denoise(network), whole) and not handle.trace.notes
    one = tiny("sd3")
    pipe = one.build()
    with adapter.enabled(pipe, masked(one)) as handle:
        one.run(pipe, (0,), N - 2)
        assert f"num_inference_steps={N}, but the run had {N - 2} steps" in handle.trace.notes


def test_two_runs_that_take_turns_on_one_transformer():
    network = transformer()
    alone = [denoise(network, seed=seed) for seed in (1, 2)]
    with adapter.enabled(network, schedule()), pytest.warns(UserWarning, match="forecache is off"):
        threads, found, baton = [], {}, threading.Condition()
        turn = [0]

        def work(k):
            def mine(i, x, text):
                with baton:
                    turn[0] = 1 - k if i else turn[0]
                    baton.notify_all()
                    baton.wait_for(lambda: turn[0] == k or done[1 - k], 30)
                return x, text

            found[k] = denoise(network, seed=1 + k, change=mine)
            with baton:
                done[k] = True
                baton.notify_all()

        done = [False, False]
        for k in range(2):
            threads.append(threading.Thread(target=work, args=(k,)))
            threads[-1].start()
        for each in threads:
            each.join(120)
    assert all(torch.equal(found[k], alone[k]) for k in range(2))


# --- values that no forecast is made of -------------------------------------------------------------------------------
def test_a_value_that_is_not_finite_ends_the_history():
    ours = Forecasts(Config(basis="linear", history=3))
    good, bad = torch.ones(1, 4), torch.full((1, 4), float("nan"))
    for value in (good, 2 * good, bad):
        ours.mark_step_begin()
        ours.update(value)
    assert ours.lost and ours.nbytes == 0 and "can be no snapshot" in ours.trace.notes[-1]
    ours.mark_step_begin()
    ours.update(5 * good)
    ours.mark_step_begin()
    assert not ours.lost and torch.equal(ours.approximate(), 5 * good)
    ours.mark_step_begin()
    ours.update(torch.ones(2, 4))
    assert "shape" in ours.trace.notes[-1] and ours.nbytes


def test_a_network_that_overflows_once_goes_on():
    network = transformer()
    at = []

    def spoil(module, args, output):
        at.append(0)
        return tuple(each * float("nan") for each in output) if len(at) == 11 else output

    mask = schedule().steps_computation_mask
    block = network.transformer_blocks[1]
    with adapter.enabled(network, schedule()) as handle:
        hook = block.register_forward_hook(spoil)
        denoise(network)
        hook.remove()
        (streams,) = handle.traces.values()
        spoiled = [i for i, compute in enumerate(mask) if compute][10]
        assert f"step {spoiled}: the history ends" in " ".join(streams["calibrator"].notes)
        kinds = [step.kind for step in streams["calibrator"].steps]
        assert kinds[spoiled + 1 : spoiled + 2] == ["computed"]
        assert torch.isfinite(denoise(network)).all()


def test_times_that_end_before_the_run():
    ours = Forecasts(Config(basis="linear", history=3, times=[1.0, 0.9, 0.5]))
    for k in range(3):
        ours.mark_step_begin()
        ours.update(torch.full((1, 2), float(k)))
    ours.mark_step_begin()
    assert ours.lost and ours.time == 3.0 and "the clock is the step index" in ours.trace.notes[-1]


def test_a_crash_of_cache_dit_does_not_reach_the_user(monkeypatch):
    network = transformer()
    bare = denoise(network)
    with adapter.enabled(network, schedule()) as handle:
        monkeypatch.setattr(handle._manager, "get_Bn_buffer", lambda *_: None)
        with off("cache-dit failed: AssertionError"):
            assert torch.dist(denoise(network), bare) < 0.02 * bare.norm()
        monkeypatch.undo()

        def fail(*_):
            raise ArithmeticError

        hook = network.transformer_blocks[1].register_forward_hook(fail)
        with pytest.raises(ArithmeticError):
            denoise(network)
        hook.remove()


# --- the attachment ---------------------------------------------------------------------------------------------------
def rebuilt(pipe):
    return type(pipe)(**pipe.components)


def from_pipe(pipe):
    return type(pipe).from_pipe(pipe)


def pickled(pipe):
    return pickle.loads(pickle.dumps(pipe))


COPIES = [copy.copy, copy.deepcopy, rebuilt, from_pipe, pickled]


@pytest.mark.parametrize("name", ["flux", "wan", "dit"])
def test_copies_are_not_enabled(name):
    one = tiny(name)
    pipe = one.build()
    bare = one.run(pipe, (0,), N)
    names = set(vars(pipe)), set(vars(pipe.transformer)), set(pipe.transformer.state_dict()), type(pipe)
    adapter.enable(pipe, masked(one))
    cached = one.run(pipe, (0,), N)
    for made in COPIES:
        other = made(pipe)
        other.set_progress_bar_config(disable=True)
        assert type(other) is names[3] and attached(other) is None, made
        assert torch.equal(one.run(other, (0,), N), bare), made
        adapter.disable(other)
        assert torch.equal(one.run(pipe, (0,), N), cached), made
    other = copy.deepcopy(pipe)
    adapter.enable(other, masked(one))
    assert torch.equal(one.run(other, (0,), N), cached)
    adapter.disable(pipe)
    assert torch.equal(one.run(pipe, (0,), N), bare) and torch.equal(one.run(other, (0,), N), cached)
    adapter.disable(other)
    assert torch.equal(one.run(other, (0,), N), bare)
    assert names == (set(vars(pipe)), set(vars(pipe.transformer)), set(pipe.transformer.state_dict()), type(pipe))


@pytest.mark.parametrize("made", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_a_transformer_are_not_enabled(made):
    network = transformer()
    bare = denoise(network)
    with adapter.enabled(network, schedule()):
        cached = denoise(network)
        other = made(network)
        assert type(other) is FluxTransformer2DModel and attached(other) is None
        assert not [name for name in vars(other) if name.startswith(("_context", "_is_cached", "_original"))]
        assert torch.equal(denoise(other), bare) and torch.equal(denoise(network), cached)
        adapter.disable(other)
        assert torch.equal(denoise(network), cached)


def test_a_pipeline_is_apart_from_others_of_its_class_in_any_order():
    one = tiny("sd3")
    pipes = [one.build() for _ in range(3)]
    bare = one.run(pipes[0], (0,), N)
    for pipe in pipes[:2]:
        adapter.enable(pipe, masked(one))
    cached = [one.run(pipe, (0,), N) for pipe in pipes[:2]]
    assert torch.equal(*cached) and torch.equal(one.run(pipes[2], (0,), N), bare)
    cache_dit.enable_cache(pipes[2], cache_config=masked(one))
    assert torch.equal(one.run(pipes[1], (0,), N), cached[1])
    adapter.disable(pipes[0])
    assert torch.equal(one.run(pipes[0], (0,), N), bare) and torch.equal(one.run(pipes[1], (0,), N), cached[1])
    cache_dit.disable_cache(pipes[2])
    assert torch.equal(one.run(pipes[1], (0,), N), cached[1])
    adapter.disable(pipes[1])
    assert all(torch.equal(one.run(pipe, (0,), N), bare) for pipe in pipes)


def test_cache_dits_own_disable_takes_ours_off():
    one = tiny("sd3")
    pipe = one.build()
    bare = one.run(pipe, (0,), N)
    handle = adapter.enable(pipe, masked(one))
    cache_dit.disable_cache(pipe)
    assert torch.equal(one.run(pipe, (0,), N), bare)
    adapter.disable(pipe)
    assert attached(pipe) is None and torch.equal(one.run(pipe, (0,), N), bare) and not handle.nbytes
    with adapter.enabled(pipe, masked(one)):
        assert not torch.equal(one.run(pipe, (0,), N), bare)


def test_a_kept_handle_keeps_its_trace_and_no_model():
    one = tiny("flux")
    pipe = one.build()
    handle = adapter.enable(pipe, masked(one))
    one.run(pipe, (0,), N)
    network = weakref.ref(pipe.transformer)
    adapter.disable(pipe)
    assert len(handle.trace.branches) == 4 * len(handle.traces), "readable when it is off"
    adapter.enable(pipe, masked(one))
    handle = attached(pipe)
    one.run(pipe, (0,), N)
    del pipe
    gc.collect()
    assert network() is None and handle.trace.branches and not handle.nbytes


def test_other_pipelines_with_the_transformer_run_it_without_a_cache():
    """Nested in a callback, and in another thread."""
    one = tiny("flux")
    pipe = one.build()
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    bare = one.run(pipe, (0,), N), one.run(other, (3,), N)
    with adapter.enabled(pipe, masked(one)) as handle:
        cached, found = one.run(pipe, (0,), N), []

        def nested(pipe, i, t, given):
            if i == 4:
                found.append(one.run(other, (3,), N))
            return given

        with off("turn back"):
            served = one.run(pipe, (0,), N, callback_on_step_end=nested)
        assert torch.equal(found[0], bare[1]) and torch.dist(served, bare[0]) < 0.02 * bare[0].norm()
        beside = threading.Thread(target=lambda: found.append(one.run(other, (3,), N)))
        beside.start()
        assert torch.equal(one.run(pipe, (0,), N), cached)
        beside.join()
        assert torch.equal(found[1], bare[1]) and not handle.trace.notes


def test_an_exception_in_a_callback_leaves_nothing():
    one = tiny("flux")
    pipe = one.build()

    def fail(pipe, i, t, given):
        if i == 5:
            raise ArithmeticError
        return given

    with adapter.enabled(pipe, masked(one)) as handle:
        cached = one.run(pipe, (0,), N)
        with pytest.raises(ArithmeticError):
            one.run(pipe, (0,), N, callback_on_step_end=fail)
        assert handle.nbytes == 0 and torch.equal(one.run(pipe, (0,), N), cached)


def test_an_interrupt_at_the_very_beginning_of_a_call_does_not_switch_off_the_next():
    one = tiny("sd3")
    pipe = one.build()
    with adapter.enabled(pipe, masked(one)) as handle:
        cached = one.run(pipe, (0,), N)
        finished = (lambda: sys._getframe())()
        handle._callers.append((finished, threading.get_ident()))  # as it is left between two instructions
        assert torch.equal(one.run(pipe, (0,), N), cached) and not handle.trace.notes and not handle._callers


# --- others -----------------------------------------------------------------------------------------------------------
def test_another_cache_is_refused_by_name_in_either_order():
    one = tiny("flux")
    pipe = one.build()
    adapter.enable(pipe, masked(one))
    assert cache_on(pipe) == cache_on(pipe.transformer) == "forecache_adapters.cache_dit"
    with pytest.raises(RuntimeError, match=r"forecache_adapters\.cache_dit cache is enabled on it"):
        adapter.enable(pipe.transformer, masked(one))
    with pytest.raises(RuntimeError, match="enable_cache: cache-dit is on this transformer, through forecache"):
        pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig())
    adapter.disable(pipe)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig())
    assert cache_on(pipe) == "diffusers' own"
    with pytest.raises(RuntimeError, match="diffusers' own cache is enabled"):
        adapter.enable(pipe, masked(one))
    pipe.transformer.disable_cache()
    cache_dit.enable_cache(pipe, cache_config=masked(one))
    assert cache_on(pipe) == cache_on(pipe.transformer) == "cache-dit"
    for target in (pipe, pipe.transformer):
        with pytest.raises(RuntimeError, match="cache-dit cache is enabled on it"):
            adapter.enable(target, masked(one))
    cache_dit.disable_cache(pipe)
    other = Worn(pipe.transformer, Calls(True), {})
    other.attach()
    with pytest.raises(RuntimeError, match=r"target: forecache_adapters\.cache_dit cache is enabled"):
        adapter.enable(pipe, masked(one))
    other.detach()
    assert cache_on(pipe) is None
    adapter.enable(pipe, masked(one))
    adapter.disable(pipe)


class LayerCounter:
    """Counts as Chipmunk's does, which its sparse layers hold and ask."""

    def __init__(self, layers: int, each: int) -> None:
        self.num_layers, self.num_submodules_per_layer, self.seen = layers, each, 0

    def increment(self):
        self.seen += 1


def test_chipmunks_counter_sees_skipped_steps():
    network = transformer()
    counter = LayerCounter(4, 2)
    assert not counters(network.modules())
    for block in (*network.transformer_blocks, *network.single_transformer_blocks):
        block.sparse_mlp = SimpleNamespace(layer_counter=counter)
    found = counters(network.modules())
    assert found == [counter]
    count_skipped(found)
    assert counter.seen == 8, "as many as a call of the network"
    with pytest.raises(RuntimeError, match="Chipmunk's layers count"):
        adapter.enable(network, schedule())
