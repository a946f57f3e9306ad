"""The nodes for ComfyUI: on a stand-in with its contract, and on ComfyUI itself where there is a checkout of it."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import comfyui_helpers
import comfyui_standin
from comfyui_helpers import INSTALLED, LINEAR, NEGATIVE, NOISE, POSITIVE, WORKFLOW, entry, go
from forecache import Plan, calibrate
from forecache.rules import Linear
from forecache_adapters.attach import attached
from forecache_adapters.branches import Apart
from forecache_adapters.comfyui import (
    NODE_CLASS_MAPPINGS,
    conflicts,
    entries,
    key,
    patch,
    pipelines,
    ranges,
    report,
    run,
    samplers,
    trace_of,
)
from forecache_adapters.comfyui.run import Run
from forecache_adapters.settings import Settings
from forecache_lab.controls import WrongSign
from upstream_helpers import relative

comfy, snapshots = comfyui_helpers.comfy, comfyui_helpers.snapshots


# --- off is off, and what a run costs ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", comfyui_standin.KINDS)
def test_computed_steps_are_untouched(comfy, kind):
    model, network = comfy.model(kind, bend=1.0)
    areas = [*POSITIVE, entry(2.0, 2.0, 0.0, 1.0, area=(4, 8, 0, 0), strength=1.0)]
    reference = go(comfy, model, positive=areas)
    calls, network.calls = network.calls, []
    assert torch.equal(go(comfy, patch(model, interval=1), positive=areas), reference)
    assert network.calls == calls
    assert torch.equal(go(comfy, model, positive=areas), reference)  # the model itself is as it was
    assert not torch.equal(go(comfy, patch(model, calls=9), positive=areas), reference)  # the control


@pytest.mark.parametrize("kind", comfyui_standin.KINDS)
def test_a_budget_is_exact_and_a_forecast_better_than_none(comfy, kind):
    model, network = comfy.model(kind, bend=1.0)
    reference = go(comfy, model)
    grid = [sigma for sigma, _ in network.calls]
    found = {}
    for name, rule in {"linear": "linear", "reuse": "reuse", "wrong": WrongSign(Linear())}.items():
        network.calls.clear()
        served = patch(model, basis=rule, calls=11)
        found[name] = relative(go(comfy, served), reference)
        assert len(network.calls) == 11 and network.calls[-1][0] == grid[-1]  # the last step is computed
        assert trace_of(served).calls == {"cond": 11, "uncond": 11}
    assert found["linear"] < 0.8 * min(found["reuse"], found["wrong"])


@pytest.mark.parametrize("kind", comfyui_standin.KINDS)
def test_sigma_is_the_time(comfy, kind):
    model, network = comfy.model(kind)
    reference = go(comfy, model)
    network.calls.clear()
    if kind != "V_PREDICTION":  # whose derivative bends with the state
        assert relative(go(comfy, patch(model, **LINEAR)), reference) < 1e-4
        assert len(network.calls) < 13
    assert relative(go(comfy, patch(model, basis=WrongSign(LINEAR["basis"]), interval=2)), reference) > 0.02  # control


# --- whose history ----------------------------------------------------------------------------------------------------
def alternating():
    seen = []
    return lambda: bool(seen.append(0) or len(seen) // 3 % 2)


AREAS = [*POSITIVE, entry(5.0, 1.0, -1.0, 2.0, area=(8, 4, 0, 4)), entry(-3.0, 2.0, 1.0, 0.0, area=(8, 4, 0, 0))]


@pytest.mark.parametrize("layout", [lambda: lambda: True, lambda: lambda: False, alternating])
@pytest.mark.parametrize("positive", [POSITIVE, AREAS, [*POSITIVE, *NEGATIVE]])
def test_an_entry_has_its_own_history_in_any_batch(comfy, layout, positive):
    model, _ = comfy.model()
    comfy.together[:] = [layout()]
    reference = go(comfy, model, positive=positive)
    served = patch(model, **LINEAR)
    assert relative(go(comfy, served, positive=positive), reference) < 1e-5
    assert len(trace_of(served).branches) == len(positive) + 1 + 2 * (positive is AREAS)  # the negative's copies


def test_control_histories_that_change_owners(comfy, monkeypatch):
    model, _ = comfy.model()
    turns, places = iter(range(1000)), entries.places

    def swapped(options):
        return places(options)[:: -1 if next(turns) % 2 else 1]

    monkeypatch.setattr(run, "places", swapped)
    assert relative(go(comfy, patch(model, **LINEAR)), go(comfy, model)) > 0.05


def test_one_uuid_in_both_conditions():
    conds = entries.told_apart([[{"uuid": 1}, {"uuid": 1}], [{"uuid": 1}], None])
    assert len(entries.by_place(conds)) == 3 and conds[2] is None
    assert conds[1][0]["uuid"] == conds[0][0]["uuid"] == 1  # what ComfyUI can tell apart keeps its own
    assert entries.Entry(1, 0, 1) != entries.Entry(0, 0, 1)  # another question within the step


def test_entries_that_come_late_and_leave(comfy):
    """Nothing is extrapolated across the edge of an interval; the rest of the batch does not notice."""
    model, _ = comfy.model(bend=0.3)
    late = [*POSITIVE, entry(9.0, 9.0, 9.0, 9.0, start_percent=0.4, end_percent=0.8)]
    outs = []
    for layout in (lambda: True, lambda: False, alternating()):
        comfy.together[:] = [layout]
        served = patch(model, **LINEAR)
        outs.append(go(comfy, served, positive=late))
    assert relative(outs[1], outs[0]) < 1e-5 and relative(outs[2], outs[0]) < 1e-5
    steps = trace_of(served).branches["cond #2"].steps
    assert [each.kind for each in steps[:2]] == ["computed", "computed"] and 0 < steps[0].index < steps[-1].index < 19
    assert any(each.kind == "forecast" for each in steps)


def test_a_controlnet_begins_and_ends_a_history(comfy, monkeypatch):
    """Where its range ends, the output jumps."""
    model, network = comfy.model()
    hint = comfy.control(0.3, 0.7)
    controlled = [entry(1.0, -2.0, 0.5, 3.0, control=hint)]
    reference = go(comfy, model, positive=controlled)
    assert hint.asked == 20
    factors = [control is not None for control in network.controls]
    assert True in factors and False in factors
    served, hint.asked = patch(model, **LINEAR), 0
    assert relative(go(comfy, served, positive=controlled), reference) < 1e-5
    calls = trace_of(served).calls
    assert hint.asked == calls["cond"] + calls["cond #2"] + calls["cond #3"] < 15  # it skips what the network skips
    assert set(trace_of(served).branches) == {"cond", "cond #2", "cond #3", "uncond"}
    monkeypatch.setattr(ranges, "controls", lambda control, sigma: ())
    assert relative(go(comfy, patch(model, **LINEAR), positive=controlled), reference) > 1e-3  # the control


def test_an_entry_that_was_away_begins_anew():
    names, label = entries.Names(), entries.Entry(0, 0, 7)
    assert [names.at(label, i, {})[0] for i in (0, 1, 1, 2, 5, 6)] == ["cond"] * 4 + ["cond #2"] * 2
    assert names.at(label, 7, {"batch": 1}) == ("cond #3", "cond #2", ["batch"])


def test_a_second_question_within_a_step_has_its_own_history(comfy):
    """Perturbed attention asks for the positive condition once more, of another network in effect."""
    model, network = comfy.model()
    asked = []

    def once_more(args):
        calc = comfy.calc_cond_batch if hasattr(comfy, "calc_cond_batch") else comfy.comfy.samplers.calc_cond_batch
        network.factor = 5.0
        (again,) = calc(args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])
        network.factor = 1.0
        asked.append(again)
        return args.get("denoised")

    network.register_forward_hook(lambda module, args, out: out * getattr(module, "factor", 1.0))
    model.model_options["sampler_post_cfg_function"] = [once_more]
    go(comfy, model)
    reference, asked[:] = list(asked), []
    served = patch(model, **LINEAR)
    go(comfy, served)
    assert max(relative(a, b) for a, b in zip(asked, reference, strict=True)) < 1e-4
    assert set(trace_of(served).branches) == {"cond", "uncond", "cond of call 2"}


def test_items_of_a_batch_are_independent(comfy):
    model, _ = comfy.model(bend=1.0)
    served = patch(model, basis="auto", calls=9)
    both = go(comfy, served)
    alone = torch.cat([go(comfy, served, noise=NOISE[k : k + 1]) for k in range(2)])
    assert relative(both, alone) < 1e-5
    assert relative(go(comfy, served, noise=NOISE * torch.tensor([1.0, 9.0]).reshape(2, 1, 1, 1))[:1], alone[:1]) < 1e-5


@pytest.mark.parametrize("kind", comfyui_standin.KINDS)
def test_the_corrector_is_on_with_euler_and_off_where_it_is_asked_to_be(comfy, kind):
    model, _ = comfy.model(kind, bend=1.0)
    drift = {None: 0.0, False: 0.0}
    noises = torch.randn(4, *NOISE.shape, generator=torch.Generator().manual_seed(4))
    for asked, noise in itertools.product(drift, noises):
        served = patch(model, calls=9, corrector=asked)
        drift[asked] += relative(go(comfy, served, noise=noise), go(comfy, model, noise=noise))
        steps = [step for trace in trace_of(served).branches.values() for step in trace.steps]
        assert any(step.corrected for step in steps) is (asked is None)
    if kind != "V_PREDICTION":  # the derivative of this toy bends with the state as no data make it
        assert drift[None] < 0.8 * drift[False], drift


def test_the_state_moves_by_the_derivative_over_the_sigmas(comfy, monkeypatch):
    """Measured at the sampler, up to the scale of its latents: what the derivative of the last step, made larger by 1,
    adds to the state.
    """
    model, _ = comfy.model("FLOW", bend=0.0)
    served, known, moved = Run._served, [], []
    for last in (0.2, 0.1):
        sigmas, ends = [*(1 - i / 12 for i in range(9)), last, 0.0], []
        known.append(samplers.euler(sigmas, 1.0).positions)
        for size in (0.0, 1.0):

            def larger(self, server, name, x, t, denoised, size=size):
                out = served(self, server, name, x, t, denoised)
                sigma = t.reshape(-1, *[1] * (x.ndim - 1))
                return (denoised() if out is None else out) - sigma * size * (self.i == len(self.sigmas) - 2)

            monkeypatch.setattr(Run, "_served", larger)
            ends.append(go(comfy, patch(model, interval=1), sigmas=sigmas))
        moved.append(float((ends[1] - ends[0]).mean()))
    assert moved[0] < 0 and moved[0] / moved[1] == pytest.approx(2, rel=1e-2)
    assert [places[-1] - places[-2] for places in known] == pytest.approx([-0.2, -0.1])


@pytest.mark.parametrize(("sampler", "on"), [("euler", True), ("lms", False), ("euler_ancestral", False)])
def test_no_corrector_for_another_sampler(sampler, on):
    """What it adds to the state is not known here."""
    sigmas = [14.0, 9.0, 5.0, 3.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.1, 0.0]
    assert bool(Run(Settings(calls=5), sampler, sigmas, None, dict).server.corrector) is on


@pytest.mark.parametrize(("cfg", "strength"), [(None, 1.0), ("7", 1.0), ([2.0, 3.0], 1.0), (7, 7.0)])
def test_a_guider_of_ones_own_may_call_anything_cfg(cfg, strength):
    run = Run(Settings(calls=5), "euler", [float(10 - i) for i in range(11)], None, dict, cfg)
    assert run.server.corrector.strength == strength


# --- a run's state is the run's ---------------------------------------------------------------------------------------
def test_a_new_run_has_a_new_history(comfy, snapshots):
    model, _ = comfy.model()
    served, during = patch(model, **LINEAR), []
    for positive in (POSITIVE, NEGATIVE, AREAS):
        out = go(comfy, served, positive=positive, callback=lambda i: during.append(snapshots()))
        assert relative(out, go(comfy, model, positive=positive)) < 1e-5
        assert snapshots() == 0 and during[-1] >= 2
    other = {"noise": NOISE[:1, :, :6, :4], "steps": 14}  # of another size
    assert relative(go(comfy, served, **other), go(comfy, model, **other)) < 1e-5


def test_control_a_history_that_is_kept(comfy, monkeypatch):
    model, _ = comfy.model()
    kept = {}

    class Keeping(Apart):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.histories, self.first = kept, dict.fromkeys(kept, 0)

        def close(self):
            pass

    monkeypatch.setattr(run, "Apart", Keeping)
    served = patch(model, **LINEAR)
    go(comfy, served)
    with pytest.raises(ValueError, match="steps out of order"):
        go(comfy, served)


def test_runs_within_a_run_stay_apart(comfy):
    """Of clones, where the stand-in allows what ComfyUI does not: the same weights in a run within a run."""
    model, network = comfy.model()
    within = model if comfy is comfyui_standin else comfy.model()[0]
    clones = patch(within, **LINEAR).clone(), patch(within, **LINEAR, warmup=3)
    inner, expected = [], go(comfy, within, positive=NEGATIVE)

    def nested(i):
        if i % 4 == 1:
            inner.append(go(comfy, clones[i // 4 % 2], positive=NEGATIVE))
            network.loaded = True

    assert relative(go(comfy, patch(model, **LINEAR), callback=nested), go(comfy, model)) < 1e-5
    assert len(inner) == 5 and max(relative(each, expected) for each in inner) < 1e-5


@pytest.mark.parametrize("step", [0, 7, 19])
def test_an_interrupted_run_leaves_nothing(comfy, step, snapshots):
    model, _ = comfy.model()
    served = patch(model, **LINEAR)

    class Interrupted(Exception):
        pass

    def stop(i):
        if i == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        go(comfy, served, callback=stop)
    gc.collect()  # the traceback's frames
    assert snapshots() == 0 and "wrappers" not in served.model_options["transformer_options"]
    assert relative(go(comfy, served), go(comfy, model)) < 1e-5


def test_partial_denoising_has_the_samplers_own_grid(comfy):
    model, network = comfy.model()
    reference = go(comfy, model, steps=12, denoise=0.5)
    grid = [sigma for sigma, _ in network.calls]
    network.calls.clear()
    served = patch(model, **LINEAR)
    assert relative(go(comfy, served, steps=12, denoise=0.5), reference) < 1e-5
    assert network.calls[-1][0] == grid[-1] and len(network.calls) < 8
    assert [each.time for each in trace_of(served).branches["cond"].steps] == pytest.approx(grid)


def test_a_clone_takes_the_settings_along_and_a_second_node_replaces_them(comfy):
    model, network = comfy.model()
    clone = patch(model, calls=5, basis="linear").clone()
    go(comfy, clone)
    assert len(network.calls) == 5
    network.calls.clear()
    again = patch(clone, calls=7, basis="linear")
    assert trace_of(again) is None
    go(comfy, again)
    assert len(network.calls) == 7


# --- samplers ---------------------------------------------------------------------------------------------------------
def mine(model, x, sigmas, extra_args=None, callback=None, **options):
    """A sampler that nobody knows; Heun's steps."""
    return comfyui_standin.sample_heun(
        lambda y, sigma: model(y, sigma * y.new_ones(len(y)), **(extra_args or {})), x, sigmas, callback=callback
    )


