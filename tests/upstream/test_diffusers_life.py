"""Life of an attachment to a diffusers pipeline: copies, threads, other caches, memory, any order of detaching."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from diffusers_helpers import CALLS, STEPS, euler, loop, reference_of, served_of  # noqa: E402
from forecache_adapters import attach  # noqa: E402
from forecache_adapters import diffusers as adapter  # noqa: E402
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES  # noqa: E402

SETTINGS = {"basis": "linear", "calls": CALLS}
TINY = PIPELINES["flux2"]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    made = TINY.build()
    yield made
    adapter.disable(made)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
    "saved": lambda pipe: saved(pipe),
    "rebuilt": lambda pipe: type(pipe)(**pipe.components),
    "from_pipe": lambda pipe: type(pipe).from_pipe(pipe),
}


def saved(pipe):
    file = io.BytesIO()
    torch.save(pipe, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", list(COPIES))
def test_a_copy_has_no_cache_and_may_get_one(pipe, how):
    kind, reference, served = type(pipe), reference_of("flux2"), served_of("flux2")
    original = adapter.enable(pipe, **SETTINGS)
    made = quiet(COPIES[how](pipe))
    assert type(made) is kind and torch.equal(TINY.run(made), reference) and not original.trace.calls
    adapter.disable(made)
    assert torch.equal(TINY.run(pipe), served), "the original keeps its cache"
    handle = adapter.enable(made, **SETTINGS)
    adapter.disable(pipe)
    adapter.disable(pipe)
    assert type(pipe) is kind and torch.equal(TINY.run(pipe), reference)
    assert torch.equal(TINY.run(made), served) and handle.trace.computed == CALLS
    adapter.disable(made)


def test_copies_made_within_a_call(pipe):
    """The transformer wears its relay then."""
    adapter.enable(pipe, **SETTINGS)
    made = []

    def take(pipe, i, t, given):
        if i == 4:
            made.extend([copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))])
        return given

    assert torch.equal(TINY.run(pipe, callback_on_step_end=take), served_of("flux2"))
    for each in made:
        assert attach.worn(each) is None and attach.worn(each.transformer) is None
        assert torch.equal(TINY.run(quiet(each)), reference_of("flux2"))


@pytest.mark.parametrize("how", ["pipeline", "transformer"])
def test_a_kept_handle_does_not_keep_the_model(how):
    pipe = TINY.build()
    if how == "pipeline":
        handle = adapter.enable(pipe, **SETTINGS)
        TINY.run(pipe)
    else:
        pipe = PIPELINES["flux"].build()
        handle = adapter.enable(pipe.transformer, steps=STEPS, **SETTINGS)
        loop(pipe.transformer, euler())
    model = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert model() is None and handle.target is None
    assert set(handle.trace.calls.values()) == {CALLS}


def threads(*works):
    running = [threading.Thread(target=each) for each in works]
    for each in running:
        each.start()
    for each in running:
        each.join()


@pytest.mark.parametrize("level", ["velocity", "last_block"])
@pytest.mark.parametrize("cached", [True, False])
def test_pipelines_that_share_a_transformer_in_two_threads(pipe, level, cached):
    """They change places at every step; the other has a cache of its own, or none."""
    other = quiet(type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}))
    adapter.enable(pipe, level=level, **SETTINGS)
    if cached:
        adapter.enable(other, basis="reuse", interval=2, level=level)
    wanted = {0: TINY.run(pipe), 1: TINY.run(other, (3,))}
    found, barrier = {}, threading.Barrier(2)

    def meet(pipe, i, t, given):
        barrier.wait(60)
        return given

    threads(
        lambda: found.update({0: TINY.run(pipe, callback_on_step_end=meet)}),
        lambda: found.update({1: TINY.run(other, (3,), callback_on_step_end=meet)}),
    )
    assert all(torch.equal(found[k], wanted[k]) for k in (0, 1))
    assert attach.worn(pipe.transformer) is None and attach.worn(pipe.transformer.norm_out) is None
    adapter.disable(other)


@pytest.mark.parametrize("level", ["velocity", "last_block"])
def test_a_call_within_the_callback_of_another(pipe, level):
    """Of a pipeline with the same transformer, with a cache or without: the plain one is seen, the outer goes off."""
    reference, served = TINY.run(pipe, (3,)), None
    other = quiet(type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}))

    def nest(_, i, t, given):
        if i == 4:
            values.append(TINY.run(other, (3,)))
        return given

    handle = adapter.enable(pipe, level=level, **SETTINGS)
    served, values = TINY.run(pipe), []
    with adapter.enabled(other, interval=1):
        assert torch.equal(TINY.run(pipe, callback_on_step_end=nest), served)
        assert torch.equal(values.pop(), reference) and not handle.trace.notes
    with pytest.warns(UserWarning, match="off: the transformer's timestep"):
        TINY.run(pipe, callback_on_step_end=nest)
    assert torch.equal(values.pop(), reference)


def test_a_pipeline_and_its_bare_transformer():
    """Each serves its own calls, and they come off in any order."""
    tiny = PIPELINES["flux"]
    pipe = tiny.build()
    network, kind = pipe.transformer, type(pipe.transformer)
    reference, plain = tiny.run(pipe), loop(network, euler())
    for first in (pipe, network):
        one = adapter.enable(network, steps=STEPS, basis="linear", calls=CALLS)
        two = adapter.enable(pipe, basis="linear", calls=CALLS + 1)
        tiny.run(pipe)
        loop(network, euler())
        assert (set(one.trace.calls.values()), set(two.trace.calls.values())) == ({CALLS}, {CALLS + 1})
        adapter.disable(first)
        adapter.disable(network if first is pipe else pipe)
        adapter.disable(first)
        assert type(network) is kind and torch.equal(tiny.run(pipe), reference)
        assert torch.equal(loop(network, euler()), plain)


def test_detaching_within_a_call(pipe):
    """The call ends as it began; the next has no cache."""
    adapter.enable(pipe, **SETTINGS)

    def detach(pipe, i, t, given):
        if i == 4:
            adapter.disable(pipe)
        return given

    kind = type(pipe).__mro__[1]
    assert torch.equal(TINY.run(pipe, callback_on_step_end=detach), served_of("flux2"))
    assert type(pipe) is kind and torch.equal(TINY.run(pipe), reference_of("flux2"))


def test_what_another_wears_comes_off_in_any_order():
    network = PIPELINES["flux"].build().transformer
    kind = type(network)
    for first in (0, 1):
        adapter.enable(network, steps=STEPS, **SETTINGS)
        inner = attach.attached(network)
        outer = attach.Worn(network, object(), {"__call__": lambda inside, *args, **kwargs: inside(*args, **kwargs)})
        outer.attach()
        ends = [lambda inner=inner: inner.leave(), lambda outer=outer: outer.detach()]
        ends[first]()
        ends[1 - first]()
        assert type(network) is kind and attach.worn(network) is None


@pytest.mark.parametrize("how", ["diffusers", "cache-dit", "worn"])
def test_another_cache_is_refused_by_name_in_either_order(how):
    tiny = PIPELINES["flux"]
    pipe = tiny.build()
    network = pipe.transformer
    reference = tiny.run(pipe)

    def begin():
        if how == "diffusers":
            network.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=1))
            return network.disable_cache
        if how == "cache-dit":  # what its enable_cache sets
            network._is_cached = True
            return lambda: delattr(network, "_is_cached")
        worn = attach.Worn(network, object(), {"__call__": lambda inside, *args, **kwargs: inside(*args, **kwargs)})
        worn.attach()
        return worn.detach

    found = {"diffusers": "diffusers' own", "cache-dit": "cache-dit", "worn": "builtins.object"}
    name = f"another cache, {found[how]}"
    end = begin()
    for target in (pipe, network):
        with pytest.raises(TypeError, match=name) as refused:
            adapter.enable(target, **({"steps": STEPS} if target is network else {}))
        remedies = ("call its disable_cache() first", "call cache_dit.disable_cache first", "disable that one first")
        assert str(refused.value).endswith(remedies)
    end()
    with adapter.enabled(pipe, **SETTINGS) as handle:
        end = begin()
        with pytest.warns(UserWarning, match=name):
            latents = tiny.run(pipe)
        assert name in handle.trace.notes[0] and latents.shape == reference.shape
        end()
        tiny.run(pipe)
        assert not handle.trace.notes and handle.trace.computed == 2 * CALLS


@pytest.mark.parametrize("cache_first", [True, False])
def test_a_transformer_compiled_in_place(cache_first):
    """The cache stays outside of its graph."""
    tiny, graphs = PIPELINES["flux"], []
    pipe = tiny.build()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    if not cache_first:
        pipe.transformer.compile(backend=backend, fullgraph=True)
    with adapter.enabled(pipe, **SETTINGS) as handle:
        if cache_first:
            pipe.transformer.compile(backend=backend, fullgraph=True)
        served = tiny.run(pipe)
        assert torch.equal(tiny.run(pipe), served) and handle.trace.computed == 2 * CALLS
    assert graphs and torch.equal(tiny.run(pipe), reference_of("flux"))
    assert torch.equal(served, served_of("flux"))
    torch._dynamo.reset()


@pytest.mark.parametrize("cache_first", [True, False])
def test_a_bare_transformer_fetches_nothing_at_a_forecast_step(cache_first):
    """Whatever is set up on it, before or after."""
    hooks = pytest.importorskip("accelerate.hooks", reason="offloading is accelerate's")

    class Fetches(hooks.ModelHook):
        times = 0

        def pre_forward(self, module, *args, **kwargs):
            Fetches.times += 1
            return args, kwargs

    network = PIPELINES["flux"].build().transformer
    reference = loop(network, euler())
    if not cache_first:
        hooks.add_hook_to_module(network, Fetches())
    adapter.enable(network, steps=STEPS, **SETTINGS)
    if cache_first:
        hooks.add_hook_to_module(network, Fetches())
    loop(network, euler())
    assert Fetches.times == 2 * CALLS
    adapter.disable(network)
    assert torch.equal(loop(network, euler()), reference)
    assert Fetches.times > 2 * CALLS, "what was set up is there again, or still"
    hooks.remove_hook_from_module(network)
    assert torch.equal(loop(network, euler()), reference)
