"""A history serves one kind of call: what a callback or a component changes within a run of a diffusers pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from diffusers.callbacks import SD3CFGCutoffCallback  # noqa: E402

from diffusers_helpers import pipe_of  # noqa: E402
from forecache_adapters import diffusers as adapter  # noqa: E402
from forecache_adapters.diffusers.run import Run  # noqa: E402
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES, slow, wake  # noqa: E402
from upstream_helpers import relative  # noqa: E402

STEPS, CALLS = 20, 10


@pytest.fixture
def blind(monkeypatch):
    """The control: after this is called, kinds of calls are not told apart."""
    return lambda: monkeypatch.setattr(Run, "kind_of", lambda *given: {})


def at(step, change):
    """A callback that changes something behind a step."""

    def callback(pipe, i, t, given):
        if i == step:
            change(pipe, given)
        return given

    return callback


def drifts(pipe, run, blind, **settings):
    """Of a run that is served, and of one that does not tell kinds apart; a full schedule changes nothing."""
    reference = run()
    assert torch.equal(run(), reference), "the callback undoes what it did"
    with adapter.enabled(pipe, interval=1) as handle:
        assert torch.equal(run(), reference) and not handle.trace.notes
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle:
        served = run()
    assert served.shape == reference.shape
    notes = [note for trace in handle.trace.branches.values() for note in trace.notes]
    blind()
    with adapter.enabled(pipe, basis="linear", calls=CALLS):
        unseen = run()
    return relative(served, reference), relative(unseen, reference), notes


def test_guidance_that_ends_makes_one_picture_of_two():
    tiny, pipe = PIPELINES["sd3"], pipe_of("sd3")
    cutoff = {
        "callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=0.4),
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "pooled_prompt_embeds"],
    }
    run = lambda: tiny.run(pipe, steps=STEPS, guidance_scale=5.0, **cutoff)  # noqa: E731
    reference = run()
    for settings in ({"interval": 1}, {"basis": "linear", "calls": CALLS}, {"basis": "auto", "calls": CALLS}):
        with adapter.enabled(pipe, **settings) as handle:
            latents = run()
        assert latents.shape == reference.shape and relative(latents, reference) < 0.05
        assert any("a new history begins" in note for note in handle.trace.branches["call"].notes)


def test_another_prompt_of_the_same_form(blind):
    tiny, pipe = PIPELINES["sd3"], pipe_of("sd3")

    def other(pipe, given):
        given["prompt_embeds"] = given["prompt_embeds"].flip(-1)

    def run():
        names = ["latents", "prompt_embeds"]
        return tiny.run(pipe, steps=STEPS, callback_on_step_end=at(8, other), callback_on_step_end_tensor_inputs=names)

    served, unseen, notes = drifts(pipe, run, blind)
    assert served < unseen, "a tiny network depends on its prompt a little"
    assert ["another encoder_hidden_states" in note for note in notes] == [True] and "step 9" in notes[0]


class Conditioned(torch.nn.Module):
    def forward(self, hidden_states, timestep, text):
        return hidden_states * text * timestep


@pytest.mark.parametrize("change", ["in_place", "anew", "size", "dtype"])
def test_what_changes_in_a_loop_of_ones_own(change):
    """A prompt written over, or another; latents of another size: the step computes, and only that one."""
    network, text, x, computed = Conditioned(), torch.ones(1, 1), torch.ones(1, 4), []
    network.register_forward_hook(lambda *_: computed.append(i))
    handle = adapter.enable(network, steps=STEPS, basis="linear", interval=4)
    for i in range(STEPS):
        if i == 10:
            text = {"in_place": text.mul_, "anew": text.mul, "size": text.clone().mul, "dtype": text.mul}[change](2)
            x = {"size": torch.ones(1, 8), "dtype": torch.ones(1, 4).double()}.get(change, x)
        t = torch.tensor(float(STEPS - i))
        value = network(x, t, text)
        assert value.shape == x.shape and (i != 10 or torch.equal(value, x * text * t))
    adapter.disable(network)
    assert computed == [0, 1, 5, 9, 10, 13, 17, 19] and list(handle.trace.calls.values()) == [len(computed)]
    assert "a new history begins" in handle.trace.branches["call"].notes[0]


def test_what_is_another_value_at_every_step_is_compared_by_its_form_alone():
    network, x = Conditioned(), torch.ones(1, 4)
    with adapter.enabled(network, steps=STEPS, basis="linear", interval=4) as handle:
        for i in range(STEPS):
            network(x, torch.tensor(float(STEPS - i)), torch.full((1, 4 if i == 15 else 1), float(i)))
    notes = handle.trace.branches["call"].notes
    assert [note.split(":")[0] for note in notes] == ["step 1", "step 15", "step 16"] and handle.trace.computed < STEPS


class Steered(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, hidden_states, timestep, controlnet_block_samples=None):
        return self.weight * hidden_states * timestep + (controlnet_block_samples or [0])[0]


@pytest.mark.parametrize("left_out", [True, False])
def test_a_controlnet_that_ends_in_a_loop_of_ones_own(left_out):
    """Its residuals are others at every step. Multiplied by 0 they look like any others."""
    network, x, computed = Steered(), torch.ones(1, 4), []
    network.register_forward_hook(lambda *_: computed.append(i))
    with adapter.enabled(network, steps=STEPS, basis="linear", interval=4) as handle:
        for i in range(STEPS):
            residuals = [torch.full((1, 4), float(i) if i < 10 else 0.0)]
            network(x, torch.tensor(float(STEPS - i)), None if left_out and i >= 10 else residuals)
    assert (10 in computed) == bool(handle.trace.branches["call"].notes) == left_out


def test_weights_that_are_written_over_are_not_seen():
    """As the page says, that of adapters which are exchanged in place."""
    network, x = Steered(), torch.ones(1, 4)
    with adapter.enabled(network, steps=STEPS, basis="linear", interval=4) as handle:
        for i in range(STEPS):
            network.weight.mul_(2 if i == 10 else 1)
            network(x, torch.tensor(float(STEPS - i)))
    assert not handle.trace.branches["call"].notes


@pytest.fixture(scope="module")
def controlled():
    """FLUX with a strong ControlNet, as a function of the range and strength that are given."""
    tiny = PIPELINES["flux"]
    base = tiny.build()
    control = slow(wake(diffusers.FluxControlNetModel(**tiny.network)))
    with torch.no_grad():
        for name, each in control.named_parameters():
            each.mul_(20 if "controlnet_" in name else 1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = wake(
        diffusers.AutoencoderKL(
            block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8, use_quant_conv=False,
            use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0, **blocks,
        )
    )  # fmt: skip
    kind = diffusers.FluxControlNetPipeline
    given = {"transformer": base.transformer, "scheduler": base.scheduler, "vae": vae, "controlnet": control}
    pipe = kind(**given, **dict.fromkeys(name for name in kind._get_signature_keys(kind)[0] if name not in given))
    pipe.set_progress_bar_config(disable=True)
    size = pipe.vae_scale_factor * 8
    hint = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def run(**given):
        return pipe(
            control_image=hint, height=size, width=size, num_inference_steps=STEPS, guidance_scale=3.5,
            output_type="latent", return_dict=False,
            generator=torch.Generator().manual_seed(0), **tiny.inputs((0,)), **given,
        )[0]  # fmt: skip

    return pipe, run


@pytest.mark.parametrize("edge", ["control_guidance_start", "control_guidance_end"])
def test_a_controlnet_that_begins_or_ends_within_the_run(controlled, blind, edge):
    """Its residuals are given from the beginning to the end, multiplied by 0."""
    pipe, run = controlled
    served, unseen, notes = drifts(pipe, lambda: run(**{edge: 0.5}), blind)
    assert 5 * served < unseen and ["another strength of ControlNets" in note for note in notes] == [True]
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle:
        run()
    assert handle.trace.calls == {"call": CALLS} and not handle.trace.branches["call"].notes


class Lora(torch.nn.Module):
    """What of PEFT's layer of that name is read here: it stands for one where PEFT is not installed."""

    def __init__(self, base):
        super().__init__()
        self.base, self.active_adapters, self.scaling, self.merged_adapters = base, ["one"], {"one": 1.0}, []
        self.disable_adapters = False

    def forward(self, hidden):
        strength = 0.0 if self.disable_adapters else self.scaling[self.active_adapters[0]]
        out = self.base(hidden)
        return out + strength * out.roll(1, -1)