def euler_of_mine(model, x, sigmas, extra_args=None, callback=None, **options):
    return comfyui_standin.sample_euler(
        lambda y, sigma: model(y, sigma * y.new_ones(len(y)), **(extra_args or {})), x, sigmas, callback=callback
    )


def told(comfy, function):
    """ComfyUI's samplers tell its callback more than the stand-in's."""
    if comfy is comfyui_standin:
        return function

    def sampler(model, x, sigmas, extra_args=None, callback=None, **options):
        inner = (lambda at: callback({**at, "sigma": 0})) if callback else (lambda at: None)
        return function(model, x, sigmas, extra_args, inner)

    sampler.__name__ = function.__name__
    return sampler


@pytest.mark.parametrize(
    ("sampler", "note"), [("heun", "sampler heun calls the network more"), (mine, "off from step")]
)
def test_several_calls_a_step_are_refused(comfy, sampler, note):
    model, network = comfy.model(bend=1.0)
    sampler = told(comfy, sampler) if callable(sampler) else sampler
    served = patch(model, interval=3, warmup=1, basis="linear")
    reference = go(comfy, model, sampler=sampler)
    network.calls.clear()
    with pytest.warns(UserWarning, match="forecache is off"):
        assert torch.equal(go(comfy, served, sampler=sampler), reference)
    assert len(network.calls) == 39 and note in trace_of(served).notes[0]


