"""Attaching to ComfyUI's models never harms: what changes in a run, what calls the network otherwise, who shares."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import comfyui_helpers
import comfyui_standin
from comfyui_helpers import LINEAR, NEGATIVE, POSITIVE, entry, go
from forecache_adapters.comfyui import calls, conflicts, patch, ranges, report, run, trace_of
from forecache_adapters.comfyui import model as models
from forecache_adapters.settings import Settings
from upstream_helpers import relative

comfy, snapshots = comfyui_helpers.comfy, comfyui_helpers.snapshots


def untouched_and_served(comfy, model, exact=1e-5, **options):
    """``interval=1`` gives what the model gives, with as many calls; returns a served run's trace, exact too."""
    network = model.model.diffusion_model
    network.calls.clear()
    reference = go(comfy, model, **options)
    plain = list(network.calls)
    network.calls.clear()
    assert torch.equal(go(comfy, patch(model, interval=1), **options), reference)
    assert network.calls == plain
    network.calls.clear()
    served = patch(model, **LINEAR)
    out = go(comfy, served, **options)
    assert out.shape == reference.shape and relative(out, reference) < exact
    assert len(network.calls) < len(plain)  # something was forecast
    return trace_of(served)


def noted(trace):
    return report.summary(trace)


# --- another kind of call ---------------------------------------------------------------------------------------------
def at_step(model, step, change):
    """A node's function around the conditions, which changes them from a step on."""
    count = []

    def around(executor, network, conds, *rest):
        count.append(1)
        return executor(network, change(conds) if (len(count) - 1) % 20 >= step else conds, *rest)

    new = model.clone()
    new.add_wrapper_with_key("calc_cond_batch", "test", around)
    return new


def prompt(conds):
    (each,) = conds[0]
    cond = copy.copy(each["model_conds"]["c_crossattn"])
    cond.cond = cond.cond * -3
    return [[{**each, "model_conds": {**each["model_conds"], "c_crossattn": cond}}], *conds[1:]]


def prompt_in_place(conds):
    seen = conds[0][0]["model_conds"]["c_crossattn"].cond
    if seen[0, 0, 0] > 0:
        seen.mul_(-3)
    return conds


def length(conds):
    """As many values again, which the network does not read."""
    (each,) = conds[0]
    cond = copy.copy(each["model_conds"]["c_crossattn"])
    cond.cond = torch.cat([cond.cond * -3, cond.cond], 1)
    return [[{**each, "model_conds": {**each["model_conds"], "c_crossattn": cond}}], None]


@pytest.mark.parametrize("change", [prompt, prompt_in_place])
def test_a_condition_that_changes_begins_a_history(comfy, change, monkeypatch):
    def fresh():
        return at_step(comfy.model()[0], 7, change)

    def positive():
        return {"positive": [entry(1.0, -2.0, 0.5, 3.0)]}  # changed in place by one of them

    reference = go(comfy, fresh(), **positive())
    assert torch.equal(go(comfy, patch(fresh(), interval=1), **positive()), reference)
    served = patch(fresh(), **LINEAR)
    assert relative(go(comfy, served, **positive()), reference) < 1e-5
    assert trace_of(served).notes == ["step 7: cond #2 begins in place of cond: another c_crossattn"]
    assert sum(trace_of(served).calls.values()) < 30
    monkeypatch.setattr(run, "kind_of", lambda *_: {})
    assert relative(go(comfy, patch(fresh(), **LINEAR), **positive()), reference) > 1e-3  # the control


def test_a_condition_of_another_length_and_one_that_goes(comfy):
    model, _ = comfy.model()
    trace = untouched_and_served(comfy, at_step(model, 7, length))
    assert "another c_crossattn" in noted(trace)


def test_a_lora_whose_strength_jumps_begins_a_history(comfy, monkeypatch):
    model, _ = comfy.model()
    hooked = [entry(1.0, -2.0, 0.5, 3.0, hooks=comfy.hooks((0.0, 1.0), (0.4, -0.5), (0.7, 2.0)))]
    trace = untouched_and_served(comfy, model, positive=hooked)
    assert noted(trace).count("another strengths") == 2
    monkeypatch.setattr(ranges, "hooks", lambda group: [])
    reference = go(comfy, model, positive=hooked)
    assert relative(go(comfy, patch(model, **LINEAR), positive=hooked), reference) > 1e-3  # the control