@pytest.mark.parametrize("how", ["weights", "other", "off"])
def test_a_layer_with_adapters_that_are_changed_within_the_run(how, blind):
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    layer = Lora(pipe.transformer.x_embedder)
    pipe.transformer.x_embedder = layer

    def change(*_):
        layer.scaling = {"one": -4.0 if how == "weights" else 1.0, "two": -4.0}
        layer.active_adapters = ["two"] if how == "other" else ["one"]
        layer.disable_adapters = how == "off"

    def run():
        layer.scaling, layer.active_adapters, layer.disable_adapters = {"one": 1.0, "two": -4.0}, ["one"], False
        return tiny.run(pipe, steps=STEPS, callback_on_step_end=at(9, change))

    served, unseen, notes = drifts(pipe, run, blind)
    assert 2 * served < unseen and ["another state of adapters" in note for note in notes] == [True]


def lora(pipe, name, seed):
    peft = pytest.importorskip("peft", reason="adapters are PEFT's")
    torch.manual_seed(seed)
    pipe.transformer.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v", "x_embedder"], init_lora_weights=False), name
    )


@pytest.mark.parametrize("how", ["weights", "other", "off", "loaded"])
def test_lora_that_is_changed_within_the_run(how, blind):
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    lora(pipe, "one", 1)
    lora(pipe, "two", 2)
    network = pipe.transformer
    change = {
        "weights": lambda *_: network.set_adapters("one", weights=8.0),
        "other": lambda *_: network.set_adapters("two", weights=4.0),
        "off": lambda *_: network.disable_adapters(),
        "loaded": lambda *_: (lora(pipe, "three", 3), network.set_adapters("three", weights=4.0)),
    }[how]

    def run():
        network.enable_adapters()
        if "three" in network.peft_config:
            network.delete_adapters("three")
        network.set_adapters("one", weights=4.0)
        return tiny.run(pipe, steps=STEPS, callback_on_step_end=at(9, change))

    served, unseen, notes = drifts(pipe, run, blind)
    assert 2 * served < unseen and ["another state of adapters" in note for note in notes] == [True]