def test_control_an_unknown_sampler_that_is_trusted(comfy, monkeypatch):
    model, _ = comfy.model(bend=1.0)
    reference = go(comfy, model, sampler=told(comfy, mine))
    monkeypatch.setattr(run, "Probing", Apart)
    with pytest.warns(UserWarning, match="off from step"):
        out = go(comfy, patch(model, interval=3, warmup=1, basis="linear"), sampler=told(comfy, mine))
    assert not torch.equal(out, reference)


def test_an_unknown_sampler_with_one_call_a_step(comfy):
    model, network = comfy.model()
    reference = go(comfy, model, sampler=told(comfy, euler_of_mine))
    network.calls.clear()
    served = patch(model, **LINEAR)
    assert relative(go(comfy, served, sampler=told(comfy, euler_of_mine)), reference) < 1e-5
    assert len(network.calls) < 13 and not trace_of(served).notes


def test_grids_that_nothing_may_be_forecast_on():
    why = samplers.refusal
    assert "restart" in why("euler", [1.0, 0.5, 0.8, 0.0]) and "sigma 0" in why("euler", [1.0, 0.0, 0.0])
    assert "one sigma" in why("euler", [1.0]) and "twice" in why("euler", [1.0, 0.5, 0.5, 0.0])
    assert "finite" in why("euler", [float("inf"), 1.0, 0.0])
    assert why("euler", [1.0, 0.5, 0.0]) is None and why("euler", [0.1, 0.5, 1.0]) is None