def closes_over(sigma_start, sigma_end):
    def scaled(out, transformer_options):
        return 4 * out if sigma_end <= float(transformer_options["sigmas"][0]) <= sigma_start else out

    return scaled


def bound(sigma_start, sigma_end):
    return partial(lambda out, options, sigma_start, sigma_end: closes_over(sigma_start, sigma_end)(out, options),
                   sigma_start=sigma_start, sigma_end=sigma_end)  # fmt: skip


class Attention:
    """As attention patches of adapters for pictures keep their ranges."""

    def __init__(self, sigma_start, sigma_end):
        self.kwargs = [{"weight": 4.0, "sigma_start": sigma_start, "sigma_end": torch.tensor(sigma_end)}]

    def __call__(self, out, transformer_options):
        sigma = float(transformer_options["sigmas"][0])
        return 4 * out if self.kwargs[0]["sigma_end"] <= sigma <= self.kwargs[0]["sigma_start"] else out


@pytest.mark.parametrize("made", [closes_over, bound, Attention])
def test_a_patch_with_a_range_of_sigmas_begins_a_history(comfy, made, monkeypatch):
    model, _ = comfy.model()
    patched = model.clone()
    patched.model_options["transformer_options"]["patches"] = {"output": [made(0.8, 0.5)]}
    trace = untouched_and_served(comfy, patched)
    assert noted(trace).count("another patches at work") == 4  # begins and ends, for two entries
    monkeypatch.setattr(ranges, "patches", lambda *_: [])
    assert relative(go(comfy, patch(patched, **LINEAR)), go(comfy, patched)) > 1e-3  # the control


def test_a_patch_that_is_put_in_within_a_run_begins_a_history(comfy, monkeypatch):
    """By a node around the conditions: at some steps it hands on options of its own, as skip-layer guidance does."""
    model, _ = comfy.model()
    count = []

    def around(executor, network, conds, x, t, options):
        count.append(1)
        if (len(count) - 1) % 20 >= 9:
            patches = {"patches": {"output": [lambda out, _: 4 * out]}}
            options = {**options, "transformer_options": {**options["transformer_options"], **patches}}
        return executor(network, conds, x, t, options)

    model.add_wrapper_with_key("calc_cond_batch", "test", around)
    served = patch(model, **LINEAR)
    reference = go(comfy, model)
    assert relative(go(comfy, served), reference) < 1e-5
    assert "step 9: cond #2 begins in place of cond: another options" in trace_of(served).notes
    monkeypatch.setattr(run, "kind_of", lambda *_: {})
    assert relative(go(comfy, patch(model, **LINEAR)), reference) > 1e-3  # the control


def either(one, other, *args):
    mine, theirs = one(*args), other(*args)
    return theirs if mine is None else mine


def test_two_controlnets_that_take_turns(comfy):
    """Their changes come at two steps in a row, or at one."""
    model, _ = comfy.model()
    for first_end, second_start in ((0.5, 0.5), (0.45, 0.55)):
        one, two = comfy.control(0.0, first_end), comfy.control(second_start, 1.0)
        one.previous_controlnet = two
        one.get_control = partial(either, one.get_control, two.get_control)
        untouched_and_served(comfy, model, positive=[entry(1.0, -2.0, 0.5, 3.0, control=one)])


def test_a_controlnet_runs_where_the_network_does_whatever_the_schedule_said(comfy):
    """Its entry was going to be forecast, and is computed: the network gives what nothing is forecast from."""
    model, network = comfy.model()
    hint = comfy.control(0.0, 1.0)
    broken = iter(range(1000))
    network.register_forward_hook(lambda module, args, out: out * (float("nan") if next(broken) == 4 else 1.0))
    served = patch(model, **LINEAR)
    go(comfy, served, positive=[entry(1.0, -2.0, 0.5, 3.0, control=hint)], cfg=1.0)
    assert hint.asked == len(network.calls) == len(network.controls) < 20
    assert all(each is not None for each in network.controls) and "NaN" in noted(trace_of(served))


