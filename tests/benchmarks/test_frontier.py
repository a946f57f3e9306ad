"""The frontier benchmark: its solvers, its baselines, its counting, and the network's own loop."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.flows import closed, sampling, solvers
from benchmarks.flows import hunyuan21 as network
from benchmarks.flows.caches import EasyCache, HiCachePP, Spectrum, spectrum_weights
from benchmarks.flows.grids import GRIDS, flow
from benchmarks.flows.network import Network
from benchmarks.flows.problems import Problem, combine, noise
from benchmarks.flows.sampling import Batch, distance
from benchmarks.flows.schedules import closest, fixed_schedules, ramp
from benchmarks.frontier import __main__ as command
from benchmarks.frontier import measure, methods, report
from benchmarks.studies import limits, refresh
from forecache import Forecaster, Guided, schedule
from forecache.rules import Linear, Reuse
from forecache_lab.generators.reference import CALIBRATION_SEED, TEST_SEED, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE
from forecache_lab.metrics import resampling

SEEDS = range(4)


def edged(steps: int = 12, shift: float = 3.0, **settings) -> Problem:
    """A flow of two branches with guidance at noise >= 0.5."""

    def branches(x, t, sigma, seeds, guided):
        cond = torch.cos(3 * x) - t * x
        return Guided(cond, torch.sin(2 * x) * (1 + t)) if guided else cond

    settings = {"interval": (0.5, 1.0), "strength": 3.0, "title": "two branches", **settings}
    return Problem("edged", "velocity", flow(shift), steps, (6,), lambda seeds: noise(seeds, 8), branches, **settings)


# --- flows and solvers ------------------------------------------------------------------------------------------------
def test_the_closed_form_solution_solves_the_flow():
    problem = closed.gaussian(power=0.5, dtype=torch.float64)
    times = (0.0, 0.3, 0.7, 1.0)
    exact = problem.exact(SEEDS, times)
    assert torch.equal(exact[0], problem.noise(SEEDS))
    end = Batch(problem, SEEDS).solve(solvers.euler, GRIDS["even"](8_000)).end
    assert distance(end, exact[-1]).max() < 5e-4
    h = 1e-5
    slope = (problem.exact(SEEDS, [0.7 + h])[0] - problem.exact(SEEDS, [0.7 - h])[0]) / (2 * h)
    assert torch.allclose(slope, Network(problem, SEEDS).slope(exact[2], 0.7), atol=1e-7), "v is dx/dt on the solution"


@pytest.mark.parametrize("solver", [solvers.euler, solvers.ab2, solvers.flow_dpm, solvers.flow_unipc])
def test_solvers_from_noise_to_data(solver):
    """Also from n = 1, where log((1 - n) / n) is not finite, to n = 0; the coarse grids that are compared."""
    batch = Batch(closed.gaussian(power=0.3), SEEDS)
    results = [batch.solve(solver, GRIDS["shift3"](steps)) for steps in (10, 40)]
    errors = [np.median(batch.distances(each.end, "error")) for each in results]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.12, errors
    assert [set(each.calls.tolist()) for each in results] == [{10}, {40}], "one call a step"


def test_edges():
    problem = edged(25)
    assert problem.edges(problem.own_grid) == [19], "25 steps, shift 3: guided are 0..18 (TRELLIS)"
    twelve = edged(12)
    assert twelve.edges(twelve.own_grid) == [10], "12 steps: 0..9, the last of them at noise 0.5 exactly"
    assert 1 - twelve.times[9] == pytest.approx(0.5)


def test_the_reference_is_fine_and_knows_the_edge():
    coarse, fine = (Batch(edged(parts=parts), SEEDS).states for parts in (34, 534))
    assert coarse.shape == (13, 4, 8)
    assert float((coarse - fine).norm() / fine.norm()) < 2e-4
    exact = closed.gaussian()
    marched = Batch(replace(exact, exact=None), SEEDS).states
    off = Batch(exact, SEEDS).states - marched
    assert float(off.norm()) < 0.01 * float(marched.norm())


# --- the loop and its counts ------------------------------------------------------------------------------------------
def test_calls_are_counted_at_the_network():
    problem = edged()
    seen = []

    def branches(x, t, sigma, seeds, guided):
        seen.append((len(x), guided))
        return problem.network(x, t, sigma, seeds, guided)

    batch = Batch(replace(problem, network=branches), SEEDS)
    full = batch.sample()
    assert len(seen) == 12 and full.calls.tolist() == [12] * 4 == full.cond.tolist()
    assert full.uncond.tolist() == [10] * 4
    again = batch.sample()
    assert len(seen) == 12 and again.calls.tolist() == [12] * 4, "remembered values are counted too"
    assert torch.equal(full.end, again.end)

    class Pushed:
        """Every step computed, but the first value is not the network's: what follows is off the known path."""

        def step(self, i, compute, state=None):
            return compute() + (i == 0)

    assert not torch.allclose(batch.sample(Pushed()).end, full.end)
    assert len(seen) == 12 + 11, "the first state is known, the others are not"
    seen.clear()
    cache = Forecaster(Linear(1), times=problem.times, calls=6)
    part = batch.sample(cache)
    assert part.calls.tolist() == [6] * 4 and cache.trace.computed == 6
    assert len(seen) == 5, "the first step was known"