def test_a_step_is_known_by_two_signals():
    def why(sigma, grid, i, dtype=torch.float32, name="euler"):
        return samplers.astray(sigma, dtype, grid, i, name)

    assert why(0.9999, [1.0, 0.99, 0.5], 0) is None and "not" in why(0.97, [1.0, 0.9, 0.8], 0)
    assert "after the last of its 1 steps" in why(0.5, [1.0, 0.0], 1)
    dense = [1 - 0.001 * i for i in range(1001)]
    assert why(0.9961, dense, 3, torch.bfloat16) is None  # what rounding does to 0.997
    assert why(0.9961, dense, 3) is not None and why(0.9, dense, 3, torch.bfloat16) is not None
    assert "does not tell" in why(0.9961, dense, 3, torch.bfloat16, "mine")  # nothing else tells that it counts right
    assert why(0.9, [1.0, 0.9, 0.5], 1, torch.bfloat16, "mine") is None


def test_distilled_models_switch_it_off(comfy):
    model, network = comfy.model(bend=1.0)
    reference = go(comfy, model, steps=8)
    served = patch(model, interval=3, basis="linear")
    with pytest.warns(UserWarning, match="off: 8 steps"):
        assert torch.equal(go(comfy, served, steps=8), reference)
    assert "8 steps" in trace_of(served).notes[0]
    network.calls.clear()
    go(comfy, patch(model, interval=3, basis="linear", few_steps=True), steps=8)
    assert len(network.calls) < 8


