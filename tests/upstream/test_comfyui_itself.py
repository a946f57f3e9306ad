"""What only ComfyUI itself can show about the nodes."""

from __future__ import annotations

import asyncio
import importlib
import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from comfyui_helpers import CHECKOUT, INSTALLED, LINEAR, NEGATIVE, NO_CHECKOUT, NOISE, POSITIVE, WORKFLOW, go
from forecache.rules import Linear
from forecache_adapters.comfyui import NODE_CLASS_MAPPINGS, patch, samplers, trace_of
from forecache_lab.controls import WrongSign
from upstream_helpers import relative

if CHECKOUT is None:
    pytest.skip(NO_CHECKOUT, allow_module_level=True)

import comfyui_real as real

RULES = {"linear": Linear(1), "wrong": WrongSign(Linear(1))}


def modules():
    """ComfyUI's modules ``nodes`` and ``execution``, which import more than its samplers do."""
    for needed in ("av", "aiohttp", "spandrel"):
        pytest.importorskip(needed, reason=f"ComfyUI's server and nodes import {needed}; `nox -s comfyui` installs it")
    return importlib.import_module("nodes"), importlib.import_module("execution")


def test_every_sampler_is_in_its_list():
    """One call a step, or several; and what is in the lists under another name is in no menu."""
    model, network = real.model(bend=0.5)
    found = {}
    for name in real.comfy.samplers.SAMPLER_NAMES:
        network.calls.clear()
        go(real, model, sampler=name, steps=5, cfg=1.0)
        key = samplers.name_of(real.comfy.samplers.sampler_object(name))
        found[key] = len({sigma for sigma, _ in network.calls}) == len(network.calls) == 5 and name != "dpm_fast"
    assert {name for name, one in found.items() if one} == samplers.ONE
    assert {name for name, one in found.items() if not one} == samplers.SEVERAL


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "dpmpp_2m_sde"])
def test_its_samplers_are_served(sampler):
    model, network = real.model(bend=0.5)
    reference = go(real, model, sampler=sampler)
    network.calls.clear()
    assert torch.equal(go(real, patch(model, interval=1), sampler=sampler), reference)
    network.calls.clear()
    out = {name: go(real, patch(model, basis=rule, calls=11), sampler=sampler) for name, rule in RULES.items()}
    assert len(network.calls) == 22
    assert relative(out["linear"], reference) < relative(out["wrong"], reference)


@pytest.mark.parametrize("scheduler", ["simple", "karras", "sgm_uniform", "beta"])
@pytest.mark.parametrize("name", real.comfy.samplers.SAMPLER_NAMES)
def test_any_sampler_on_any_grid_is_unharmed(name, scheduler):
    """Bit for bit where all is computed; of the right form, and near, where half is. Nothing is raised."""
    kind = "FLOW" if scheduler in ("simple", "beta") else "EPS"
    model, network = real.model(kind, bend=0.5)
    options = {"sampler": name, "scheduler": scheduler, "steps": 14, "noise": NOISE[:, :, :4, :4]}

    def ran(model):
        network.calls.clear()
        out = go(real, model, **options)
        return out, len(network.calls)

    reference, plain = ran(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        served = patch(model, interval=1)
        out, calls = ran(served)
        assert torch.equal(out, reference) and calls == plain
        served = patch(model, basis="linear", calls=7)
        out, calls = ran(served)
    assert out.shape == reference.shape and out.dtype == reference.dtype
    assert out.isfinite().all() == reference.isfinite().all()
    notes = trace_of(served).notes
    if calls == plain:
        assert any(note.startswith("off") for note in notes) and any("forecache is off" in str(e.message) for e in told)
        assert torch.equal(out, reference)
    else:
        assert calls == 7 and not any(note.startswith("off") for note in notes)
        assert relative(out, reference) < 0.3 or "adds noise" in notes[0]


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_its_own_caches_in_either_order(node):
    module = importlib.import_module("comfy_extras.nodes_easycache")
    model, network = real.model(bend=0.5)

    def cached(model):
        return getattr(module, node).execute(model, 0.2, 0.15, 0.95, False).result[0]

    reference = go(real, cached(model))
    for served in (patch(cached(model), interval=3), cached(patch(model, interval=3))):
        network.calls.clear()
        with pytest.warns(UserWarning, match="has another cache too .easycache"):
            assert torch.equal(go(real, served), reference)


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.2, 0.6)])
def test_its_skip_layer_guidance(span):
    """It asks for conditions twice within its range, once of them with options of its own."""
    module = importlib.import_module("comfy_extras.nodes_slg")
    model, network = real.model()
    (guided,) = module.SkipLayerGuidanceDiTSimple.execute(model, *span, "7", "7").result
    reference = go(real, guided)
    assert torch.equal(go(real, patch(guided, interval=1)), reference)
    network.calls.clear()
    served = patch(guided, **LINEAR)
    assert relative(go(real, served), reference) < 1e-5 and len(network.calls) < 40
    assert "uncond of call 2" in trace_of(served).branches