def test_a_controlnet_behind_a_nodes_function_is_there_at_every_step(comfy):
    model, _ = comfy.model()
    seen, hint = [], comfy.control(0.0, 1.0)

    def wrapper(apply_model, given):
        seen.append(given["c"].get("control"))
        return apply_model(given["input"], given["timestep"], **given["c"])

    model.model_options["model_function_wrapper"] = wrapper
    untouched_and_served(comfy, model, positive=[entry(1.0, -2.0, 0.5, 3.0, control=hint)])
    assert all(each is None or isinstance(each, dict) for each in seen) and {} in seen


def shrinking(model, x, sigmas, extra_args=None, callback=None, **options):
    """A sampler that goes on with other latents from the middle on."""
    for i in range(len(sigmas) - 1):
        if i == len(sigmas) // 2:
            x = shrinking.to(x)
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


@pytest.mark.parametrize(
    "to", [lambda x: x[:1], lambda x: x[..., :4], lambda x: x.repeat(1, 1, 2, 1), lambda x: x.double()]
)
def test_latents_of_another_form_begin_a_history(comfy, to):
    model, _ = comfy.model()
    shrinking.to = to
    trace = untouched_and_served(comfy, model, sampler=shrinking)
    assert noted(trace).count("another state") == 2


def test_only_one_history_of_an_entry_is_held(comfy, snapshots):
    model, _ = comfy.model()
    held, count = [], iter(range(1000))

    def longer(conds):
        (each,) = conds[0]
        cond = copy.copy(each["model_conds"]["c_crossattn"])
        cond.cond = torch.cat([cond.cond] * (1 + next(count) // 3), 1)
        return [[{**each, "model_conds": {"c_crossattn": cond}}], None]

    served = patch(at_step(model, 0, longer), **LINEAR)
    go(comfy, served, callback=lambda i: held.append(snapshots()), cfg=1.0)
    assert max(held) <= 2 and len(trace_of(served).branches) > 5


# --- several calls a step ---------------------------------------------------------------------------------------------
def tiled(parts=2, made=lambda x: x, sizes=None):
    """A node's function that calls the network once a tile."""

    def wrapper(apply_model, given):
        step = next(wrapper.steps)
        cut = sizes(step) if sizes else parts
        tiles = [made(each) for each in given["input"].chunk(cut, dim=3)]
        return torch.cat([apply_model(each, given["timestep"], **given["c"]) for each in tiles], 3)

    wrapper.steps = iter(range(10**6))
    return wrapper


def with_function(model, function):
    new = model.clone()
    new.model_options["model_function_wrapper"] = function
    return new


@pytest.mark.parametrize("layout", [True, False])
def test_tiles_have_histories_of_their_own(comfy, layout):
    model, _ = comfy.model(bend=0.0)
    comfy.together[:] = [lambda: layout]
    trace = untouched_and_served(comfy, with_function(model, tiled(4)))
    assert {"cond", "cond part 2", "cond part 4", "uncond part 3"} <= set(trace.branches) and len(trace.branches) == 8
    assert trace.notes == ["the network is called several times a step for parts of a batch: each has its own history"]


def test_tiles_in_bent_networks_are_forecast_as_the_whole_is(comfy):
    """The network sees a pixel alone, so that tiles give what the whole gives."""
    model, network = comfy.model(bend=1.0)
    settings = {"basis": "linear", "calls": 10}
    out = go(comfy, patch(with_function(model, tiled()), **settings))
    assert len(network.calls) == 20
    whole = go(comfy, patch(model, **settings))
    assert relative(out, whole) < 0.02 and relative(out, go(comfy, model)) < 0.1


def test_tiles_that_cannot_be_told_apart_switch_it_off(comfy, monkeypatch):
    """Copies of another place at every step: nothing says which is which."""
    model, network = comfy.model(bend=1.0)
    turn = iter(range(10**6))

    def moved():
        def wrapper(apply_model, given):
            shift = next(turn) % 20 % 8
            rolled = given["input"].roll(shift, 3)
            out = [apply_model(each, given["timestep"], **given["c"]) for each in rolled.chunk(2, dim=3)]
            return torch.cat(out, 3).roll(-shift, 3)

        return with_function(model, wrapper)

    said = {"positive": [entry(0.1, -0.2, 0.1, 0.3)], "cfg": 1.0}  # little, so that the place makes the difference
    reference, settings = go(comfy, model, **said), {"basis": "linear", "calls": 10}
    drift = relative(go(comfy, patch(with_function(model, tiled()), **settings), **said), reference)
    network.calls.clear()
    served = patch(moved(), **settings)
    with pytest.warns(UserWarning, match="off from step 0 on: the network is called several times a step"):
        assert relative(go(comfy, served, **said), reference) < 1e-6
    assert len(network.calls) == 40 and "inputs of a node's own" in trace_of(served).notes[0]
    monkeypatch.setattr(run, "within", lambda x, batch: True)
    assert relative(go(comfy, patch(moved(), **settings), **said), reference) > 10 * drift  # the control


def test_tiles_in_another_order_begin_histories(comfy):
    model, _ = comfy.model(bend=1.0)
    count = iter(range(10**6))

    def wrapper(apply_model, given):
        tiles, late = given["input"].chunk(2, dim=3), next(count) % 20 >= 9
        out = [apply_model(each, given["timestep"], **given["c"]) for each in (tiles[::-1] if late else tiles)]
        return torch.cat(out[::-1] if late else out, 3)

    served = patch(with_function(model, wrapper), **LINEAR)
    assert relative(go(comfy, served), go(comfy, model)) < 0.05
    assert "step 9: cond part 2 #2 begins in place of cond part 2: another place" in trace_of(served).notes


class Odd:
    """In a node's options."""

    @property
    def __dict__(self):
        raise LookupError("nothing here")

    def __call__(self):
        pass


def test_what_cannot_be_compared_is_passed_through(comfy):
    model, _ = comfy.model(bend=1.0)
    strange = model.clone()
    strange.clone = lambda: strange  # which ComfyUI could not copy either
    strange.model_options["transformer_options"]["odd"] = Odd()
    reference = go(comfy, strange)
    served = patch(strange, basis="linear", calls=9)
    with pytest.warns(UserWarning, match="cannot be compared: LookupError"):
        assert torch.equal(go(comfy, served), reference)


def test_a_step_with_more_tiles_than_before_switches_it_off(comfy):
    model, _ = comfy.model()
    sizes = {"sizes": lambda step: 2 if step % 20 < 9 else 4}
    reference = go(comfy, with_function(model, tiled(**sizes)))
    served = patch(with_function(model, tiled(**sizes)), **LINEAR)
    with pytest.warns(UserWarning, match="off from step 10 on: cond was asked for 4 times in the last step and 2"):
        assert relative(go(comfy, served, cfg=1.0), go(comfy, model, cfg=1.0)) < 1e-5
    assert reference.isfinite().all()


def test_what_a_nodes_function_changes_is_seen(comfy, monkeypatch):
    """One call a step; what it is called with is another from a step on."""
    model, _ = comfy.model()
    count = iter(range(10**6))

    def wrapper(apply_model, given):
        factor = -2.0 if next(count) % 20 >= 8 else 1.0
        return apply_model(
            given["input"], given["timestep"], **{**given["c"], "c_crossattn": factor * given["c"]["c_crossattn"]}
        )

    trace = untouched_and_served(comfy, with_function(model, wrapper))
    assert noted(trace).count("another c_crossattn as called") == 2
    reference = go(comfy, with_function(model, wrapper))
    monkeypatch.setattr(run, "arguments", lambda *_: {})
    assert relative(go(comfy, patch(with_function(model, wrapper), **LINEAR)), reference) > 1e-3  # the control


def by_row(apply_model, given):
    """Each row by itself, under the names of all entries."""
    x, t, c = given["input"], given["timestep"], given["c"]
    rows = [slice(k, k + 1) for k in range(len(x))]
    return torch.cat([apply_model(x[k], t[k], **{**c, "c_crossattn": c["c_crossattn"][k]}) for k in rows])


def nameless(apply_model, given):
    """Options of its own: nobody knows for which entry it calls."""
    options = {**given["c"]["transformer_options"]}
    options.pop("uuids")
    return apply_model(given["input"], given["timestep"], **{**given["c"], "transformer_options": options})


def unknown(apply_model, given):
    options = {**given["c"]["transformer_options"]}
    options["uuids"] = ["another"] * len(options["uuids"])
    return apply_model(given["input"], given["timestep"], **{**given["c"], "transformer_options": options})


@pytest.mark.parametrize(
    ("function", "note"), [(by_row, "is no batch of 2 entries"), (nameless, ""), (unknown, "for no condition")]
)
def test_batches_that_are_none_are_passed_through(comfy, function, note):
    model, _ = comfy.model(bend=1.0)
    strange = with_function(model, function)
    reference = go(comfy, strange)
    for settings in ({"interval": 1}, {"basis": "linear", "calls": 9}):
        served = patch(strange, **settings)
        assert torch.equal(go(comfy, served), reference)
        assert note in noted(trace_of(served))


@pytest.mark.parametrize(("x", "t"), [((3, 2), (3,)), ((), ()), ((2, 2), (1,)), ((2, 2), (2, 5)), ((0, 2), (0,))])
def test_shapes_that_are_no_batch(x, t):
    with pytest.raises(calls.Unfollowed, match="is no batch of 2 entries"):
        calls.halves(torch.zeros(x), torch.zeros(t), 2)


def test_a_network_that_returns_another_shape_is_passed_through(comfy):
    """ComfyUI's own code cannot go on with it either; what it gets is the network's."""
    out = torch.zeros(2, 5)
    with pytest.raises(calls.Unfollowed, match=r"returns \(2, 5\)") as error:
        calls.part_of(out, torch.zeros(1, 4), 2, 0)
    assert error.value.output is out


def test_calls_outside_a_sampler_that_counts_are_passed_through():
    given = {"transformer_options": {"cond_or_uncond": [0], "uuids": [1]}}
    started = run.Run(Settings(interval=2), "euler", [1 - i / 20 for i in range(21)], None, dict)
    with pytest.warns(UserWarning, match="cannot be counted"):
        assert started.apply_model(lambda x, t, **_: x, 7, 7, **given) == 7
    assert started.apply_model(lambda x, t, **_: x, 8, 8, **given) == 8 and started.trace.calls == {"cond": 2}


# --- which step it is -------------------------------------------------------------------------------------------------
def restarting(model, x, sigmas, extra_args=None, callback=None, **options):
    """Goes three steps back in the middle of a run, without noise in between."""
    order = [*range(10), *range(7, len(sigmas) - 1)]
    for k, i in enumerate(order):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        after = sigmas[order[k + 1]] if k + 1 < len(order) else sigmas[-1]
        x = x + (x - denoised) / sigmas[i] * (after - sigmas[i])
    return x


def beside(model, x, sigmas, extra_args=None, callback=None, **options):
    """Calls the network at sigmas a third of a step beside the grid's."""
    for i in range(len(sigmas) - 1):
        sigma = sigmas[i] + 0.3 * (sigmas[i + 1] - sigmas[i])
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        x = x + (x - denoised) / sigma * (sigmas[i + 1] - sigmas[i])
    return x


def twice(model, x, sigmas, extra_args=None, callback=None, **options):
    """Two calls at the sigma of each step."""
    for i in range(len(sigmas) - 1):
        ones = x.new_ones(len(x))
        model(x, sigmas[i] * ones, **(extra_args or {}))
        denoised = model(x, sigmas[i] * ones, **(extra_args or {}))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


@pytest.mark.parametrize(("sampler", "step"), [(restarting, 10), (beside, 0), (twice, 1)])
@pytest.mark.parametrize("name", ["mine", "sample_euler"])
def test_a_step_that_is_not_where_the_count_says_switches_it_off(comfy, sampler, step, name, monkeypatch):
    model, network = comfy.model(bend=1.0)
    monkeypatch.setattr(sampler, "__name__", name)
    reference = go(comfy, model, sampler=sampler)
    calls, network.calls = len(network.calls), []
    served = patch(model, basis="linear", calls=10)
    with pytest.warns(UserWarning, match=f"off from step {step} on: sampler .* is at sigma"):
        out = go(comfy, served, sampler=sampler)
    assert len(network.calls) < calls and out.isfinite().all() if step == 10 else torch.equal(out, reference)
    assert torch.equal(go(comfy, patch(model, interval=1), sampler=sampler), reference)


GRIDS = {
    "linear": [1 - k / 15 for k in range(16)],
    "dense at the end": [14.6 * (1 - k / 15) ** 3 for k in range(16)],
    "dense at the beginning": [(1 - (k / 15) ** 2) for k in range(16)],
    "no zero": [1 - k / 20 for k in range(16)],
    "rising": [0.1 + k / 20 for k in range(16)],
}


@pytest.mark.parametrize("sampler", ["euler", "heun", restarting, beside, twice, shrinking])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", comfyui_standin.KINDS)
def test_any_sampler_on_any_grid_is_unharmed(sampler, grid, kind):
    """Of the stand-in; the same for those of ComfyUI itself stands beside its tests."""
    model, network = comfyui_standin.model(kind, bend=0.5)
    shrinking.to = lambda x: x[:1]
    options = {"sampler": sampler, "sigmas": GRIDS[grid]}
    reference = go(comfyui_standin, model, **options)
    plain, network.calls = network.calls, []
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        served = patch(model, interval=1)
        assert torch.equal(go(comfyui_standin, served, **options).nan_to_num(), reference.nan_to_num())
        assert network.calls == plain
        network.calls.clear()
        served = patch(model, basis="linear", calls=8)
        out = go(comfyui_standin, served, **options)
    assert out.shape == reference.shape and bool(out.isfinite().all()) == bool(reference.isfinite().all())
    assert len(network.calls) < len(plain) or any("off" in note for note in trace_of(served).notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [20, 120])
def test_sigmas_that_a_dtype_rounds(comfy, dtype, steps):
    """Latents of 16 bits: what the sampler hands on is rounded, and is still where the count says."""
    model, network = comfy.model(bend=0.5)

    def rounded(model, x, sigmas, extra_args=None, callback=None, **options):
        x = x.to(dtype)
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i].to(dtype) * x.new_ones(len(x)), **(extra_args or {}))
            x = (x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])).to(dtype)
        return x

    rounded.__name__ = "sample_euler"
    reference = go(comfy, model, sampler=rounded, steps=steps)
    assert torch.equal(go(comfy, patch(model, interval=1), sampler=rounded, steps=steps), reference)
    network.calls.clear()
    served = patch(model, basis="linear", calls=steps // 2)
    out = go(comfy, served, sampler=rounded, steps=steps)
    assert len(network.calls) == steps // 2 and not trace_of(served).notes
    assert out.dtype == reference.dtype and relative(out, reference) < 0.1


# --- runs without steps -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{"interval": 1}, {"interval": 3}, {"calls": 10}, {"few_steps": True}])
@pytest.mark.parametrize(
    ("sigmas", "note"),
    [
        ([0.7], "one sigma"),
        ([0.7] * 12, "twice"),
        ([0.9, 0.8, 0.8, *(0.7 - 0.05 * i for i in range(12)), 0.0], "twice"),
        ([*(0.9 - 0.05 * i for i in range(12)), 0.0, 0.0], "sigma 0 stands before"),
        ([*(0.9 - 0.05 * i for i in range(9)), 0.95, 0.5, 0.0], "a restart"),
    ],
)
def test_grids_without_steps_or_with_odd_ones_pass_through(comfy, sigmas, note, settings):
    model, network = comfy.model(bend=1.0)
    reference = go(comfy, model, sigmas=sigmas)
    calls, network.calls = network.calls, []
    served = patch(model, **settings)
    with pytest.warns(UserWarning, match=note):
        assert torch.equal(go(comfy, served, sigmas=sigmas).nan_to_num(), reference.nan_to_num())
    assert network.calls == calls and note in noted(trace_of(served))


# --- whose run it is --------------------------------------------------------------------------------------------------
def test_copies_of_a_model_take_the_settings_along_and_no_run(comfy):
    model, network = comfy.model()
    served = patch(model, **LINEAR)
    reference = go(comfy, model)
    assert relative(go(comfy, served), reference) < 1e-5 and trace_of(served) is not None
    for copied in (served.clone(), copy.copy(served), copy.deepcopy(served)):
        again = copied.model.diffusion_model
        again.calls.clear()
        assert relative(go(comfy, copied), reference) < 1e-5 and len(again.calls) == 11
    assert trace_of(served.clone()) is None  # it has not sampled
    unpatched = models.unpatched(served)
    network.calls.clear()
    assert torch.equal(go(comfy, unpatched), reference) and len(network.calls) == 20
    network.calls.clear()
    assert relative(go(comfy, served), reference) < 1e-5 and len(network.calls) == 11  # it still has its own


def test_what_is_attached_can_be_pickled():
    kept = pickle.loads(pickle.dumps(models.Sampling(Settings(interval=3))))
    assert kept.settings == Settings(interval=3)
    assert copy.deepcopy(kept) is kept


def test_two_threads_sample_clones_of_one_model():
    """On the stand-in: ComfyUI itself samples one model at a time."""
    model, _ = comfyui_standin.model()
    served, outs = patch(model, **LINEAR), {}
    meet = threading.Barrier(2)

    def sampled(k, positive):
        outs[k] = go(comfyui_standin, served.clone(), positive=positive, callback=lambda i: meet.wait(30))

    both = [threading.Thread(target=sampled, args=each) for each in ((0, POSITIVE), (1, NEGATIVE))]
    for each in both:
        each.start()
    for each in both:
        each.join()
    model.model.diffusion_model.loaded = None
    for k, positive in ((0, POSITIVE), (1, NEGATIVE)):
        assert relative(outs[k], go(comfyui_standin, model, positive=positive)) < 1e-5


def test_a_run_within_a_run_with_the_same_options_gives_them_back():
    options = {}
    with models.wrapped(options, {"apply_model": "outer"}):
        with models.wrapped(options, {"apply_model": "inner"}):
            assert options["transformer_options"]["wrappers"]["apply_model"] == {"forecache": ["inner"]}
        assert options["transformer_options"]["wrappers"]["apply_model"] == {"forecache": ["outer"]}
    assert options["transformer_options"]["wrappers"]["apply_model"] == {}


def test_a_kept_trace_keeps_no_model(comfy):
    model, network = comfy.model()
    served = patch(model, **LINEAR)
    go(comfy, served)
    trace, there = trace_of(served), weakref.ref(network)
    del model, served, network
    if hasattr(comfy, "comfy"):
        comfy.comfy.model_management.unload_all_models()
    gc.collect()
    assert there() is None and trace.calls["cond"] == 11


def teacache(apply_model, given):
    return apply_model(given["input"], given["timestep"], **given["c"])


def test_other_caches_are_named_in_either_order(comfy):
    model, network = comfy.model(bend=1.0)
    reference = go(comfy, model)
    for options in ({"easycache": 1}, {"rel_l1_thresh": 0.2}, {"enable_teacache": True}):
        there = model.clone()
        there.model_options["transformer_options"].update(options)
        behind = patch(model, interval=3)
        behind.model_options["transformer_options"].update(options)
        for served in (patch(there, interval=3), behind):
            network.calls.clear()
            with pytest.warns(UserWarning, match="has another cache too"):
                assert torch.equal(go(comfy, served), reference)
            assert len(network.calls) == 20
    with pytest.warns(UserWarning, match="teacache"):
        assert torch.equal(go(comfy, patch(with_function(model, teacache), interval=3)), reference)
    around = SimpleNamespace(transformer_options={"wrappers": {"diffusion_model": {"FBCache": [len]}}})
    assert "FBCache" in conflicts.conflict(vars(around))
    assert conflicts.conflict({"model_function_wrapper": tiled()}) is None