@pytest.mark.parametrize(
    ("options", "note"),
    [({"context_handler": object()}, "context windows"), ({"multigpu_clones": {1: 2}}, "GPUs")],
)
def test_what_changes_the_batches_is_refused(options, note):
    assert note in conflicts.conflict(options)
    assert conflicts.conflict({"transformer_options": {}}) is None


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16])
def test_half_precision_and_stored_in_eight_bits(comfy, out):
    """What ComfyUI gets back is float32 in any case; only outputs are touched."""
    model, network = comfy.model(bend=0.5, out=out, stored=torch.float8_e4m3fn)
    reference = go(comfy, model)
    network.calls.clear()
    served = go(comfy, patch(model, basis="linear", calls=10))
    assert served.dtype == reference.dtype and relative(served, reference) < 0.05 and len(network.calls) == 10


class NotFinite(Linear):
    def weights(self, times, target, gram):
        return super().weights(times, target, gram) * float("nan")


def test_a_forecast_that_is_not_finite_falls_back(comfy):
    model, _ = comfy.model(bend=1.0)
    served = patch(model, basis=NotFinite(), interval=3)
    assert go(comfy, served).isfinite().all()
    assert trace_of(served).branches["cond"].fallbacks > 5


def test_a_network_that_returns_nan_is_noted(comfy):
    model, network = comfy.model()
    network.register_forward_hook(lambda module, args, out: out * float("nan"))
    served = patch(model, interval=3)
    assert go(comfy, served).isnan().all() and len(network.calls) == 20
    assert "NaN" in report.summary(trace_of(served))


