"""TRELLIS: the upstream's own pipelines and samplers, patched, around small woken networks."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from forecache import Calibration, Forecaster, schedule
from forecache.rules import Hermite, Linear, Rule, Unfit
from forecache_adapters import trellis as adapter
from forecache_adapters.comfyui.pipelines import forecasting, traces_of
from forecache_adapters.families import flow_euler
from forecache_lab.controls import WrongSign
from forecache_lab.generators.reference import trellis
from forecache_lab.metrics.combined import combined, fork_schedule, grid
from upstream_helpers import check_corrector, import_as

STAGES = ("sparse_structure", "slat")


@pytest.fixture(scope="session")
def upstream(checkouts):
    return trellis.load(checkouts("trellis", patched=True, source="wheel"))


@pytest.fixture(scope="session")
def shared(upstream):
    pipe = trellis.build(upstream)
    torch.manual_seed(0)
    coords = pipe.sample_sparse_structure(pipe.get_cond([1]), sampler_params={"steps": 12})
    return pipe, coords, {}


@pytest.fixture
def pipe(shared):
    made = shared[0]
    for params in (made.sparse_structure_sampler_params, made.slat_sampler_params):
        params.update(trellis.SAMPLER, steps=12)
    yield made
    adapter.disable(made)


@pytest.fixture
def coords(shared):
    return shared[1]


@pytest.fixture
def sample(pipe, coords, upstream):
    """``sample(stage, seed)``: what the stage's sampler returns, on fixed coordinates; options go to the sampler."""

    def run(stage: str, seed: int = 0, batch: int = 1, noise=None, **options):
        torch.manual_seed(seed)
        network = pipe.models[f"{stage}_flow_model"]
        if stage == "sparse_structure":
            drawn = torch.randn(batch, 4, 8, 8, 8)
            params = pipe.sparse_structure_sampler_params
        else:
            joined = batch_of([coords[3 * k :] for k in range(batch)])
            drawn = upstream.SparseTensor(feats=torch.randn(len(joined), 8), coords=joined)
            params = pipe.slat_sampler_params
        sampler = getattr(pipe, f"{stage}_sampler")
        given = {**pipe.get_cond([seed]), **params, **options, "verbose": False}
        return sampler.sample(network, drawn if noise is None else noise, **given)

    return run


@pytest.fixture
def uncached(shared, sample):
    """``uncached(stage, seed, steps)``: the reference of several tests, sampled once."""

    def run(stage: str, seed: int, steps: int = 12):
        known = shared[2]
        if (stage, seed, steps) not in known:
            known[stage, seed, steps] = sample(stage, seed, steps=steps).samples
        return known[stage, seed, steps]

    return run