@pytest.mark.parametrize("streams", ["combined", "apart", "edges"])
def test_streams_over_a_guidance_edge(streams):
    """Forecasting both branches as reuse is the combined velocity's reuse, except where guidance switches."""
    problem = edged()
    batch = Batch(problem, SEEDS)
    edges = problem.edges(problem.own_grid) if streams == "edges" else ()
    every = Forecaster(Reuse(), times=problem.times, computed=range(12), edges=edges)
    assert torch.allclose(batch.sample(every, streams).end, batch.uncached)
    cache = Forecaster(Linear(2), times=problem.times, calls=8, edges=edges)
    result = batch.sample(cache, streams)
    assert result.calls.tolist() == [8] * 4
    assert batch.distances(result.end, "drift").max() < 0.5


def test_the_reference_runner_lands_on_the_solution():
    batch = Batch(closed.gaussian(10), range(2))
    plan = methods.calibration(batch, "reference", "combined", methods.Making()).plan(10)
    assert plan.computed == tuple(range(10))

    secants = []

    class Recorder:
        def step(self, i, compute, state=None):
            secants.append(compute())
            return secants[-1]

    final = sampling.reference_runner(batch)(0, Recorder())
    moved = batch.problem.noise([0]) + 0.1 * torch.stack(secants).sum(0)
    assert torch.allclose(moved, final, atol=1e-5)


# --- baselines --------------------------------------------------------------------------------------------------------
def test_easycache_payload_on_a_straight_flow():
    """``x + (v_a - x_a)`` on constant v: ``(1 + h)^k v`` after k skips, not v."""
    problem = closed.straight(10)
    v = problem.network(None, 0.0, 1.0, SEEDS, False)
    served = []

    class Watched(EasyCache):
        def step(self, i, compute, state):
            served.append(super().step(i, compute, state))
            return served[-1]

    result = Batch(problem, SEEDS).sample(Watched(9, tau=1.0, warmup=2))
    assert result.calls.tolist() == [3] * 4, "the output does not change, so the gate never opens"
    for skips, value in enumerate(served[1:9]):
        assert torch.allclose(value, 1.1**skips * v, rtol=1e-5)
    assert torch.allclose(served[9], v)
    reuse = Batch(problem, SEEDS).sample(EasyCache(9, tau=1.0, warmup=2, payload="reuse"))
    assert torch.allclose(reuse.end, Batch(problem, SEEDS).sample().end, rtol=1e-5)


def test_easycache_conditions_have_their_own_gate():
    problem = closed.mixture(20)
    together = Batch(problem, SEEDS).sample(EasyCache(19, 0.1, 3))
    apart = [Batch(problem, [seed]).sample(EasyCache(19, 0.1, 3)) for seed in SEEDS]
    assert together.calls.tolist() == [int(each.calls[0]) for each in apart]
    assert len(set(together.calls.tolist())) > 1
    assert torch.allclose(together.end, torch.cat([each.end for each in apart]), atol=1e-3)
    every = Batch(problem, SEEDS).sample(EasyCache(19, 0.0, 3))
    assert every.calls.tolist() == [20] * 4
    assert torch.allclose(every.end, Batch(problem, SEEDS).sample().end)