def test_plans_know_their_model(comfy, tmp_path):
    model, network = comfy.model(bend=0.5)
    options = {"steps": 10, "cfg": 1.0}

    def sampled(seed, cache):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        return go(comfy, patch(model, cache=cache), noise=noise, **options)

    go(comfy, patch(model, interval=1), **options)
    probe = patch(model, interval=1)
    go(comfy, probe, **options)
    grid = [each.time for each in trace_of(probe).branches["cond"].steps] + [0.0]
    plan = calibrate(sampled, times=grid, calls=5, seeds=range(3), made_for=key(model, 1.0))
    plan.save(tmp_path / "plan.json")
    network.calls.clear()
    go(comfy, patch(model, plan=str(tmp_path / "plan.json")), **options)
    assert len(network.calls) == 5
    with pytest.raises(ValueError, match="guidance_scale"):
        go(comfy, patch(model, plan=Plan.load(tmp_path / "plan.json")), steps=10, cfg=4.0)
    late = [*POSITIVE, entry(1.0, 1.0, 1.0, 1.0, start_percent=0.5)]
    served = patch(model, plan=tmp_path / "plan.json")
    with pytest.warns(UserWarning, match="cond #2 begins there, and a plan needs it from the first step on"):
        assert go(comfy, served, positive=late, **options).isfinite().all()
    assert "off from step" in trace_of(served).notes[-1]


def test_arguments_are_checked():
    model, _ = comfyui_standin.model()
    with pytest.raises(TypeError, match="model must be a MODEL"):
        patch(object())
    with pytest.raises(ValueError, match="adaptive_guidance"):
        patch(model, adaptive_guidance=True)
    with pytest.raises(ValueError, match="cache: give it alone"):
        patch(model, cache=SimpleNamespace(), interval=3)
    with pytest.raises(ValueError, match="interval"):
        patch(model, interval=3, calls=4)


# --- nodes ------------------------------------------------------------------------------------------------------------
def defaults(node):
    inputs = node.INPUT_TYPES()
    fields = {**inputs["required"], **inputs.get("optional", {})}
    return {name: spec[1]["default"] for name, spec in fields.items() if len(spec) > 1 and "default" in spec[1]}


@pytest.mark.parametrize("name", list(NODE_CLASS_MAPPINGS))
def test_nodes_have_comfyuis_form(name):
    node = NODE_CLASS_MAPPINGS[name]
    assert callable(getattr(node(), node.FUNCTION)) and node.DESCRIPTION
    for kind, *options in {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}.values():
        assert isinstance(kind, (str, list))
        given = options[0] if options else {}
        assert given["tooltip"] and (not isinstance(kind, list) or given["default"] in kind)


def test_the_nodes_at_work(comfy):
    model, network = comfy.model()
    node, trace = NODE_CLASS_MAPPINGS["ForecacheForecast"], NODE_CLASS_MAPPINGS["ForecacheTrace"]()
    (served,) = node().apply(model, **{**defaults(node), "calls": 6, "basis": "linear"})
    assert "no run yet" in trace.read(served, None)["result"][0]
    latent = go(comfy, served)
    assert len(network.calls) == 6
    summary, text = trace.read(served, latent)["result"]
    assert "cond: 6 of 20 steps computed" in summary and json.loads(text)["model"]["calls"] == {"cond": 6, "uncond": 6}
    (off,) = node().apply(served, **{**defaults(node), "enabled": False})
    network.calls.clear()
    assert torch.equal(go(comfy, off), go(comfy, model)) and len(network.calls) == 40


def test_a_plans_file_that_changes_runs_the_node_again(tmp_path):
    node, file = NODE_CLASS_MAPPINGS["ForecacheForecast"], tmp_path / "plan.json"
    assert node.IS_CHANGED(**defaults(node)) == ""
    file.write_text("{}")
    before = node.IS_CHANGED(plan=str(file))
    os.utime(file, ns=(1, 1))
    assert node.IS_CHANGED(plan=str(file)) not in (before, "")


