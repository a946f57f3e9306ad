"""Attaching never harms TRELLIS: loops of another form, second requests, copies; what cannot be followed is off."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import pickle
import sys
import weakref

import numpy as np
import pytest
import torch

from forecache import Calibration, Forecaster
from forecache_adapters import trellis as adapter
from forecache_adapters.attach import attached
from forecache_adapters.families.flow_euler import Accelerator
from forecache_lab.generators.reference import trellis
from forecache_lab.metrics.combined import grid

STEPS = 12
FORECASTING = {"basis": "linear", "interval": 2, "warmup": 2}
pytestmark = pytest.mark.filterwarnings("ignore:forecache is off", "ignore:forecache. auto with")


@pytest.fixture(scope="module")
def upstream(checkouts):
    return trellis.load(checkouts("trellis", patched=True, source="wheel"))


@pytest.fixture(scope="module")
def shared(upstream):
    pipe = trellis.build(upstream)
    for params in (pipe.sparse_structure_sampler_params, pipe.slat_sampler_params):
        params.update(trellis.SAMPLER, steps=STEPS)
    return pipe


@pytest.fixture
def pipe(shared):
    """A pipeline with samplers of its own, around networks that all tests share."""
    made = copy.copy(shared)
    made.models = dict(shared.models)
    made.sparse_structure_sampler, made.slat_sampler = map(
        copy.copy, (shared.sparse_structure_sampler, shared.slat_sampler)
    )
    return made


@pytest.fixture
def calls(pipe):
    seen: list[int] = []
    hook = pipe.models["sparse_structure_flow_model"].register_forward_pre_hook(lambda *unused: seen.append(1))
    yield seen
    hook.remove()


def sample(pipe, **options):
    """All that the structure stage's sampler returns."""
    torch.manual_seed(3)
    given = {**pipe.get_cond([3]), **pipe.sparse_structure_sampler_params, **options, "verbose": False}
    network = given.pop("network", pipe.models["sparse_structure_flow_model"])
    return pipe.sparse_structure_sampler.sample(network, torch.randn(1, 4, 8, 8, 8), **given)


def same(one, other) -> bool:
    pairs = [(one.samples, other.samples), *zip(one.pred_x_0, other.pred_x_0, strict=True)]
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


def replace(pipe, body) -> None:
    """Give the structure stage a sampler of a class of one's own: the upstream's with ``body``."""
    base = type(pipe.sparse_structure_sampler)
    pipe.sparse_structure_sampler = type("Own", (base,), body)(trellis.SIGMA_MIN)


def trace_of(handle):
    return handle.traces["sparse_structure"]


# --- a second request of one branch in one step -----------------------------------------------------------------------
def test_a_negative_that_is_the_condition_itself(pipe, calls):
    cond = pipe.get_cond([3])["cond"]
    reference = sample(pipe, neg_cond=cond, cond=cond)
    assert len(calls) == 22
    calls.clear()
    with adapter.enabled(pipe, interval=1) as handle:
        assert same(sample(pipe, neg_cond=cond, cond=cond), reference) and len(calls) == 22
        assert trace_of(handle).calls == {"cond": 12, "uncond": 10} and not trace_of(handle).notes
    with adapter.enabled(pipe, **FORECASTING) as handle:
        out = sample(pipe, neg_cond=cond, cond=cond)
    assert trace_of(handle).calls == {"cond": 7, "uncond": 6}
    assert float((out.samples - reference.samples).norm() / reference.samples.norm()) < 0.1


def test_a_condition_asked_twice_at_one_state_is_served_apart(pipe, calls):
    """As perturbed-attention guidance does: the network is another one in the second call."""
    base, other = type(pipe.sparse_structure_sampler), copy.deepcopy(pipe.models["sparse_structure_flow_model"])
    with torch.no_grad():
        other.out_layer.bias.add_(1.0)

    def perturbed(self, model, x_t, t, cond, **kwargs):
        one = base._inference_model(self, model, x_t, t, cond, **kwargs)
        two = base._inference_model(self, other, x_t, t, cond, **{**kwargs, "cfg_interval": (2.0, 3.0)})
        return one + 0.1 * (one - two)

    replace(pipe, {"_inference_model": perturbed})
    reference = sample(pipe)
    before = len(calls)
    calls.clear()
    with adapter.enabled(pipe, interval=1) as handle:
        assert same(sample(pipe), reference) and len(calls) == before
        assert trace_of(handle).calls == {"cond": 12, "uncond": 10, "cond, call 2": 12}
    with adapter.enabled(pipe, **FORECASTING) as handle:
        out = sample(pipe)
    assert trace_of(handle).calls == {"cond": 7, "uncond": 6, "cond, call 2": 7} and not trace_of(handle).notes
    assert float((out.samples - reference.samples).norm() / reference.samples.norm()) < 0.1


