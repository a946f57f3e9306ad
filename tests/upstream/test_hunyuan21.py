"""Hunyuan3D-2.1: the upstream's own pipeline, patched, around the trained reference network."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from forecache.rules import Linear
from forecache_adapters import hunyuan21 as adapter
from forecache_adapters.comfyui.nodes import ForecastPipeline
from forecache_adapters.comfyui.pipelines import forecasting
from forecache_lab.controls import WrongSign
from forecache_lab.generators.reference import TEST_SEED, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE
from upstream_helpers import check_batch_items, check_corrector, check_objects_of_pictures, import_as, relative

STEPS = 24
PLANS = Path(hunyuan21.__file__).with_name("plans")
BOUND = 0.02  # of latent drift at 13 of 50 calls; the wrong-sign control must exceed it


def picture(seed: int) -> torch.Tensor:
    return solids.picture(solids.solid(TEST_SEED + seed)[1], PICTURE)[None]


def run(pipe, seeds=(0,), steps=STEPS, **options):
    """Latents of one call for a batch of seeds."""
    return pipe(
        image=[picture(seed) for seed in seeds], num_inference_steps=steps, guidance_scale=options.pop("guidance", 3.0),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent", enable_pbar=False,
        **options,
    )  # fmt: skip


@pytest.fixture
def calls(pipe):
    """Batch sizes of the network's calls."""
    seen: list[int] = []
    hook = pipe.model.register_forward_pre_hook(lambda network, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


def test_off_is_bit_identical_to_the_original_file(pipe, original):
    module = import_as("hy3dshape.pipelines_original", original / "hy3dshape/hy3dshape/pipelines.py")
    unpatched = object.__new__(module.Hunyuan3DDiTFlowMatchingPipeline)
    vars(unpatched).update(vars(pipe))
    assert not hasattr(unpatched, "forecache")
    ticks: dict[str, list] = {"original": [], "patched": []}

    def note(name):
        return lambda step, t, outputs: ticks[name].append((step, float(t), float(outputs.prev_sample.sum())))

    before = run(unpatched, callback=note("original"), callback_steps=1)
    after = run(pipe, callback=note("patched"), callback_steps=1)
    assert torch.equal(before, after)
    assert ticks["original"] == ticks["patched"] and len(ticks["patched"]) == STEPS
    with pytest.raises(RuntimeError, match="not patched"):
        adapter.enable(unpatched)


def test_full_schedule_is_bit_identical_and_saves_the_still_step(pipe, calls):
    reference = run(pipe)
    assert len(calls) == STEPS
    calls.clear()
    ticks = []
    with adapter.enabled(pipe, basis="dmd", interval=1) as handle:
        latent = run(pipe, callback=lambda *args: ticks.append(args[0]), callback_steps=1)
    assert torch.equal(latent, reference)
    assert len(calls) == STEPS - 1 == handle.trace.computed
    assert handle.trace.steps[-1].kind == "still"
    assert ticks == list(range(STEPS))


@pytest.mark.parametrize("basis", ["reuse", "linear", "taylor", "hermite", "dmd", "chebyshev", "auto"])
def test_the_budget_is_exact_and_the_last_moving_step_is_computed(pipe, calls, basis):
    with adapter.enabled(pipe, basis=basis, calls=9) as handle:
        run(pipe)
    kinds = {step.index: step.kind for step in handle.trace.steps}
    assert len(calls) == 9 == handle.trace.computed
    assert kinds[0] == kinds[STEPS - 2] == "computed" and kinds[STEPS - 1] == "still"
    assert set(calls) == {2}, "the network's batch (conditional and unconditional) never changes shape"


def test_callbacks_see_forecast_steps(pipe):
    seen = []
    with adapter.enabled(pipe, basis="linear", interval=4):
        latent = run(pipe, callback=lambda step, t, out: seen.append(out.prev_sample.clone()), callback_steps=1)
    assert len(seen) == STEPS and torch.equal(seen[-1], latent)


def test_batch_items_are_independent(pipe, monkeypatch):
    check_batch_items(adapter, pipe, run, monkeypatch)


def test_runs_do_not_mix_and_leave_nothing(pipe, upstream):
    """Two pipelines whose runs interleave, of different batch sizes."""
    other = copy.copy(pipe)  # the upstream's scheduler is stateful, so a second loop needs its own
    other.scheduler = upstream.Scheduler()
    with adapter.enabled(pipe, basis="dmd", interval=3) as handle:
        beside = adapter.enable(other, basis="dmd", interval=3)
        alone, pair = run(pipe, (3,)), run(other, (4, 5))
        nested = []

        def interrupt(step, t, outputs):
            if step == 10:
                nested.append(run(other, (4, 5)))

        assert torch.equal(run(pipe, (3,), callback=interrupt, callback_steps=1), alone)
        assert torch.equal(nested[0], pair)
        assert torch.equal(run(pipe, (3,)), alone)
    assert "forecache" not in vars(pipe) and type(pipe).forecache is None
    assert handle.trace.computed == beside.trace.computed > 0, "the trace outlives the run"


def test_memory_is_freed_when_a_run_ends_or_is_cancelled(pipe, monkeypatch):
    alive: list[weakref.ref] = []
    begin = adapter.Handle.begin

    def watched(self, *args):
        run = begin(self, *args)
        alive.append(weakref.ref(run))
        return run

    monkeypatch.setattr(adapter.Handle, "begin", watched)

    def cancel(step, t, outputs):
        if step == 12:
            raise KeyboardInterrupt

    with adapter.enabled(pipe, basis="dmd", interval=3):
        reference = run(pipe)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback=cancel, callback_steps=1)
        gc.collect()
        assert [ref() for ref in alive] == [None, None]
        assert torch.equal(run(pipe), reference), "a cancelled run leaves nothing behind"