@pytest.fixture
def calls(pipe):
    """Network calls by stage."""
    seen: dict[str, int] = {}
    hooks = [
        pipe.models[f"{stage}_flow_model"].register_forward_pre_hook(
            lambda *a, stage=stage: seen.update({stage: seen.get(stage, 0) + 1})
        )
        for stage in STAGES
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def batch_of(items: list[torch.Tensor]) -> torch.Tensor:
    """Coordinates of several items, numbered."""
    return torch.cat([torch.cat([torch.full_like(c[:, :1], k), c[:, 1:]], 1) for k, c in enumerate(items)])


def rows(value) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value.feats


def relative(a, b) -> float:
    return float((rows(a) - rows(b)).norm() / rows(b).norm())


def generate(pipe, **options):
    return pipe.run(3, seed=1, preprocess_image=False, **options)["slat"]


# --- off ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
def test_off_is_bit_identical_to_the_original_file(pipe, sample, checkouts, stage):
    source = checkouts("trellis", source="wheel") / "trellis/pipelines/samplers/flow_euler.py"
    module = import_as("trellis.pipelines.samplers.flow_euler_original", source)
    patched = getattr(pipe, f"{stage}_sampler")
    original = module.FlowEulerGuidanceIntervalSampler(1e-5)
    after = sample(stage)
    setattr(pipe, f"{stage}_sampler", original)
    try:
        before = sample(stage)
        with pytest.raises(RuntimeError, match="not patched"):
            adapter.enable(pipe)
    finally:
        setattr(pipe, f"{stage}_sampler", patched)
    for mine, theirs in zip(after.pred_x_t + after.pred_x_0, before.pred_x_t + before.pred_x_0, strict=True):
        assert torch.equal(rows(mine), rows(theirs))


@pytest.mark.parametrize(("steps", "cond", "uncond"), [(12, 12, 10), (25, 25, 19)])
def test_uncached_calls_by_stage_and_branch_and_the_full_schedule(pipe, calls, steps, cond, uncond):
    for params in (pipe.sparse_structure_sampler_params, pipe.slat_sampler_params):
        params["steps"] = steps
    reference = generate(pipe)
    assert calls == dict.fromkeys(STAGES, cond + uncond)  # 22 and 44 a stage
    with adapter.enabled(pipe, basis="dmd", interval=1) as handle:
        full = generate(pipe)
    assert torch.equal(full.feats, reference.feats) and torch.equal(full.coords, reference.coords)
    for stage in STAGES:
        assert handle.traces[stage].calls == {"cond": cond, "uncond": uncond}


# --- forecasting ----------------------------------------------------------------------------------------------------
def test_calls_after_forecasting(pipe, calls):
    with adapter.enabled(pipe, basis="linear", interval=2, warmup=4) as handle:
        generate(pipe)
        assert calls == dict.fromkeys(STAGES, 15)
        assert handle.traces["slat"].calls == {"cond": 8, "uncond": 7} and handle.traces["slat"].computed == 15
        for mode, expected in (("stochastic", 17), ("multidiffusion", 23)):
            calls.clear()
            pipe.run_multi_image([3, 4], seed=1, preprocess_image=False, mode=mode)
            assert calls == dict.fromkeys(STAGES, expected), mode
        branches = handle.traces["slat"].calls
        assert branches == {"cond[0]": 8, "cond[1]": 8, "uncond": 7}


def test_an_exact_budget(pipe, calls):
    with adapter.enabled(pipe, basis="auto", calls=6) as handle:
        generate(pipe)
    assert handle.traces["sparse_structure"].calls == {"cond": 6, "uncond": 5}
    assert calls == dict.fromkeys(STAGES, 11)


@pytest.mark.parametrize("stage", STAGES)
def test_the_corrector_is_on_where_the_branches_are_served_apart(pipe, sample, stage):
    def traces(handle):
        return list(handle.traces[stage].branches.values())

    run = partial(sample, stage, steps=24, cfg_interval=(0.0, 1.0), batch=2)
    check_corrector(partial(adapter.enabled, pipe), run, traces, calls=12)
    run = partial(sample, stage, steps=24)
    check_corrector(partial(adapter.enabled, pipe, adaptive_guidance=True), run, traces, False, calls=12)


def test_nothing_is_integrated_again_across_the_edge_of_guidance(pipe, sample):
    """What was skipped under guidance went into the sample with other strength than what comes behind it."""
    with adapter.enabled(pipe, calls=8) as handle:
        sample("sparse_structure", steps=24, cfg_interval=(0.6, 1.0))
    trace = handle.traces["sparse_structure"]
    guided = [step.index for step in trace.branches["uncond"].steps]
    behind = next(step for step in trace.branches["cond"].steps if step.index > guided[-1] and step.kind == "computed")
    steps = {step.index: step for step in trace.branches["cond"].steps}
    before = [k for k in range(guided[-1] + 1, behind.index) if steps[k].kind == "forecast"]
    assert steps[guided[-1]].kind == "forecast" and not before, "the case: all that was skipped there was guided"
    assert not behind.corrected and any(step.corrected for step in steps.values())


def test_settings_by_stage(pipe, calls):
    stages = {"sparse_structure": None, "slat": {"interval": 3, "basis": "hermite"}}
    reference = sample_structure(pipe)
    with adapter.enabled(pipe, basis="linear", interval=2, stages=stages) as handle:
        assert torch.equal(sample_structure(pipe), reference)
        calls.clear()
        generate(pipe)
    assert calls == {"sparse_structure": 22, "slat": 10}
    assert handle.traces["sparse_structure"].notes == ["off: not asked for in this stage"]
    used = {rule for step in handle.traces["slat"].branches["cond"].steps for rule in step.rules.values()}
    assert used == {"hermite2"}


def sample_structure(pipe):
    torch.manual_seed(5)
    return pipe.sample_sparse_structure(pipe.get_cond([5]))


@pytest.mark.parametrize("stage", STAGES)
def test_predictions_of_every_step_stay_filled(sample, pipe, stage):
    with adapter.enabled(pipe, basis="linear", interval=3):
        out = sample(stage)
    assert len(out.pred_x_t) == len(out.pred_x_0) == 12
    times, x = grid(12, 3.0), None
    for k, (after, x_0) in enumerate(zip(out.pred_x_t, out.pred_x_0, strict=True)):
        if x is not None:  # both follow from one velocity
            t, t_prev = times[k : k + 2]
            velocity = (rows(x) - rows(after)) / (t - t_prev)
            expected = (1 - 1e-5) * rows(x) - (1e-5 + (1 - 1e-5) * t) * velocity
            assert torch.allclose(rows(x_0), expected, atol=1e-4)
        x = after


def test_a_sparse_tensor_survives(sample, pipe, coords):
    with adapter.enabled(pipe, basis="linear", interval=3):
        out = sample("slat", batch=2)
    for each in (*out.pred_x_t, *out.pred_x_0, out.samples):
        assert torch.equal(each.coords, out.samples.coords) and each.layout == out.samples.layout
        assert each._spatial_cache is out.samples._spatial_cache
        assert each.coords.data_ptr() == out.samples.coords.data_ptr()
    assert len(out.samples.layout) == 2


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [12, 25])
def test_drift_across_the_guidance_edge(sample, uncached, pipe, stage, steps):
    """Interval 2 crosses the edge on either grid: the combined velocity jumps there, the branches do not."""
    drift: dict[str, list[float]] = {}
    computed = schedule.fixed_interval(range(steps), 2, 2)
    for seed in range(3):
        reference = uncached(stage, seed, steps)
        for name, basis in {"linear": Linear(1), "reuse": "reuse", "wrong": WrongSign(Linear(1))}.items():
            with adapter.enabled(pipe, basis=basis, interval=2) as handle:
                found = relative(sample(stage, seed, steps=steps).samples, reference)
            drift.setdefault(name, []).append(found)
        with combined(getattr(pipe, f"{stage}_sampler"), Linear(1), steps, computed):
            drift.setdefault("combined", []).append(relative(sample(stage, seed, steps=steps).samples, reference))
    guided = sum(i < {12: 10, 25: 19}[steps] for i in computed)
    assert handle.traces[stage].computed == len(computed) + guided  # the control's calls
    linear, reuse, wrong, control = (float(np.median(drift[k])) for k in ("linear", "reuse", "wrong", "combined"))
    assert linear < reuse < wrong < control, drift
    assert linear <= control / 5, drift


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("steps", "interval"), [(12, 2), (12, 3), (25, 2), (25, 3)])
def test_no_worse_than_the_forks_with_as_many_calls(sample, uncached, pipe, stage, steps, interval):
    """Ours on the forks' schedule and on our own; the forks' interval is at least 3 below 20 steps."""
    computed = fork_schedule(steps, interval)
    guided = sum(i < {12: 10, 25: 19}[steps] for i in computed)
    gap = max(interval, 3) if steps < 20 else interval
    ours, theirs = [], []
    for seed in range(2):
        reference = uncached(stage, seed, steps)
        with combined(getattr(pipe, f"{stage}_sampler"), Hermite(2, 0.5), steps, computed):
            theirs.append(relative(sample(stage, seed, steps=steps).samples, reference))
        with adapter.enabled(pipe, basis="dmd", interval=gap, warmup=4) as handle:
            ours.append(relative(sample(stage, seed, steps=steps).samples, reference))
    assert handle.traces[stage].computed <= len(computed) + guided
    assert np.median(ours) <= np.median(theirs), (ours, theirs)