def test_spectrum_in_its_published_form():
    anchors = ramp(range(50), 5, 0.75)
    assert anchors == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46), "14 of 50 (section 3.1)"
    assert len(ramp(range(50), 5, 3.0)) == 10
    sums = [
        spectrum_weights(np.array([a for a in anchors if a < i], float), i, 1.0).sum()
        for i in range(9, 50)
        if i not in anchors
    ]
    assert 0.72 < min(sums) < 0.79 and 0.93 < max(sums) < 0.97, "its ridge shrinks the constant"
    half = spectrum_weights(np.array(anchors[:8], float), 13.0, 0.5)
    line = spectrum_weights(np.array(anchors[:8], float), 13.0, 0.0)
    assert line.sum() == pytest.approx(1) and half.sum() < 1
    cache = Spectrum((0, 1, 2), 0.0)
    for i in range(3):
        cache.observe(i, torch.full((2, 3), 2.0 * i))
    assert torch.allclose(cache.forecast(5), torch.full((2, 3), 10.0))


def test_hicache_plus_plus_is_its_own_package_per_sample():
    problem, computed = closed.mixture(30), (0, 1, 2, 3, 8, 13, 18, 23, 28, 29)
    both = Batch(problem, range(2)).sample(HiCachePP(computed))
    apart = [Batch(problem, [seed]).sample(HiCachePP(computed)) for seed in range(2)]
    assert torch.allclose(both.end, torch.cat([each.end for each in apart]), atol=1e-4)
    cache = HiCachePP(computed)
    Batch(problem, range(2)).sample(cache)
    counts = [state["telemetry"]["method_counts"] for state in cache.states]
    assert all(each["dmd"] > 0 and each["hermite"] > 0 for each in counts), "DMD, and Hermite in its warm-up"


def test_fixed_interval_schedules_of_a_budget():
    every = {schedule.fixed_interval(range(49), k, warmup) for warmup in range(50) for k in range(1, 50)}
    for calls in (5, 7, 9, 11, 15):
        found = fixed_schedules(range(49), calls)
        assert found and set(found) == {each for each in every if len(each) == calls}
        assert all(each[0] == 0 and each[-1] == 48 for each in found)


def test_a_budget_without_a_schedule_gets_the_next_larger_one():
    assert closest({(0, 1): "a", (0, 1, 2, 3): "b", (0, 1, 2, 3, 4): "c"}, 3) == {(0, 1, 2, 3): "b"}


# --- measuring --------------------------------------------------------------------------------------------------------
def test_bootstrap():
    values = np.random.default_rng(1).normal(5, 1, 101)
    low, high = resampling.bootstrap(values)
    assert low < np.median(values) < high and 0.2 < high - low < 0.8
    assert resampling.bootstrap([3.0] * 7) == (3, 3)
    assert resampling.bootstrap(values) == (low, high), "repeatable"


def test_calibration_and_test_conditions_are_disjoint():
    with pytest.raises(ValueError, match="disjoint"):
        measure.Bench(closed.gaussian(), range(4), range(3, 6))
    assert abs(TEST_SEED - CALIBRATION_SEED) >= 10_000


def test_rows_of_a_budget(tmp_path):
    problem = edged()
    bench = measure.Bench(problem, range(100, 104), SEEDS)
    rows = [bench.uncached(), *bench.rows(6)]
    by_name = {row.method: row for row in rows}
    assert len(by_name) == len(rows)
    assert by_name["uncached Euler"].drift == [0.0] * 4 and by_name["uncached Euler"].calls == [12] * 4
    for row in rows[1:]:
        if row.method.startswith("EasyCache"):
            assert np.mean(row.calls) <= 7.5, "the threshold is chosen on other conditions"
        else:
            assert set(row.calls) == {6}, row.method
        assert row.cond == row.calls and all(u <= c for u, c in zip(row.uncond, row.calls, strict=True))
        assert np.isfinite(row.drift).all() and np.isfinite(row.error).all(), row.method
    fixed = [row for row in rows if row.method.startswith(methods.FIXED_INTERVAL)]
    assert by_name["best fixed-interval rule"].drift in [row.drift for row in fixed]
    table = report.markdown(problem, rows, 4)
    assert table.count("\n| ") == len(rows) + 2
    report.write_json(tmp_path / "x.json", problem, rows, {})
    body = json.loads((tmp_path / "x.json").read_text())
    assert body["rows"][1]["drift"] == rows[1].drift and body["rows"][1]["summary"]["calls"] == 6
    report.plot(tmp_path / "x.png", problem, rows)
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_geometry_is_compared_with_both_targets():
    problem = closed.mixture(20)
    bench = measure.Bench(problem, range(100, 102), range(2), meshes=1)
    row = bench.uncached()
    assert row.geometry["drift"][0]["volume_iou"] == 1
    assert 0.5 < row.geometry["error"][0]["volume_iou"] <= 1
    assert "volume IoU, to fine" in report.markdown(problem, [row], 2)