def off_with(handle, note: str) -> None:
    assert len(trace_of(handle).notes) == 1 and note in trace_of(handle).notes[0], trace_of(handle).notes


def test_tiles_cannot_be_told_apart(pipe, calls):
    base = type(pipe.sparse_structure_sampler)

    def tiled(self, model, x_t, t, cond, **kwargs):
        there = base._inference_model(self, model, x_t, t, cond, **kwargs)
        return (there + base._inference_model(self, model, x_t.flip(2), t, cond, **kwargs).flip(2)) / 2

    replace(pipe, {"_inference_model": tiled})
    reference = sample(pipe)
    before = len(calls)
    calls.clear()
    with adapter.enabled(pipe, **FORECASTING) as handle:
        assert same(sample(pipe), reference) and len(calls) == before
    off_with(handle, "off: step 0 asks for 'cond' again, at another state")


def test_a_loop_that_resamples_each_step(pipe, calls):
    base = type(pipe.sparse_structure_sampler)

    def twice(self, model, x_t, t, t_prev, cond=None, **kwargs):
        first = base.sample_once(self, model, x_t, t, t_prev, cond, **kwargs)
        again = first.pred_x_prev + (t - t_prev) * 0.5
        return base.sample_once(self, model, again, t, t_prev, cond, **kwargs)

    replace(pipe, {"sample_once": twice})
    reference = sample(pipe)
    before = len(calls)
    calls.clear()
    with adapter.enabled(pipe, **FORECASTING) as handle:
        assert same(sample(pipe), reference) and len(calls) == before
    off_with(handle, "off: step 1 as they are counted, but step 0 by its time 1")


def test_a_corrector_behind_the_step_is_always_computed(pipe, calls):
    base = type(pipe.sparse_structure_sampler)

    def heun(self, model, x_t, t, t_prev, cond=None, **kwargs):
        out = base.sample_once(self, model, x_t, t, t_prev, cond, **kwargs)
        there = self._inference_model(model, out.pred_x_prev, t_prev, cond, **kwargs)
        out.pred_x_prev = (out.pred_x_prev + x_t - (t - t_prev) * there) / 2
        return out

    replace(pipe, {"sample_once": heun})
    reference = sample(pipe)
    before = len(calls)
    calls.clear()
    with adapter.enabled(pipe, interval=1):
        assert same(sample(pipe), reference) and len(calls) == before
    calls.clear()
    with adapter.enabled(pipe, **FORECASTING) as handle:
        out = sample(pipe)
    assert len(calls) == before - 5 - 4 and not trace_of(handle).notes
    assert float((out.samples - reference.samples).norm() / reference.samples.norm()) < 0.1


@pytest.mark.parametrize("settings", [{"adaptive_guidance": True}, {"interval": 2}])
@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_images(pipe, settings, mode):
    """Adaptive guidance serves one condition and its negative, so it is off, and says so."""

    def run():
        return pipe.run_multi_image([3, 4], seed=1, preprocess_image=False, mode=mode)["slat"].feats

    reference = run()
    with adapter.enabled(pipe, **{"interval": 1, **settings}) as handle:
        out = run()
    assert torch.equal(out, reference) == ("adaptive_guidance" in settings)
    if "adaptive_guidance" in settings:
        off_with(handle, "one condition and its negative, not 'cond[0]'")