def test_adaptive_guidance_by_stage(sample, pipe, calls):
    reference = {stage: sample(stage).samples for stage in STAGES}
    calls.clear()
    with adapter.enabled(pipe, interval=1, stages={"slat": {"adaptive_guidance": {"tolerance": 0.05}}}) as handle:
        found = {stage: sample(stage).samples for stage in STAGES}
        trace = handle.traces["slat"]
        assert torch.equal(rows(found["sparse_structure"]), rows(reference["sparse_structure"]))
        assert trace.calls["cond"] == 12 and 0 < trace.saved == 10 - trace.calls["uncond"]
        assert calls == {"sparse_structure": 22, "slat": 22 - trace.saved}
        assert 0 < relative(found["slat"], reference["slat"]) < 0.05
        off = sample("slat", cfg_strength=0.0).samples  # both branches are called, and nothing is to be saved
        assert handle.traces["slat"].saved == 0 and handle.traces["slat"].calls == {"cond": 12, "uncond": 10}
    assert torch.equal(rows(off), rows(sample("slat", cfg_strength=0.0).samples))


class Damped(Rule):
    """Extrapolates by a share that the Gram matrix decides, erratically: the weights are very much the item's own."""

    name, window = "damped", 2

    def weights(self, times, target, gram):
        if len(times) < 2:
            raise Unfit("one snapshot")
        a = (target - times[1]) / (times[1] - times[0]) * np.sin(gram[1, 1]) ** 2
        return np.array([-a, 1 + a])


