"""cache-dit's own DBCache around small random transformers, with forecasts of this package in it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install 'forecache[cache-dit]'")

import cache_dit
import diffusers
from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator

from cache_dit_helpers import MASK, STEPS, N, always, denoise, masked, schedule, tiny, transformer
from forecache_adapters import cache_dit as adapter
from forecache_adapters.attach import attached
from forecache_adapters.cache_dit import Config, Forecasts
from forecache_lab.generators.reference.tiny_diffusers import wake

POLICIES = ("slow", "medium", "fast", "ultra")


def replay(calibrator, policy, truth) -> list[float]:
    """Largest error of each skipped step of a mask."""
    errors = []
    for t, compute in enumerate(cache_dit.steps_mask(total_steps=STEPS, mask_policy=policy)):
        calibrator.mark_step_begin()
        if compute:
            calibrator.update(truth(t))
        else:
            errors.append(float((calibrator.approximate() - truth(t)).abs().max()))
    return errors


@pytest.mark.parametrize("policy", POLICIES)
def test_a_straight_line_is_exact_and_the_rule_serves_it(policy):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 64, generator=draw, dtype=torch.float64)
    ours = Forecasts(Config())
    assert max(replay(ours, policy, lambda t: a + b * t)) < 1e-6
    assert ours.shares == {"exponential": 1.0}
    theirs = replay(DMDCalibrator(), policy, lambda t: a + b * t)
    assert max(theirs) > 0.5 * float(b.abs().max()), "control: its own rule is off by steps of motion"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_rule_serves_a_curve_too(policy):
    draw = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 1, 64, generator=draw)
    curve = Forecasts(Config())
    ours = replay(curve, policy, lambda t: a + b * 0.95**t + c * 0.8**t)
    reuse = replay(Forecasts(Config(basis="reuse")), policy, lambda t: a + b * 0.95**t + c * 0.8**t)
    assert curve.shares["exponential"] >= 0.9
    assert sum(ours) < 0.5 * sum(reuse)


@pytest.mark.parametrize("kind", ["residual", "hidden_states"])
def test_every_generation_equals_the_first_and_off_is_off(kind):
    network = transformer()
    bare = denoise(network)
    handle = adapter.enable(network, schedule(), calibrator_cache_type=kind)
    first = denoise(network)
    assert not torch.equal(first, bare) and torch.dist(first, bare) < 0.1 * bare.norm()
    assert handle.nbytes == 0, "the last step frees the snapshots"
    assert all(torch.equal(denoise(network), first) for _ in range(2))
    (streams,) = handle.traces.values()
    assert set(streams) == {"calibrator", "encoder_calibrator"}
    assert all(trace.forecast == schedule().steps_computation_mask.count(0) for trace in streams.values())
    assert "forecache-exponential" in cache_dit.strify(network)
    options = cache_dit.summary(network, logging=False)[-1].cache_options
    assert "forecache(exponential" in str(options["calibrator_config"])
    adapter.disable(network)
    adapter.disable(network)
    assert torch.equal(denoise(network), bare)
    assert not network._forward_pre_hooks and not network._forward_hooks


def test_control_cache_dit_alone_begins_its_second_generation_late():
    network = transformer()
    cache_dit.enable_cache(network, cache_config=schedule(), calibrator_config=cache_dit.TaylorSeerCalibratorConfig())
    first = denoise(network)
    assert not torch.equal(denoise(network), first), "once this fails, the renewal may go"
    cache_dit.disable_cache(network)


def test_branches_are_apart_and_a_missing_call_swaps_nothing():
    network = transformer()
    handle = adapter.enable(network, schedule(separate_cfg=True))
    whole = denoise(network, always)
    assert torch.equal(denoise(network, always), whole)
    (streams,) = handle.traces.values()
    assert len(streams) == 4 and len({trace.forecast for trace in streams.values()}) == 1

    interval = denoise(network, lambda i: i < 20)  # guidance ends: one call a step from there on
    (streams,) = handle.traces.values()
    assert streams["calibrator"].steps[-1].index == STEPS - 1
    assert max(step.index for step in streams["cfg_calibrator"].steps) < 20
    assert streams["calibrator"].computed == schedule().steps_computation_mask.count(1)
    assert torch.equal(denoise(network, lambda i: i < 20), interval)
    assert torch.equal(denoise(network, always), whole), "nothing stays behind"


def test_two_transformers_do_not_meet():
    one, two = transformer(), transformer()
    with adapter.enabled(one, schedule()), adapter.enabled(two, schedule(policy="fast"), basis="linear", order=1):
        alone = denoise(one), denoise(two)
        assert torch.equal(denoise(one), alone[0]) and torch.equal(denoise(two), alone[1])
        assert not torch.equal(*alone)


def test_a_generation_that_was_broken_off_is_forgotten():
    """By an exception within a call, and by a loop that is left; nobody refreshes the context."""
    network = transformer()
    with adapter.enabled(network, schedule()) as handle:
        whole = denoise(network)
        (name,) = handle.calibrators

        def stop(*_):
            if handle.calibrators[name]["calibrator"].step == 9:
                raise KeyboardInterrupt

        hook = network.proj_out.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            denoise(network)
        hook.remove()
        assert handle.nbytes == 0
        assert torch.equal(denoise(network), whole)
        denoise(network, steps=9)
        assert handle.nbytes > 0
        assert torch.equal(denoise(network), whole) and not handle.trace.notes
        cache_dit.refresh_context(network, num_inference_steps=STEPS)
        assert handle.nbytes == 0 and torch.equal(denoise(network), whole)


# --- pipelines --------------------------------------------------------------------------------------------------------
EVERY_MODE = [
    (name, kind, encoder)
    for name in ("flux", "qwen-image", "wan", "sd3")
    for kind in ("residual", "hidden_states")
    for encoder in (True, False)
]


@pytest.mark.parametrize(
    ("name", "kind", "encoder"),
    EVERY_MODE + [(name, "residual", True) for name in ("pixart", "dit", "ltx", "sana", "hunyuan-video", "flux2")],
)
def test_pipelines(name, kind, encoder):
    one = tiny(name)
    pipe = one.build()
    off = one.run(pipe, (0,), N)
    handle = adapter.enable(pipe, masked(one), calibrator_cache_type=kind, enable_encoder_calibrator=encoder)
    first = one.run(pipe, (0,), N)
    assert not torch.equal(first, off) and torch.dist(first, off) < 0.1 * off.norm()
    assert handle.nbytes == 0 and torch.equal(one.run(pipe, (0,), N), first)
    branches = ("", "cfg_") if one.per_step == 2 else ("",)
    slots = {f"{branch}{slot}" for branch in branches for slot in ("calibrator", "encoder_calibrator")[: 1 + encoder]}
    for streams in handle.traces.values():
        assert set(streams) == slots
        served = [(trace.computed, trace.forecast) for trace in streams.values() if trace.steps]
        assert set(served) == {(MASK.count(1), MASK.count(0))}
    both = one.run(pipe, (0, 1), N)
    assert torch.allclose(both[:1], first, rtol=1e-3, atol=1e-4), "its neighbour changes nothing but rounding"
    assert not torch.allclose(both[1:], first, rtol=1e-3, atol=1e-2), "control"
    assert all("forecache(exponential" in str(each.cache_options["calibrator_config"])
               for each in cache_dit.summary(pipe, logging=False))  # fmt: skip
    adapter.disable(pipe)
    assert torch.equal(one.run(pipe, (0,), N), off)


def test_two_experts_have_their_own_histories():
    """As in Wan 2.2: one transformer for the noisy steps, another for the rest; each has its own mask and context."""
    one = tiny("wan")
    pipe = one.build()
    torch.manual_seed(5)
    pipe.register_modules(transformer_2=wake(diffusers.WanTransformer3DModel(**one.network)))
    pipe.register_to_config(boundary_ratio=0.9)
    off = one.run(pipe, (0,), N)
    counts = {"transformer": 0, "transformer_2": 0}
    for name in counts:
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    with adapter.enabled(pipe, masked(one)) as handle:
        first = one.run(pipe, (0,), N)
        assert not torch.equal(first, off) and torch.dist(first, off) < 0.1 * off.norm()
        steps = [len(streams["calibrator"].steps) for streams in handle.traces.values()]
        assert sorted(2 * each for each in steps) == sorted(counts.values()) and sum(steps) == N
        assert torch.equal(one.run(pipe, (0,), N), first)
    assert torch.equal(one.run(pipe, (0,), N), off)


def test_each_list_of_blocks_may_have_its_own_rule():
    one = tiny("hunyuan-video")
    pipe = one.build()
    off = one.run(pipe, (0,), N)
    modifiers = [
        cache_dit.ParamsModifier(
            cache_config=cache_dit.DBCacheConfig().reset(Fn_compute_blocks=1),
            calibrator_config=Config(basis=basis, history=history),
        )
        for basis, history in (("linear", 3), ("reuse", 1))
    ]
    handle = adapter.enable(pipe, masked(one), options={"params_modifiers": modifiers})
    one.run(pipe, (0,), N)
    served = {name.rsplit("_", 1)[0]: set(own["calibrator"]) for name, own in handle.shares.items()}
    assert served["single_transformer_blocks"] == {"reuse"} and served["transformer_blocks"] <= {"linear1", "linear2"}
    adapter.disable(pipe)
    assert torch.equal(one.run(pipe, (0,), N), off)


def test_what_is_refused():
    network = transformer()
    config = schedule()
    with pytest.raises(RuntimeError, match="instead of enable_cache"):
        cache_dit.enable_cache(transformer(), cache_config=config, calibrator_config=Config())
    config.num_inference_steps = None
    with pytest.raises(ValueError, match="num_inference_steps"):
        adapter.enable(network, config)
    with pytest.raises(TypeError, match="DBCacheConfig"):
        adapter.enable(network, None)
    with pytest.raises(ValueError, match="history must be 3"):
        adapter.enable(network, schedule(), history=2)
    with pytest.raises(ValueError, match="hidden_states"):
        adapter.enable(network, schedule(), calibrator_cache_type="velocity")
    with pytest.raises(ValueError, match="times must have one for each of num_inference_steps=28, got 3"):
        adapter.enable(network, schedule(), times=[1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="times must rise or fall"):
        adapter.enable(network, schedule(), times=[1.0, 0.0] * STEPS)
    assert attached(network) is None and "_context_manager" not in vars(network)


def test_what_cache_dit_refuses_is_refused_by_version(monkeypatch):
    def one_a_process(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(cache_dit, "enable_cache", one_a_process)
    network = transformer()
    with pytest.raises(RuntimeError, match=r"cache-dit 1\.\d+\.\d+ refuses Flux.* before 1\.5\.2"):
        adapter.enable(network, schedule())
    assert attached(network) is None