def test_a_plan_is_off_where_the_sampler_has_more_branches(pipe, tmp_path):
    def run(seed, cache):
        with adapter.enabled(pipe, stages={"sparse_structure": cache}):
            return sample(pipe).samples

    plan = Calibration(
        run, times=grid(STEPS, 3.0), seeds=range(2), guidance_scale=6.0, probes=1,
        made_for=adapter.key(pipe, "sparse_structure"),
    ).plan(6)  # fmt: skip
    reference = pipe.run_multi_image([3, 4], seed=1, preprocess_image=False)["slat"].feats
    with adapter.enabled(pipe, plan=plan) as handle:
        assert torch.equal(pipe.run_multi_image([3, 4], seed=1, preprocess_image=False)["slat"].feats, reference)
        off_with(handle, "serves one condition and its negative, but the sampler asks for 'cond[0]'")
        sample(pipe)
        assert trace_of(handle).calls["cond"] == 6
        with pytest.raises(ValueError, match=r"guidance_scale: plan 6\.0, run 4\.0"):  # made for something else
            sample(pipe, cfg_strength=3.0)
    with pytest.raises(ValueError, match="plan: it has its own schedule; leave out calls"):
        adapter.enable(pipe, plan=plan, calls=5)
    with pytest.raises(TypeError, match="plan must be a Plan, the path of its file, or a list of them, got 3"):
        adapter.enable(pipe, plan=[3])
    own = Forecaster(times=grid(STEPS, 3.0), interval=2)
    with (
        adapter.enabled(pipe, stages={"sparse_structure": own}),
        pytest.raises(ValueError, match=r"but the sampler asks for 'cond\[0\]'"),
    ):  # a cache of the user's own, such as a calibration's: what it is to be used for is not to be had
        pipe.run_multi_image([3, 4], seed=1, preprocess_image=False)


# --- loops of another form --------------------------------------------------------------------------------------------
def pairs_of():
    times = np.linspace(1, 0, STEPS + 1).tolist()
    return list(itertools.pairwise(times))


def looping(pipe, change):
    """A sampler that begins with ``change(pairs)`` and then visits ``visited``, both of the upstream's grid."""
    hook = sys.modules[type(pipe.sparse_structure_sampler).__module__]._forecache
    told, visited = change(pairs_of())

    def loop(self, model, noise, cond, **kwargs):
        x, kept = noise, {k: v for k, v in kwargs.items() if k in ("neg_cond", "cfg_strength", "cfg_interval")}
        if self.forecache is not None:
            for each in told:
                self.forecache.begin(each)
        for t, t_prev in visited:
            x = self.sample_once(model, x, t, t_prev, cond, **kept).pred_x_prev
        return x

    replace(pipe, {"sample": hook("run")(loop)})


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda p: ([p], p[3:]), "off: step 0 as they are counted, but step 3 by its time 0.75"),
        (lambda p: ([p], [p[0], *p]), "off: step 1 as they are counted, but step 0"),
        (lambda p: ([p], [*p, p[-1]]), "off: step 12 of a grid of 12"),
        (lambda p: ([p, p], p), "off: the loop begins again within one run"),
        (lambda p: ([iter(p)], p), "off: the grid is no list of times"),
        (lambda p: ([[*p[:3], *p[4:]]], p), "off: a step begins where the one before did not end"),
        (lambda p: ([[(1.0, 0.5), (0.5, 0.5), (0.5, 0.0)]], p), "names a time twice"),
        (lambda p: ([[]], p), "off: no step moves the state"),
        (lambda p: ([], []), "off: no step came through"),
    ],
)
def test_loops_that_cannot_be_followed(pipe, calls, change, note):
    looping(pipe, change)
    torch.manual_seed(0)
    noise, given = torch.randn(1, 4, 8, 8, 8), {**pipe.get_cond([1]), "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0]}
    network = pipe.models["sparse_structure_flow_model"]
    reference = pipe.sparse_structure_sampler.sample(network, noise, **given)
    before = len(calls)
    calls.clear()
    known_late = "of a grid of" in note  # the steps before it were on the grid: at full interval, then
    with adapter.enabled(pipe, **({"interval": 1} if known_late else FORECASTING)) as handle:
        assert torch.equal(pipe.sparse_structure_sampler.sample(network, noise, **given), reference)
    assert len(calls) == before and note in trace_of(handle).notes[0]
    assert len(trace_of(handle).notes) == 1


def test_a_loop_that_ends_early_forecasts_what_it_visits(pipe, calls):
    looping(pipe, lambda pairs: ([pairs], pairs[:-1]))
    network, noise = pipe.models["sparse_structure_flow_model"], torch.randn(1, 4, 8, 8, 8)
    given = {**pipe.get_cond([1]), "cfg_strength": 2.0, "cfg_interval": [2.0, 3.0]}
    with adapter.enabled(pipe, **FORECASTING) as handle:
        pipe.sparse_structure_sampler.sample(network, noise, **given)
    assert len(calls) == 6 and not trace_of(handle).notes


def test_a_sample_that_yields(pipe, calls):
    """Its loop runs when `sample` has returned: nothing is served, also within another run of the same sampler."""
    base = type(pipe.sparse_structure_sampler)
    hook = sys.modules[base.__module__]._forecache

    def steps(self, model, noise, cond, **kwargs):
        x = noise
        if self.forecache is not None:
            self.forecache.begin(pairs_of())
        for t, t_prev in pairs_of():
            x = self.sample_once(model, x, t, t_prev, cond, **kwargs).pred_x_prev
            yield x

    replace(pipe, {"sample": hook("run")(steps)})
    network, noise = pipe.models["sparse_structure_flow_model"], torch.randn(1, 4, 8, 8, 8)
    given = {**pipe.get_cond([1]), "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0]}
    reference = list(pipe.sparse_structure_sampler.sample(network, noise, **given))
    before = len(calls)
    with adapter.enabled(pipe, **FORECASTING) as handle:
        found = list(pipe.sparse_structure_sampler.sample(network, noise, **given))
    assert all(map(torch.equal, found, reference)) and len(calls) == 2 * before
    off_with(handle, "off: no step came through `sample_once` before `sample` ended")


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1}, {"steps": 2}, {"rescale_t": 1e30}, {"rescale_t": 0.0}])
@pytest.mark.parametrize("settings", [{"interval": 1}, {"calls": 4}, {"interval": 1, "few_steps": True}])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
def test_degenerate_grids_pass_through(pipe, calls, options, settings):
    reference = sample(pipe, **options)
    before = len(calls)
    calls.clear()
    with adapter.enabled(pipe, **settings):
        assert same(sample(pipe, **options), reference) and len(calls) == before