# --- independence ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
def test_batch_items_are_independent(sample, pipe, upstream, coords, stage, monkeypatch):
    """A batch of two against single runs; a fit over the whole batch, the control, couples them."""

    def noises():
        torch.manual_seed(7)
        if stage == "sparse_structure":
            both = torch.randn(2, 4, 8, 8, 8)
            return both, [both[:1], both[1:]]
        items = [coords, coords[3:]]
        feats = [torch.randn(len(item), 8) for item in items]
        one = [upstream.SparseTensor(feats=f, coords=c.clone()) for f, c in zip(feats, items, strict=True)]
        return upstream.SparseTensor(feats=torch.cat(feats), coords=batch_of(items)), one

    def apart() -> float:
        both, single = noises()
        together = rows(sample(stage, noise=both).samples)
        alone = torch.cat([rows(sample(stage, noise=each).samples) for each in single])
        return float((together - alone).norm() / alone.norm())

    floor = apart()
    with adapter.enabled(pipe, basis=Damped(), interval=2):
        assert apart() <= 1e-6 + 3 * floor
    if stage == "sparse_structure":
        whole = lambda self, times, *rest: Forecaster(Damped(), times=times, computed=[0], batch_dim=None)  # noqa: E731
        monkeypatch.setattr("forecache_adapters.settings.Settings.history_of", whole)
    else:
        monkeypatch.setattr("forecache_adapters.sparse._items", lambda value: [value.feats])
    with adapter.enabled(pipe, basis=Damped(), interval=2):
        assert apart() > 1e-5


@contextmanager
def alive(monkeypatch):
    """Weak references to the runs that begin meanwhile."""
    found: list[weakref.ref] = []
    original = flow_euler.FlowRun.__init__

    def watched(self, *args):
        original(self, *args)
        found.append(weakref.ref(self))

    monkeypatch.setattr(flow_euler.FlowRun, "__init__", watched)
    yield found


def test_memory_is_freed_however_a_run_ends(pipe, sample, monkeypatch):
    with adapter.enabled(pipe, basis="dmd", interval=2), alive(monkeypatch) as runs:
        reference = sample("slat").samples
        network = pipe.models["slat_flow_model"]

        def cancel(*unused):
            cancel.left -= 1
            if cancel.left == 0:
                raise KeyboardInterrupt

        cancel.left = 9
        hook = network.register_forward_pre_hook(cancel)
        with pytest.raises(KeyboardInterrupt):
            sample("slat")
        hook.remove()
        gc.collect()
        assert len(runs) == 2 and [run() for run in runs] == [None, None]
        assert torch.equal(sample("slat").samples.feats, reference.feats), "a cancelled run leaves nothing behind"