def checked(workflow):
    """Of each of our nodes in a workflow in ComfyUI's API form: every input is known, given, and of its kind."""
    ours = {k: each for k, each in workflow.items() if each["class_type"] in NODE_CLASS_MAPPINGS}
    for each in ours.values():
        inputs = NODE_CLASS_MAPPINGS[each["class_type"]].INPUT_TYPES()
        fields = {**inputs["required"], **inputs.get("optional", {})}
        assert set(inputs["required"]) <= set(each["inputs"]) <= set(fields)
        for name, value in each["inputs"].items():
            kind = fields[name][0]
            if isinstance(value, list):
                assert value[0] in workflow
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert type(value) is {"INT": int, "BOOLEAN": bool, "STRING": str}[kind]
    return ours


def test_the_line_of_the_documentation():
    (line,) = INSTALLED
    folder = {}
    exec(line, folder)
    assert folder["NODE_CLASS_MAPPINGS"] is NODE_CLASS_MAPPINGS
    assert set(folder["NODE_DISPLAY_NAME_MAPPINGS"]) == set(NODE_CLASS_MAPPINGS)


def test_the_workflow_of_the_documentation():
    assert len(checked(WORKFLOW)) == 2
    for name, value in {"calls": "many", "basis": "astrology", "new": 1}.items():
        broken = json.loads(json.dumps(WORKFLOW))
        next(iter(checked(broken).values()))["inputs"][name] = value
        with pytest.raises(AssertionError):
            checked(broken)


# --- 3D pipelines of wrappers -----------------------------------------------------------------------------------------
class FlowMatchEulerDiscreteScheduler:
    """Counts its steps, as Hunyuan3D's does; the last has dt = 0."""

    order = 1

    def set_timesteps(self, steps):
        self.sigmas, self.step_index = [*torch.linspace(0, 1, steps).tolist(), 1.0], None

    def step(self, v, x):
        i = self.step_index or 0
        self.step_index = i + 1
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * v


Scheduler = FlowMatchEulerDiscreteScheduler


class Hunyuan3DDiTFlowMatchingPipeline:
    """A wrapper's: both branches in one batch, and a network that comes with the call and goes with it."""

    scheduler_kind, twice, stronger, callback = Scheduler, False, 99, None

    def __init__(self):
        self.model, self.scheduler, self.calls = None, Scheduler(), []

    def grid(self, scheduler):
        return scheduler.sigmas

    def load(self):
        def network(x, t, strength):
            self.calls.append(t)
            if t > self.stop:
                raise InterruptedError
            return strength * torch.tensor([1.0, -2.0]).reshape(2, 1).repeat_interleave(len(x) // 2, 0) * (1 + 2 * t)

        return network

    def __call__(self, steps=20, g=3.0, stop=2.0):
        self.stop = stop
        if self.model is None:
            self.model = self.load()
        self.scheduler = self.scheduler_kind()
        self.scheduler.set_timesteps(steps)
        x = torch.ones(2, 4)
        for i, t in enumerate(self.grid(self.scheduler)[:-1]):
            strength = torch.ones(1) * (1 if i < self.stronger else 3)
            for _ in range(1 + self.twice):
                cond, uncond = self.model(torch.cat([x, x]), t, strength).chunk(2)
            x = self.scheduler.step(uncond + g * (cond - uncond), x)
            if self.callback:
                self.callback(i)
        self.model = None
        return x


def holders(pipe):
    return [pipe, {"pipeline": pipe, "mode": "image"}, (pipe, "vae"), ["vae", pipe], SimpleNamespace(model=pipe)]


def test_a_wrappers_pipeline_is_found_copied_and_served(snapshots):
    pipe = Hunyuan3DDiTFlowMatchingPipeline()
    reference = pipe()
    for holder in holders(pipe):
        pipe.calls.clear()
        made = pipelines.forecasting(holder, **LINEAR)
        assert isinstance(made, type(holder))
        served = pipelines.found(made)[1]
        assert relative(served(), reference) < 1e-5 and len(pipe.calls) == 11 and snapshots() == 0
        assert pipelines.found(holder)[1] is pipe and vars(pipe).keys() == vars(served).keys()
        assert attached(served) is not None and attached(pipe) is None
        assert pipelines.traces_of(made)["shape"].computed == 11
    again = pipelines.forecasting(served, basis="linear", calls=6)  # a second node replaces it
    pipe.calls.clear()
    again()
    assert len(pipe.calls) == 6 and type(again).__mro__[1] is Hunyuan3DDiTFlowMatchingPipeline
    assert attached(copy.copy(again)) is None  # a copy has none until it gets one
    wrong = pipelines.forecasting(pipe, basis=WrongSign(Linear(1)), interval=2)
    assert relative(wrong(), reference) > 0.01  # the control
    with pytest.warns(UserWarning, match="off: 7 steps"):
        assert torch.equal(served(steps=8), pipe(steps=8))


def test_a_wrappers_run_that_breaks_off(snapshots):
    pipe = Hunyuan3DDiTFlowMatchingPipeline()
    served = pipelines.forecasting(pipe, **LINEAR)
    with pytest.raises(InterruptedError):
        served(stop=0.5)
    gc.collect()
    assert snapshots() == 0
    assert relative(served(), pipe()) < 1e-5


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"order": 2}, "calls the network 2 times a step"),
        ({"sigmas": property(lambda self: None, lambda self, value: vars(self).update(grid=value))}, "has no steps"),
        ({"step_index": property(lambda self: 0, lambda self, value: None)}, "step 0 by the scheduler's count"),
    ],
)
def test_a_wrappers_scheduler_that_cannot_be_followed_switches_it_off(change, note, snapshots):
    pipe = Hunyuan3DDiTFlowMatchingPipeline()
    pipe.scheduler_kind = type("Scheduler", (Scheduler,), change)
    if note == "has no steps":
        pipe.scheduler_kind.step = lambda self, v, x: x + v
        pipe.grid = lambda scheduler: scheduler.grid
    reference = pipe()
    served = pipelines.forecasting(pipe, **LINEAR)
    with pytest.warns(UserWarning, match=note):
        assert torch.equal(served(), reference)
    assert note in pipelines.traces_of(served)["shape"].notes[-1] and snapshots() == 0