def test_guidance_that_never_asks_for_the_condition(pipe):
    """Strength -1 leaves the negative alone; a sampler of one's own may not ask for the condition at all."""
    base = type(pipe.sparse_structure_sampler)

    def alone(self, model, x_t, t, cond, neg_cond, **kwargs):
        kwargs["cfg_interval"] = (2.0, 3.0)
        return base._inference_model(self, model, x_t, t, neg_cond, neg_cond, **kwargs)

    replace(pipe, {"_inference_model": alone})
    reference = sample(pipe)
    with adapter.enabled(pipe, interval=1, adaptive_guidance=True) as handle:
        assert same(sample(pipe), reference)
    off_with(handle, "asks for 'uncond' alone")
    with adapter.enabled(pipe, **FORECASTING) as handle:
        sample(pipe)
    assert trace_of(handle).calls == {"uncond": 7} and not trace_of(handle).notes


# --- what kind of call it is ------------------------------------------------------------------------------------------
def test_a_condition_that_changes_within_the_run(pipe):
    cond = pipe.get_cond([3])
    kept = cond["cond"].clone()

    base = type(pipe.sparse_structure_sampler)
    steps = []

    def once(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 8:
            cond["cond"].mul_(-1.0)
        return base.sample_once(self, *args, **kwargs)

    replace(pipe, {"sample_once": once})

    def changed():
        steps.clear()
        cond["cond"].copy_(kept)
        return sample(pipe, **cond)

    reference = changed()
    with adapter.enabled(pipe, interval=1):
        assert same(changed(), reference)
    with adapter.enabled(pipe, basis="linear", interval=4, warmup=2) as handle:
        changed()
    kinds = {step.index: step.kind for step in trace_of(handle).branches["cond"].steps}
    assert kinds[7] == "computed" and kinds[6] == kinds[8] == "forecast"
    assert any("another cond" in note for note in trace_of(handle).branches["cond"].notes)
    assert not trace_of(handle).branches["uncond"].notes, "control: its condition is what it was"


def test_another_network_within_the_run(pipe):
    base, first = type(pipe.sparse_structure_sampler), pipe.models["sparse_structure_flow_model"]
    second, steps = copy.deepcopy(first), []
    with torch.no_grad():
        second.out_layer.bias.add_(1.0)

    def once(self, model, *args, **kwargs):
        steps.append(1)
        return base.sample_once(self, model if len(steps) < 8 else second, *args, **kwargs)

    replace(pipe, {"sample_once": once})
    reference = sample(pipe)
    for settings, exact in (({"interval": 1}, True), ({"basis": "linear", "interval": 4, "warmup": 2}, False)):
        steps.clear()
        with adapter.enabled(pipe, **settings) as handle:
            assert same(sample(pipe), reference) == exact
    kinds = {step.index: step.kind for step in trace_of(handle).branches["cond"].steps}
    assert kinds[7] == "computed" and kinds[6] == "forecast"
    assert any("another model" in note for note in trace_of(handle).branches["uncond"].notes)


def test_voxels_that_change_within_the_run(pipe, upstream):
    """As many rows as before, at other places: the forecast would put each velocity on another voxel."""
    torch.manual_seed(0)
    coords = pipe.sample_sparse_structure(pipe.get_cond([1]))
    base, steps = type(pipe.slat_sampler), []
    other = coords.clone()
    other[:, 1:] = (other[:, 1:] + 1) % 16
    noise = upstream.SparseTensor(feats=torch.randn(len(coords), 8), coords=coords)

    def once(self, model, x_t, *args, **kwargs):
        steps.append(1)
        if len(steps) == 8:
            x_t = upstream.SparseTensor(feats=x_t.feats, coords=other)
        return base.sample_once(self, model, x_t, *args, **kwargs)

    pipe.slat_sampler = type("Own", (base,), {"sample_once": once})(trellis.SIGMA_MIN)

    def run():
        steps.clear()
        given = {**pipe.get_cond([1]), **pipe.slat_sampler_params, "verbose": False}
        return pipe.slat_sampler.sample(pipe.models["slat_flow_model"], noise, **given).samples

    reference = run()
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(run().feats, reference.feats)
    with adapter.enabled(pipe, basis="linear", interval=4, warmup=2) as handle:
        out = run()
    assert torch.equal(out.coords, other)
    kinds = {step.index: step.kind for step in handle.traces["slat"].branches["cond"].steps}
    assert kinds[7] == "computed" and kinds[6] == "forecast"
    assert any("another voxels" in note for note in handle.traces["slat"].branches["cond"].notes)


def test_adaptive_guidance_begins_anew_with_the_kind(pipe):
    """The state changes its batch: the difference of the branches that was kept is of no use."""
    base, steps = type(pipe.sparse_structure_sampler), []

    def once(self, model, x_t, *args, **kwargs):
        steps.append(1)
        return base.sample_once(self, model, x_t if len(steps) != 6 else torch.cat([x_t, x_t]), *args, **kwargs)

    replace(pipe, {"sample_once": once})
    reference = sample(pipe)
    steps.clear()
    with adapter.enabled(pipe, interval=1, adaptive_guidance={"tolerance": 0.05}) as handle:
        out = sample(pipe)
    assert len(out.samples) == 2 and torch.equal(out.samples[0], out.samples[1])
    assert trace_of(handle).saved > 0 and not trace_of(handle).notes
    assert float((out.samples - reference.samples).norm() / reference.samples.norm()) < 0.05


@pytest.mark.parametrize("settings", [{"interval": 2}, {"interval": 1, "adaptive_guidance": True}])
def test_a_network_that_returns_no_number(pipe, settings):
    base, steps = type(pipe.sparse_structure_sampler), []

    def once(self, model, x_t, *args, **kwargs):
        steps.append(1)
        return base.sample_once(self, model, x_t if len(steps) != 5 else x_t * float("nan"), *args, **kwargs)

    replace(pipe, {"sample_once": once})
    with adapter.enabled(pipe, **settings):
        assert torch.isnan(sample(pipe).samples).all() and len(steps) == STEPS


def test_groups_that_do_not_fit_switch_the_cache_off(pipe):
    reference = sample(pipe)
    with adapter.enabled(pipe, interval=2, groups={"pose": ("scale",)}) as handle:
        assert same(sample(pipe), reference)
    off_with(handle, "scale")


def test_errors_of_the_network_are_the_users_own(pipe):
    with adapter.enabled(pipe, **FORECASTING) as handle, pytest.raises(ValueError, match="mine"):
        sample(pipe, network=lambda *unused: (_ for _ in ()).throw(ValueError("mine")))
    assert not trace_of(handle).notes and handle._runs == []


# --- what it is attached to -------------------------------------------------------------------------------------------
SAMPLERS = ("sparse_structure_sampler", "slat_sampler")


def rebuilt(pipe):
    return type(pipe)(pipe.models, pipe.sparse_structure_sampler, pipe.slat_sampler, pipe.slat_normalization, None)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, rebuilt])