def test_turbo_switches_itself_off(upstream, calls):
    turbo = hunyuan21.build(upstream, turbo=True)
    reference = run(turbo, steps=5)
    handle = adapter.enable(turbo, basis="dmd", interval=3)
    with pytest.warns(UserWarning, match="off: 5 steps"):
        assert torch.equal(run(turbo, steps=5), reference)
    assert "off" in handle.trace.notes[0]


def test_uneven_sigmas_and_no_guidance(pipe, calls):
    sigmas = np.linspace(0, 1, STEPS) ** 1.7
    reference = run(pipe, sigmas=sigmas, guidance=-1.0)
    assert set(calls) == {1}
    drifts = {}
    for basis in (Linear(1), "reuse", WrongSign(Linear(1))):
        with adapter.enabled(pipe, basis=basis, interval=3):
            drifts[basis] = relative(run(pipe, sigmas=sigmas.copy(), guidance=-1.0), reference)
    linear, reuse, wrong = drifts.values()
    assert linear < reuse < wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(upstream, dtype):
    pipe = hunyuan21.build(upstream, dtype=dtype)
    reference = run(pipe)
    with adapter.enabled(pipe, basis="dmd", interval=3) as handle:
        latent = run(pipe)
    assert latent.dtype == dtype and relative(latent, reference) < 0.1
    assert handle.trace.forecast > 0


def test_published_methods(pipe, calls):
    pipe.enable_hicache(interval=4, max_order=2, first_enhance=3, end_enhance=20, sigma=0.5)
    run(pipe)
    assert [s.index for s in pipe.forecache.trace.steps if s.kind == "computed"] == [0, 1, 2, 6, 10, 14, 18, 20, 21, 22]
    calls.clear()
    handle = pipe.enable_dmd(interval=5, first_enhance=4, history=6)
    run(pipe)
    assert len(calls) == handle.trace.computed == 8
    pipe.disable_cache()
    pipe.disable_cache()
    assert pipe.forecache is None


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"corrector": "on"}, "corrector must be True, False or None .by basis., got 'on'"),
        ({"basis": "fourier"}, "basis must be one of"),
        ({"basis": "dmd", "history": 3}, "history must be >= 4"),
        ({"calls": 0}, "calls must be >= 1"),
        ({"interval": 3, "calls": 5}, "give one of interval, calls, plan; got calls and interval"),
        ({"intervall": 3}, "intervall"),
        ({"basis": "hermite", "sigma": 1.5}, "sigma must lie in"),
        ({"basis": "reuse", "order": 2}, "order=2 belongs to"),
        ({"adaptive_guidance": True}, "one call of the network serves both branches"),
    ],
)
def test_bad_settings_are_refused_when_enabled(pipe, settings, error):
    with pytest.raises((ValueError, TypeError), match=error):
        adapter.enable(pipe, **settings)
    assert pipe.forecache is None


@pytest.mark.long
def test_drift_tells_right_from_wrong(pipe):
    """Medians over test conditions, 50 steps: every rule < reuse < wrong sign, and a bound that the control exceeds."""
    seeds, drift = range(6), {}
    references = [run(pipe, (seed,), 50) for seed in seeds]
    for name, basis in {
        "dmd": "dmd", "hermite": "hermite", "auto": "auto", "reuse": "reuse", "wrong": WrongSign(Linear(1)),
    }.items():  # fmt: skip
        with adapter.enabled(pipe, basis=basis, interval=5, warmup=4):
            drift[name] = float(np.median([relative(run(pipe, (s,), 50), references[s]) for s in seeds]))
    for name in ("dmd", "hermite", "auto"):
        assert drift[name] < drift["reuse"] < drift["wrong"], drift
        assert drift[name] < BOUND < drift["wrong"], drift