def test_interleaved_runs_do_not_touch(pipe, sample):
    """Two threads on one sampler object, and a run inside another's step."""
    with adapter.enabled(pipe, basis="dmd", interval=2):
        alone = {seed: sample("sparse_structure", seed).samples for seed in (1, 2)}
        noise = {}
        for seed in (1, 2):
            torch.manual_seed(seed)
            noise[seed] = torch.randn(1, 4, 8, 8, 8)
        found = {}

        def work(seed):
            found[seed] = pipe.sparse_structure_sampler.sample(
                pipe.models["sparse_structure_flow_model"], noise[seed], **pipe.get_cond([seed]),
                **pipe.sparse_structure_sampler_params, verbose=False,
            ).samples  # fmt: skip

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        nested = []

        def interrupt(*unused):
            if not nested:
                nested.append(None)
                nested[0] = sample("slat", 3).samples

        hook = pipe.models["sparse_structure_flow_model"].register_forward_hook(interrupt)
        inside = sample("sparse_structure", 1).samples
        hook.remove()
        assert torch.equal(nested[0].feats, sample("slat", 3).samples.feats)
    assert all(torch.equal(found[seed], alone[seed]) for seed in (1, 2)) and torch.equal(inside, alone[1])


@pytest.fixture
def text(upstream):
    made = trellis.build(upstream, text=True)
    for params in (made.sparse_structure_sampler_params, made.slat_sampler_params):
        params["steps"] = 12
    return made


def test_a_prompt_runs_both_stages(text):
    """The text pipeline's own ``run``: its negative condition is one tensor that outlives every run."""
    reference = text.run(3, num_samples=2, seed=1)["slat"]
    with adapter.enabled(text, basis="dmd", interval=1) as handle:
        full = text.run(3, num_samples=2, seed=1)["slat"]
    assert torch.equal(full.feats, reference.feats) and torch.equal(full.coords, reference.coords)
    assert [handle.traces[stage].calls for stage in STAGES] == [{"cond": 12, "uncond": 10}] * 2
    with adapter.enabled(text, basis="linear", interval=2, warmup=4) as handle:
        out = text.run(3, num_samples=2, seed=1)["slat"]
    assert [handle.traces[stage].calls for stage in STAGES] == [{"cond": 8, "uncond": 7}] * 2
    assert len(out.layout) == 2 and not torch.equal(out.feats[:10], reference.feats[:10])


def test_variants_of_a_mesh_run_the_slat_stage(text, coords, monkeypatch):
    monkeypatch.setattr(type(text), "voxelize", lambda self, mesh: coords[:, 1:].contiguous())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # the upstream's call; there is no GPU here
    seen = []
    text.models["slat_flow_model"].register_forward_pre_hook(lambda *a: seen.append(1))
    with adapter.enabled(text, basis="linear", interval=2, warmup=4) as handle:
        out = text.run_variant(None, 3, num_samples=2, seed=1)["slat"]
    assert len(seen) == 15 == handle.traces["slat"].computed and len(out.layout) == 2
    assert set(handle.traces) == {"slat"}


# --- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"stages": {"texture": {"interval": 2}}}, "stages must be among sparse_structure, slat, got texture"),
        ({"stages": {"slat": 3}}, r"stages\['slat'\] must be a mapping of settings, a cache, or None, got 3"),
        ({"stages": {"slat": {"interval": 0}}}, "interval must be >= 1, got 0"),
        ({"basis": "fourier"}, "basis must be one of"),
        ({"intervall": 3}, "intervall"),
    ],
)
def test_bad_settings_are_refused_when_enabled(pipe, settings, error):
    with pytest.raises((ValueError, TypeError), match=error):
        adapter.enable(pipe, **settings)
    assert pipe.slat_sampler.forecache is None and "forecache" not in vars(pipe.slat_sampler)


def test_what_is_no_pipeline_of_trellis_is_refused():
    with pytest.raises(TypeError, match="pipeline: object has none of sparse_structure_sampler, slat_sampler"):
        adapter.enable(object())


def test_few_steps_switch_the_cache_off(sample, pipe):
    reference = sample("sparse_structure", steps=8).samples
    with adapter.enabled(pipe, basis="linear", interval=2) as handle:
        with pytest.warns(UserWarning, match="off: 8 steps"):
            assert torch.equal(sample("sparse_structure", steps=8).samples, reference)
        assert handle.traces["sparse_structure"].calls == {"cond": 8, "uncond": 7}
    with adapter.enabled(pipe, basis="linear", interval=2, few_steps=True):
        assert not torch.equal(sample("sparse_structure", steps=8).samples, reference)