def test_a_copied_pipeline_is_plain_and_leaves_the_original_alone(pipe, make):
    former = type(pipe)
    handle = adapter.enable(pipe, **FORECASTING)
    other = make(pipe)
    assert type(other) is former and attached(other) is None
    assert all(getattr(other, name).forecache is None for name in SAMPLERS)
    adapter.disable(other)
    assert all(getattr(pipe, name).forecache is handle for name in SAMPLERS) and attached(pipe) is handle
    mine = adapter.enable(other, interval=3)
    assert all(getattr(other, name).forecache is mine for name in SAMPLERS)
    assert all(getattr(pipe, name).forecache is handle for name in SAMPLERS)
    adapter.disable(pipe)
    adapter.disable(pipe)
    assert type(pipe) is former and all("forecache" not in vars(getattr(pipe, name)) for name in SAMPLERS)
    assert all(getattr(pipe, name).forecache is None for name in SAMPLERS)
    assert other.slat_sampler.forecache is mine


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copied_sampler_is_plain(pipe, calls, make):
    reference = sample(pipe)
    handle = adapter.enable(pipe, **FORECASTING)
    other, former = make(pipe.slat_sampler), type(pipe.slat_sampler).__mro__[1]
    assert type(other) is former and other.forecache is None and vars(other) == vars(pipe.slat_sampler)
    calls.clear()
    plain = copy.copy(pipe)
    assert same(sample(plain), reference) and len(calls) == 22
    calls.clear()
    assert not same(sample(pipe), reference) and len(calls) == 13, "control: the original forecasts"
    again = make(handle)
    assert isinstance(again, Accelerator) and again.stages == handle.stages and set(again.traces) == set(handle.traces)
    other.forecache = again  # by hand, on a sampler that it knows nothing of
    network, noise = pipe.models["sparse_structure_flow_model"], torch.randn(1, 4, 8, 8, 8)
    other.sample(network, noise, **pipe.get_cond([1]), steps=2, verbose=False)