@pytest.mark.parametrize(
    ("name", "types"),
    [("hunyuan3d2", ()), ("hunyuan3d2", (torch.float8_e4m3fn, torch.bfloat16)), ("hunyuan3d2_1", ())],
)
def test_its_own_networks(name, types):
    model, calls = real.network(name, *types), []
    model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    noise, context = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)), torch.ones(1, 5, 16)
    entries = {"positive": [(context, {})], "negative": [(0 * context, {})], "noise": noise}
    reference = go(real, model, **entries)
    assert torch.equal(go(real, patch(model, interval=1), **entries), reference)
    calls.clear()
    out = {name: go(real, patch(model, basis=rule, calls=11), **entries) for name, rule in RULES.items()}
    assert len(calls) == 22
    assert relative(out["linear"], reference) < relative(out["wrong"], reference)


def test_it_loads_the_folder_of_the_documentation_and_accepts_the_workflow(tmp_path):
    """ComfyUI's own check of a prompt: nothing is missing but the weights and the picture."""
    nodes, execution = modules()
    for name in ("hunyuan3d", "model_advanced", "video_model"):
        extra = importlib.import_module(f"comfy_extras.nodes_{name}")
        known = getattr(extra, "NODE_CLASS_MAPPINGS", None)
        if known is None:
            listed = asyncio.run(extra.comfy_entrypoint()).get_node_list()
            known = {each.GET_SCHEMA().node_id: each for each in asyncio.run(listed)}
        nodes.NODE_CLASS_MAPPINGS.update(known)
    assert not set(NODE_CLASS_MAPPINGS) & set(nodes.NODE_CLASS_MAPPINGS)
    (tmp_path / "forecache").mkdir()
    (tmp_path / "forecache" / "__init__.py").write_text(INSTALLED[0])
    assert asyncio.run(nodes.load_custom_node(str(tmp_path / "forecache")))
    assert set(NODE_CLASS_MAPPINGS) <= set(nodes.NODE_CLASS_MAPPINGS)
    _, error, _, errors = asyncio.run(execution.validate_prompt("id", WORKFLOW, None))
    found = {(each["type"], each["extra_info"]["input_name"]) for node in errors.values() for each in node["errors"]}
    assert found == {("value_not_in_list", "ckpt_name"), ("custom_validation_failed", "image")}, error


def test_its_queue_runs_the_nodes():
    """Prompts one after the other: what has not changed is not run again, and the trace is that of its own run."""
    nodes, execution = modules()
    model, network = real.model(bend=0.5)
    told = []

    class Load:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT"), "load", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def load(self):
            both = [[[context, options]] for context, options in (*POSITIVE, *NEGATIVE)]
            return (model, *both, {"samples": torch.zeros(1, 4, 8, 8)})

    def sent(kind, data, client):
        if kind == "executed":
            told.append(data["output"]["text"][0])

    nodes.NODE_CLASS_MAPPINGS.update({**NODE_CLASS_MAPPINGS, "Load": Load})
    server = SimpleNamespace(client_id="me", last_node_id=None, last_prompt_id=None, send_sync=sent)
    queue = execution.PromptExecutor(server)
    ours = {k: json.loads(json.dumps(WORKFLOW[k])) for k in ("7", "8", "9")}
    ours["7"]["inputs"]["model"] = ["1", 0]
    ours["8"]["inputs"].update(positive=["1", 1], negative=["1", 2], latent_image=["1", 3])
    ours["1"] = {"class_type": "Load", "inputs": {}}
    for seed, options, calls in (
        (1, {}, 12),
        (1, {}, 0),
        (2, {}, 12),
        (2, {"calls": 9}, 9),
        (2, {"enabled": False}, 30),
    ):
        network.calls.clear()
        prompt = json.loads(json.dumps(ours))
        prompt["8"]["inputs"]["seed"] = seed
        prompt["7"]["inputs"].update(options)
        valid, error, outputs, _ = asyncio.run(execution.validate_prompt("id", prompt, None))
        assert valid, error
        asyncio.run(queue.execute_async(prompt, "id", {"client_id": "me"}, outputs))
        assert queue.success and len(network.calls) == calls
        said = "no run yet" if calls == 30 else f"cond: {calls or 12} of 30 steps computed"
        assert said in told[-1]


def test_the_pipelines_node_fits_between_any_two():
    """Types of wrappers, which ComfyUI compares by name."""
    nodes, execution = modules()

    class Wrapper:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("HY3DMODEL",), "run", "test", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}, "optional": {"pipeline": ("HY3DMODEL",)}}

    nodes.NODE_CLASS_MAPPINGS.update({**NODE_CLASS_MAPPINGS, "Wrapper": Wrapper})
    own = {name: value for name, value in WORKFLOW["7"]["inputs"].items() if name != "model"}
    ours = {"class_type": "ForecacheForecastPipeline", "inputs": {"pipeline": ["1", 0], **own}}
    prompt = {
        "1": {"class_type": "Wrapper", "inputs": {}},
        "2": ours,
        "3": {"class_type": "Wrapper", "inputs": {"pipeline": ["2", 0]}},
        "4": {"class_type": "ForecacheTrace", "inputs": {"of": ["2", 0], "after": ["3", 0]}},
    }
    valid, error, _, errors = asyncio.run(execution.validate_prompt("id", prompt, None))
    assert valid and not errors, error
    prompt["2"] = {"class_type": "ForecacheForecast", "inputs": {"model": ["1", 0], **own}}  # the control
    assert asyncio.run(execution.validate_prompt("id", prompt, None))[3]