@pytest.mark.long
def test_shipped_plans_drift_less_than_the_same_calls_without_one(pipe, calls):
    seeds, drift = range(6), {}
    references = [run(pipe, (seed,), 50) for seed in seeds]
    calls.clear()
    for name, settings in {
        "plan": {"plan": PLANS / "hunyuan21-11.json"},
        "auto": {"calls": 11},
        "reuse": {"basis": "reuse", "calls": 11},
    }.items():
        with adapter.enabled(pipe, **settings):
            drift[name] = float(np.median([relative(run(pipe, (s,), 50), references[s]) for s in seeds]))
    assert len(calls) == 3 * len(seeds) * 11
    assert drift["plan"] < drift["auto"] and drift["plan"] < 0.4 * drift["reuse"], drift


@pytest.mark.long
def test_the_corrector_is_on_and_half_the_calls_drift_less(pipe):
    check_corrector(partial(adapter.enabled, pipe), lambda: run(pipe), lambda handle: [handle.trace], calls=12)
    with adapter.enabled(pipe, plan=PLANS / "hunyuan21-11.json") as handle:
        run(pipe, steps=50)
    assert not any(step.corrected for step in handle.trace.steps), "a plan has corrections of its own"
    seeds, drift = range(4), {}
    references = [run(pipe, (seed,)) for seed in seeds]
    for on in (None, False):
        with adapter.enabled(pipe, calls=12, corrector=on):
            drift[on] = float(np.median([relative(run(pipe, (s,)), references[s]) for s in seeds]))
    assert drift[None] <= 1.05 * drift[False], drift


def test_a_plan_for_another_network_is_refused(pipe):
    other = copy.copy(pipe)
    other.model = copy.deepcopy(pipe.model)
    with torch.no_grad():
        next(other.model.parameters()).add_(0.01)
    with adapter.enabled(other, plan=PLANS / "hunyuan21-11.json"), pytest.raises(ValueError, match="weights: plan"):
        run(other, steps=50)
    loose = adapter.enabled(other, plan=PLANS / "hunyuan21-11.json", strict=False)
    with loose as handle, pytest.warns(UserWarning, match="plan not used"):
        run(other, steps=50)
    assert handle.trace.computed == 11 and "plan not used" in handle.trace.notes[0]


def test_a_plan_for_another_grid_or_guidance_is_refused(pipe):
    with adapter.enabled(pipe, plan=PLANS / "hunyuan21-11.json"):
        with pytest.raises(ValueError, match="steps: plan 50, run 24"):
            run(pipe)
        with pytest.raises(ValueError, match=r"guidance_scale: plan 3.0, run 4.0"):
            run(pipe, steps=50, guidance=4.0)


def test_uncached_meshes_are_the_solids_in_the_pictures(pipe):
    overlaps = []
    for k, family in enumerate(solids.FAMILIES):
        truth = solids.grid(solids.solid(TEST_SEED + k, family)[1], hunyuan21.RESOLUTION) < 0
        image = solids.picture(solids.solid(TEST_SEED + k, family)[1], PICTURE)[None]
        latent = pipe(
            image=[image], num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent", enable_pbar=False,
            generator=torch.Generator().manual_seed(k),
        )  # fmt: skip
        made = hunyuan21.to_distance(latent)[0] < 0
        overlaps.append(float((made & truth).sum() / (made | truth).sum()))
    assert np.median(overlaps) > 0.7, overlaps


def test_a_wrappers_pipeline_that_is_not_patched(pipe, original, calls):
    """The node for ComfyUI: the same forecasts on the original file as the patched loop makes."""
    module = import_as("hy3dshape.pipelines_wrapped", original / "hy3dshape/hy3dshape/pipelines.py")
    bare = object.__new__(module.Hunyuan3DDiTFlowMatchingPipeline)
    vars(bare).update(vars(pipe))
    settings = {"basis": "linear", "calls": 6}
    (held,) = ForecastPipeline().apply(
        {"pipeline": bare}, enabled=True, interval=0, warmup=0, plan="", few_steps=False, **settings
    )
    served, other = held["pipeline"], forecasting(pipe, **settings)
    reference = run(bare, steps=12)
    assert len(calls) == 12 and "forecache" not in vars(bare) and "forecache" not in vars(pipe)
    calls.clear()
    out = run(served, steps=12)
    assert len(calls) == 6 and relative(out, run(other, steps=12)) < 1e-5 < relative(out, reference)
    assert served.forecache.trace.computed == 6 and served.model is pipe.model
    for on in (None, False):
        corrected = forecasting(bare, calls=6, corrector=on)
        run(corrected, steps=12)
        assert any(step.corrected for step in corrected.forecache.trace.steps) == (on is None)
    full = run(forecasting(bare, interval=1), steps=12)
    assert torch.equal(full, reference)
    with pytest.raises(ValueError, match="plan: the pipeline's own guidance"):
        forecasting(bare, plan="plan.json")
    wrong = run(forecasting(bare, basis=WrongSign(Linear(1)), calls=6), steps=12)
    assert relative(wrong, reference) > 2 * relative(out, reference)  # the control


def test_objects_of_pictures(patched):
    from forecache_lab.generators.hunyuan21 import Hunyuan21

    check_objects_of_pictures(Hunyuan21(patched), 8)