def test_two_pipelines_of_the_same_samplers(pipe):
    other = copy.copy(pipe)
    assert other.slat_sampler is pipe.slat_sampler
    handle = adapter.enable(pipe, interval=2)
    adapter.disable(other)
    assert pipe.slat_sampler.forecache is handle, "it is not attached to the other pipeline"
    newer = adapter.enable(other, interval=3)
    adapter.disable(pipe)
    assert pipe.slat_sampler.forecache is newer, "what it has from the other is not the first one's"
    adapter.disable(other)
    assert pipe.slat_sampler.forecache is None


def test_blocks_that_end_in_any_order(pipe):
    outer = adapter.enable(pipe, interval=4)
    one, two = contextlib.ExitStack(), contextlib.ExitStack()
    one.enter_context(adapter.enabled(pipe, interval=2))
    second = two.enter_context(adapter.enabled(pipe, interval=3))
    one.close()
    assert all(getattr(pipe, name).forecache is second for name in SAMPLERS), "the newer block goes on"
    two.close()
    assert all(getattr(pipe, name).forecache is outer for name in SAMPLERS), "what is over does not come back"
    with pytest.raises(ValueError, match="interval"), adapter.enabled(pipe, interval=0):
        pass
    assert attached(pipe) is pipe.slat_sampler.forecache is outer
    adapter.disable(pipe)
    assert attached(pipe) is None and pipe.slat_sampler.forecache is None


def test_a_kept_handle_keeps_no_pipeline(pipe):
    made = copy.copy(pipe)
    made.models = {name: copy.deepcopy(each) for name, each in pipe.models.items()}
    handle = adapter.enable(made, **FORECASTING)
    sample(made)
    gone = [weakref.ref(made), weakref.ref(made.models["slat_flow_model"])]
    del made
    gc.collect()
    assert gone[0]() is None and gone[1]() is None
    assert trace_of(handle).computed == 13