def test_a_wrappers_network_that_is_called_twice_a_step_is_passed_through():
    pipe = Hunyuan3DDiTFlowMatchingPipeline()
    pipe.twice = True
    reference = pipe()
    for settings in (LINEAR, {"interval": 1}):
        served = pipelines.forecasting(pipe, **settings)
        with pytest.warns(UserWarning, match="off from step 1 on: call 2 of the network, step 0"):
            assert torch.equal(served(), reference)


def test_a_wrappers_condition_that_changes_begins_a_history():
    pipe = Hunyuan3DDiTFlowMatchingPipeline()
    pipe.stronger = 9  # from this step on
    reference = pipe()
    served = pipelines.forecasting(pipe, **LINEAR)
    assert relative(served(), reference) < 0.05 and "another 2" in report.summary(pipelines.traces_of(served)["shape"])


def test_a_wrappers_pipeline_is_called_within_a_call_of_its_own():
    pipe, inner = Hunyuan3DDiTFlowMatchingPipeline(), []
    reference = pipe()
    served = pipelines.forecasting(pipe, **LINEAR)

    def nested(step):
        if step == 7:
            network, scheduler, served.callback = served.model, served.scheduler, None
            inner.append(served())
            served.model, served.scheduler = network, scheduler

    served.callback = nested
    assert relative(served(), reference) < 1e-5 and relative(inner[0], reference) < 1e-5
    assert served.model is None and len(served.calls) == 20 + 22


def test_what_is_no_pipeline_is_named():
    with pytest.raises(TypeError, match=r"dict \(pipe: NoneType\) is and holds no pipeline"):
        pipelines.forecasting({"pipe": None})
    with pytest.raises(ValueError, match="stages: the shape pipeline has one"):
        pipelines.forecasting(Hunyuan3DDiTFlowMatchingPipeline(), stages={"slat": {}})
    with pytest.raises(ValueError, match="stages must be JSON"):
        node = NODE_CLASS_MAPPINGS["ForecacheForecastPipeline"]
        node().apply(Hunyuan3DDiTFlowMatchingPipeline(), **{**defaults(node), "stages": "slat: 3"})
    unpatched = SimpleNamespace(slat_sampler=Scheduler(), sparse_structure_sampler=Scheduler(), models={})
    with pytest.raises(RuntimeError, match=f"patch apply trellis CHECKOUT.*CHECKOUT is {Path(__file__).parent}"):
        pipelines.forecasting(unpatched)
