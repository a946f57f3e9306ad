"""The table of docs/models.md, line by line, against the pipelines of diffusers and the tiny networks that run here."""

from __future__ import annotations

import inspect
import re

import pytest
from document_checks import ROOT, tomllib

diffusers = pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from diffusers_helpers import pipe_of  # noqa: E402
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES  # noqa: E402

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TINY = {tiny.pipeline: name for name, tiny in PIPELINES.items()}


def lines():
    """The table's lines, with pipelines and transformers by name: ``the same`` is that of the line above."""
    found, pipeline, transformer = [], "", ""
    for line in re.findall(r"^\| (?!model|Chipmunk)(.+) \|$", PAGE, re.MULTILINE):
        model, classes, _, steps, calls, start, run = line.split(" | ")
        names = re.findall(r"`(\w+)`", classes)
        pipeline = next((name for name in names if name.endswith("Pipeline")), pipeline)
        transformer = next((name for name in names if "Transformer" in name), transformer)
        found.append((model, pipeline, transformer, int(steps), calls, start, run))
    return found


@pytest.mark.parametrize(("model", "pipeline", "transformer", "steps", "calls", "start", "run"), lines())
def test_a_line_of_the_table(model, pipeline, transformer, steps, calls, start, run):
    kind, network = getattr(diffusers, pipeline), getattr(diffusers, transformer)
    distilled = "distilled" in model
    if not distilled:
        assert inspect.signature(kind.__call__).parameters["num_inference_steps"].default == steps
        assert start in (f"`enable(pipe, calls={steps // 2})`", "`enable(pipe, interval=2)`")
    source = inspect.getsource(kind.__call__)
    named = [name for name in re.findall(r"`(\w+)`", calls) if name != "true_cfg_scale"]
    for context in named or (["cond", "uncond"] if re.match(r"2|1; 2 with", calls) else []):
        assert f'"{context}"' in source
    known = {tiny.transformer for tiny in PIPELINES.values()}
    assert (run == "not run") == (transformer not in known) and hasattr(network, "forward")
    assert run.startswith("all tests") == (pipeline in TINY and not distilled and "Wan 2.2" not in model)


@pytest.mark.parametrize("name", list(PIPELINES))
def test_the_calls_of_a_step(name):
    """As many as the table says, of a batch of two where it says so."""
    tiny, batches = PIPELINES[name], []
    (cell,) = [line[4] for line in lines() if line[1] == tiny.pipeline and line[6].startswith("all tests")]
    watch = lambda module, args, given: batches.append(len(args[0] if args else given["hidden_states"]))  # noqa: E731
    hook = pipe_of(name).transformer.register_forward_pre_hook(watch, with_kwargs=True)
    tiny.run(pipe_of(name), steps=2)
    hook.remove()
    times = 2 if re.match(r"2|1; 2 with", cell) else 1
    assert batches == [2 if "batch of 2" in cell else 1] * 2 * times


def test_what_the_page_says_of_flux():
    """Its latents at 1024 x 1024, 16 pixels a token."""
    given = inspect.signature(diffusers.FluxTransformer2DModel).parameters
    tokens, width = (1024 // 16) ** 2, given["num_attention_heads"].default * given["attention_head_dim"].default
    assert f"{tokens} x {width}" in PAGE and f"{tokens} x {given['in_channels'].default}" in PAGE


def test_the_versions_that_the_page_names():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    least = extras["diffusers"][0].removeprefix("diffusers>=")
    pinned = re.search(r"^diffusers==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"diffusers {least} or newer" in PAGE and pinned is not None and f"run with {pinned[1]}" in PAGE