def test_a_condition_that_is_another_tensor_at_every_step_is_computed_and_said(pipe, sample):
    sampler, reference = pipe.sparse_structure_sampler, sample("sparse_structure", cfg_interval=[2.0, 3.0]).samples
    inside = sampler._inference_model
    with adapter.enabled(pipe, basis="linear", interval=2) as handle:
        sampler._inference_model = lambda model, x_t, t, cond, **kwargs: inside(model, x_t, t, cond.clone(), **kwargs)
        try:
            assert torch.equal(sample("sparse_structure", cfg_interval=[2.0, 3.0]).samples, reference)
        finally:
            del sampler._inference_model
    trace = handle.traces["sparse_structure"]
    assert trace.computed == 12
    assert trace.notes == ["nothing was forecast: every step came with a condition tensor of its own"]
    assert json.loads(json.dumps(trace.to_dict()))["notes"] == trace.notes


def test_enable_is_symmetric(pipe):
    outer = adapter.enable(pipe, interval=3)
    with adapter.enabled(pipe, interval=2) as inner:
        assert pipe.slat_sampler.forecache is pipe.sparse_structure_sampler.forecache is inner
    assert pipe.slat_sampler.forecache is outer
    adapter.disable(pipe)
    adapter.disable(pipe)
    assert pipe.slat_sampler.forecache is None


# --- plans ----------------------------------------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_is_made_and_served_through_the_sampler(pipe, sample, uncached, tmp_path, stage):
    def run(seed, cache):
        with adapter.enabled(pipe, stages={stage: cache}):
            return rows(sample(stage, seed).samples)

    made = Calibration(
        run, times=grid(12, 3.0), seeds=range(10, 14), guidance_scale=6.0, probes=2, made_for=adapter.key(pipe, stage)
    ).plan(6)  # fmt: skip
    made.save(tmp_path / "plan.json")
    drift: dict[str, list[float]] = {"plan": [], "even": []}
    for seed in range(3):
        reference = uncached(stage, seed)
        with adapter.enabled(pipe, plan=tmp_path / "plan.json") as handle:
            drift["plan"].append(relative(sample(stage, seed).samples, reference))
        with adapter.enabled(pipe, basis="linear", calls=6):
            drift["even"].append(relative(sample(stage, seed).samples, reference))
    guided = sum(i < 10 for i in made.computed)
    assert handle.traces[stage].calls == {"cond": 6, "uncond": guided}
    assert np.median(drift["plan"]) < np.median(drift["even"]), drift
    with adapter.enabled(pipe, plan=made), pytest.raises(ValueError, match=r"guidance_scale: plan 6.0, run 4.0"):
        sample(stage, cfg_strength=3.0)


def test_a_wrappers_holder(pipe):
    """The node for ComfyUI: a copy of the pipeline, with samplers of its own, in a copy of what holds it."""
    loaded, pipe.models["sparse_structure_flow_model"] = pipe.models["sparse_structure_flow_model"], None
    held = forecasting({"model": pipe, "infer_mode": "image"}, interval=3, stages={"slat": None})
    held["model"].models["sparse_structure_flow_model"] = loaded  # wrappers load networks when they are needed
    assert traces_of(held) == {} and held["infer_mode"] == "image"
    outs = []
    for each in (held["model"], pipe):
        torch.manual_seed(0)
        outs.append(each.sample_sparse_structure(pipe.get_cond([1])))
    assert "forecache" not in vars(pipe.sparse_structure_sampler) and held["model"].models is pipe.models
    trace = traces_of(held)["sparse_structure"]
    with adapter.enabled(pipe, interval=3, stages={"slat": None}) as handle:
        torch.manual_seed(0)
        assert torch.equal(pipe.sample_sparse_structure(pipe.get_cond([1])), outs[0])
        assert handle.traces["sparse_structure"].calls == trace.calls
    assert 0 < trace.calls["cond"] < 12