@pytest.mark.parametrize("how", ["scale", "another"])
def test_an_attention_processor_that_is_changed_within_the_run(how, blind):
    """As IP-Adapter's, whose scale is set while a run goes on."""
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    kind = type(next(iter(pipe.transformer.attn_processors.values())))

    class Scaled(kind):
        scale = factor = 1.0

        def __call__(self, *args, **kwargs):
            hidden, *rest = super().__call__(*args, **kwargs)
            return self.factor * self.scale * hidden, *rest

    processor, other = Scaled(), Scaled()
    other.factor = -3.0

    def change(*_):
        if how == "scale":
            processor.scale = -3.0
        else:
            pipe.transformer.set_attn_processor(other)

    def run():
        processor.scale = 1.0
        pipe.transformer.set_attn_processor(processor)
        return tiny.run(pipe, steps=STEPS, callback_on_step_end=at(9, change))

    served, unseen, notes = drifts(pipe, run, blind)
    assert 2 * served < unseen and ["another state of adapters" in note for note in notes] == [True]


def test_a_network_without_adapters_is_looked_through_once(monkeypatch):
    tiny, pipe, looked = PIPELINES["flux2"], pipe_of("flux2"), []
    modules = type(pipe.transformer).modules
    monkeypatch.setattr(type(pipe.transformer), "modules", lambda self: looked.append(1) or modules(self))
    with adapter.enabled(pipe, basis="linear", calls=CALLS):
        tiny.run(pipe, steps=STEPS)
    cached = len(looked)
    looked.clear()
    tiny.run(pipe, steps=STEPS)
    assert cached - len(looked) <= 1


def test_skip_layer_guidance_has_a_history_of_its_own():
    tiny, pipe = PIPELINES["sd3"], pipe_of("sd3")
    run = lambda: tiny.run(  # noqa: E731
        pipe, steps=STEPS, guidance_scale=5.0, skip_guidance_layers=[1], skip_layer_guidance_stop=0.5
    )
    reference = run()
    with adapter.enabled(pipe, interval=1) as handle:
        assert torch.equal(run(), reference)
    assert handle.trace.calls["call"] == STEPS and 0 < handle.trace.calls["call[1]"] < STEPS
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle:
        latents = run()
    assert relative(latents, reference) < 0.05 and handle.trace.calls["call"] == CALLS


class LayerCounter:
    """Counts the calls of every block, as Chipmunk's does, and tells from them which step it is."""

    num_layers, num_submodules_per_layer = 1, 1

    def __init__(self) -> None:
        self.seen = 0

    def increment(self) -> None:
        self.seen += 1


def test_layers_that_count_their_calls_see_the_skipped_steps(monkeypatch):
    """Without that they would take the last step for the tenth."""
    tiny, pipe = PIPELINES["flux2"], PIPELINES["flux2"].build()
    counter, block = LayerCounter(), pipe.transformer.transformer_blocks[0]
    block.sparse = SimpleNamespace(layer_counter=counter)
    block.register_forward_hook(lambda *_: counter.increment())
    for counted in (STEPS, CALLS):
        counter.seen = 0
        with adapter.enabled(pipe, basis="linear", calls=CALLS):
            tiny.run(pipe, steps=STEPS)
        assert counter.seen == counted
        monkeypatch.setattr("forecache_adapters.diffusers.run.count_skipped", lambda found: None)  # the control