def test_the_command_says_what_it_needs(capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.main(["--settings", "hunyuan50", "--out", str(tmp_path)])
    assert "need a checkout of Hunyuan3D-2.1" in capsys.readouterr().err


# --- the network ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hunyuan(patched):
    """Settings on the reference network."""
    return network.problems(patched)


def test_the_uncached_loop_is_the_pipelines(hunyuan):
    problem, seeds = hunyuan["hunyuan50"], [TEST_SEED, TEST_SEED + 1]
    ours = Batch(problem, seeds).sample()
    pipe = problem.decode.__self__.pipe
    theirs = pipe(
        image=[solids.picture(solids.solid(seed)[1], PICTURE)[None] for seed in seeds],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], num_inference_steps=50,
        guidance_scale=hunyuan21.GUIDANCE, output_type="latent", enable_pbar=False,
    )  # fmt: skip
    assert distance(ours.end, theirs).max() < 1e-5
    assert ours.calls.tolist() == [49, 49] == ours.uncond.tolist(), (
        "of 50: the step with dt = 0 does not move the state"
    )
    assert len(problem.decode(ours.end[0]).faces) > 100


def test_guided_parts_of_the_shifted_grids(hunyuan):
    for key, guided in {"hunyuan25shift3": 19, "hunyuan12shift3": 10, "hunyuan12shift5": 11}.items():
        problem = hunyuan[key]
        assert problem.edges(problem.own_grid) == [guided]
        x = problem.noise([TEST_SEED])
        inside, outside = (problem.network(x, 0.4, 0.6, [TEST_SEED], on) for on in (True, False))
        assert torch.allclose(inside.cond, outside, atol=1e-5)
        assert not torch.allclose(combine(inside, problem.strength), outside, atol=1e-2)


@pytest.mark.parametrize("how", ["move", "insert"])
def test_an_early_refresh_keeps_the_budget(how):
    problem = closed.gaussian(20)
    settings = {"times": problem.times, "computed": (0, 2, 7, 12, 17, 19)}
    eager, never = refresh.Refreshing(how, {2: 0.0}, **settings), refresh.Refreshing("never", {2: 0.0}, **settings)
    for cache in (eager, never):
        Batch(problem, [0]).sample(cache)
    steps = [[s.index for s in cache.trace.steps if s.kind == "computed"] for cache in (eager, never)]
    assert steps[1] == [0, 2, 7, 12, 17, 19] and never.refreshed == 0
    assert steps[0] == ([0, 2, 4, 12, 17, 19] if how == "move" else [0, 2, 4, 7, 12, 19]) and eager.refreshed == 1


def test_weights_of_other_snapshots_are_not_served():
    problem = closed.gaussian(20)
    made = methods.calibration(Batch(problem, range(100, 104)), "uncached", "combined", methods.Making()).plan(6)
    limits = {made.computed[1]: 0.0}
    cache = refresh.Refreshing("move", limits, times=problem.times, plan=made, made_for=made.made_for)
    Batch(problem, [0]).sample(cache)
    moved = min(s.index for s in cache.trace.steps if s.kind == "computed" and s.index not in made.computed)
    rules = {s.index: s.rules["v"] for s in cache.trace.steps if s.kind == "forecast"}
    assert all((rule == "plan") == (i < moved) for i, rule in rules.items())
    assert made.computed[-1] in made.weights and not cache.trace.steps[-1].rules, "nor is the last step corrected"


def test_the_span_of_the_calls_bounds_every_choice_of_weights():
    problem = closed.gaussian()
    plan = methods.calibration(Batch(problem, range(100, 104)), "uncached", "combined", methods.Making()).plan(6)
    for seed in range(3):
        drift, least = limits.drift_and_least(problem, plan, seed)
        assert 0 < least < drift
        batch = Batch(problem, [seed])
        cache = Forecaster("auto", times=problem.times, computed=plan.computed)
        other = batch.distances(batch.sample(cache).end, "drift")[0]
        assert least < 0.2 and drift < other  # control: another rule on the same steps is further off
