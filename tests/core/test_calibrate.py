"""Schedule search and closed-loop weights, on a flow of two coupled nonlinear oscillators per condition."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from forecache import Calibration, Forecaster, Guided, Plan, Weights, calibrate
from forecache.calibration.fit import fit
from forecache.calibration.recording import load, positions
from forecache.calibration.refine import Refiner, Shift, _guarded
from forecache.calibration.search import Gaps, power_mean, probe_steps, search, survival
from forecache.calibration.tapes import record
from forecache.rules import Linear
from forecache.schedule import effective_steps

STEPS = 24
GRID = [*np.linspace(0, 1, STEPS), 1.0]  # the last step has dt = 0
MIX = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
calls = {"n": 0}


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    calls["n"] += 1
    return torch.tanh(x @ MIX) * (3 - 2 * t) - x * np.cos(7 * t)


def run(seed, cache, grid=GRID):
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
    for i in range(len(grid) - 1):
        now = x
        v = cache.step(i, lambda i=i, now=now: velocity(now, grid[i]), state=x) if cache else velocity(now, grid[i])
        x = x + (grid[i + 1] - grid[i]) * v
    return x


def drifts(make, seeds, reference=run, cached=run):
    return [float((cached(s, make()) - reference(s, None)).norm() / reference(s, None).norm()) for s in seeds]


TEST, CALIBRATION = range(100, 112), range(8)


def test_record_is_the_gram_matrix_of_the_velocities():
    recording = record(run, np.array(GRID), 3)
    stacked = torch.stack([recording.velocities[i].cond for i in range(STEPS - 1)]).double().numpy()
    assert sorted(recording.velocities) == list(range(STEPS - 1)), "the step with dt = 0 is not computed"
    assert np.allclose(recording.gram[:-1, :-1] * recording.final[""] ** 2, stacked @ stacked.T, rtol=1e-5)
    assert not recording.gram[-1].any()
    assert torch.equal(recording.start, torch.randn(1, 16, generator=torch.Generator().manual_seed(3))[0])


def gaps(recordings, rho=None, memory=3, edges=()):
    grams = np.stack([each.gram for each in recordings])
    rho = np.ones((len(grams), STEPS + 1)) if rho is None else rho
    return Gaps(grams, rho, np.array(GRID), memory, 1e-3, edges)


def test_the_price_of_a_gap_equals_a_replay():
    recording = record(run, np.array(GRID), 3)
    priced = gaps([recording], memory=3)
    anchors, end = (2, 6, 12), 18
    w = priced.weights(anchors, end)
    off = torch.zeros(16)
    for i in range(13, 18):
        served = sum(float(w[i - 13, k]) * recording.velocities[a].cond for k, a in enumerate(anchors))
        off = off + (GRID[i + 1] - GRID[i]) * (served - recording.velocities[i].cond)
    assert np.isclose(float(recording.relative(off).norm()), np.sqrt(priced.errors(anchors, end)[0]), rtol=1e-3)
    halved = gaps([recording], np.full((1, STEPS + 1), 0.5))
    assert np.isclose(halved.errors(anchors, end)[0], priced.errors(anchors, end)[0] / 4)


@pytest.mark.parametrize("required", [(), (7,), (7, 8, 18)])
def test_search_never_loses_to_its_start_and_keeps_the_budget(required):
    priced = gaps([record(run, np.array(GRID), seed) for seed in (3, 4)])
    effective = effective_steps(GRID)
    for budget in (5, 9, STEPS - 1):
        found, error = search(priced, effective, budget, required)
        assert (
            len(found) == budget
            and found[0] == 0
            and found[-1] == STEPS - 2
            and set(required) <= set(found) <= set(effective)
        )
        assert error == priced.price(found)
        if not required:
            assert error <= priced.price(Forecaster("linear", times=GRID, calls=budget).computed) * (1 + 1e-9)
    assert search(priced, effective, 9) == search(priced, effective, 9)
    with pytest.raises(ValueError, match=r"calls must be 3\.\."):
        search(priced, effective, 2, (5,))


def test_errors_that_die_out_move_calls_to_where_they_count():
    recording = record(run, np.array(GRID), 3)
    rho = np.ones((1, STEPS + 1))
    rho[:, : STEPS // 2] = 0.01
    plain = search(gaps([recording]), effective_steps(GRID), 9)[0]
    late = search(gaps([recording], rho), effective_steps(GRID), 9)[0]
    assert sum(i >= STEPS // 2 for i in late) > sum(i >= STEPS // 2 for i in plain)


def test_probes_measure_what_is_left_of_a_displacement():
    """On x' = -3 x a displacement at time t survives by the factor prod (1 - 3 h)."""

    def decay(seed, cache):
        x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)) + 4
        for i in range(STEPS):
            x = x + (GRID[i + 1] - GRID[i]) * cache.step(i, lambda x=x: -3 * x, state=x)
        return x

    made = Calibration(decay, times=GRID, seeds=[0], probes=6)
    made.record()
    h = np.diff(GRID)
    for at, rho in zip(made.probed, made.conditions[0].survival, strict=True):
        assert np.isclose(rho, np.prod(1 - 3 * h[at:]), rtol=1e-3)
    assert all(2 <= at < STEPS - 1 for at in made.probed) and len(made.probed) >= 5
    along = survival(made.probed, made.conditions[0].survival[None], STEPS)
    assert along.shape == (1, STEPS + 1) and along[0, -1] == 1
    assert probe_steps(range(5), 8), "short grids are probed too"


@pytest.fixture(scope="module")
def plan():
    return calibrate(run, times=GRID, calls=7, seeds=CALIBRATION, made_for={"model": "toy"})


def test_calibration_costs_what_it_says(plan):
    calls["n"] = 0
    made = Calibration(run, times=GRID, seeds=CALIBRATION, made_for={"model": "toy"})
    again = made.plan(7)
    probing = sum(STEPS - 1 - at for at in made.probed)
    assert calls["n"] in [len(CALIBRATION) * (STEPS - 1 + probing + 7 * tried) for tried in (1, 2, 3)]
    assert again == plan, "calibration is deterministic"
    calls["n"] = 0
    made.plan(9)
    assert calls["n"] <= len(CALIBRATION) * 3 * 9, "a second budget uses the same recordings"


def test_an_interrupted_calibration_goes_on_where_it_was(plan, tmp_path):
    class Cancelled(Exception):
        pass

    def tired(seed, cache):
        if seed == 5:
            raise Cancelled
        return run(seed, cache)

    options = {"times": GRID, "seeds": CALIBRATION, "made_for": {"model": "toy"}, "folder": tmp_path / "kept"}
    with pytest.raises(Cancelled):
        Calibration(tired, **options).plan(7)
    calls["n"] = 0
    made = Calibration(run, **options)
    assert made.plan(7) == plan
    probing = sum(STEPS - 1 - at for at in made.probed)
    assert calls["n"] <= 3 * (STEPS - 1 + probing) + len(CALIBRATION) * 3 * 7, "five of eight were kept"
    with pytest.raises(ValueError, match="holds another calibration \\(made_for differ"):
        Calibration(run, **{**options, "made_for": {"model": "other"}})
    (tmp_path / "kept" / "seed-2.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"seed-2\.pt is not a recording"):
        Calibration(run, **options).plan(7)
    with pytest.raises(ValueError, match="is not a recording"):
        load(tmp_path / "kept" / "calibration.json")


def test_plan_beats_its_own_schedule_and_the_even_one_on_other_seeds(plan):
    key = {"model": "toy"}
    planned = drifts(lambda: Forecaster(times=GRID, plan=plan, made_for=key), TEST)
    schedule_only = drifts(lambda: Forecaster(Linear(2), times=GRID, computed=plan.computed), TEST)
    even = drifts(lambda: Forecaster("linear", times=GRID, calls=7), TEST)
    assert np.median(planned) < 0.6 * min(np.median(schedule_only), np.median(even))
    backwards = {k: Weights(w.velocity[::-1], w.state) for k, w in plan.weights.items()}
    wrong = Plan(plan.times, plan.computed, backwards, made_for=key)
    assert np.median(drifts(lambda: Forecaster(times=GRID, plan=wrong, made_for=key), TEST)) > 3 * np.median(planned)


def test_weights_sum_to_one_and_meet_the_guard(plan):
    assert set(plan.weights) == set(range(STEPS - 1)) - set(plan.computed[:-1]), "the last one is corrected"
    for each in plan.weights.values():
        w = each.velocity
        assert abs(sum(w) - 1) < 1e-9 and np.abs(w).sum() <= 4 + 1e-9 and len(w) <= 4
    assert any(w.state for w in plan.weights.values())
    with pytest.raises(ValueError, match="state must be given at step"):
        cache = Forecaster(times=GRID, plan=plan, made_for={"model": "toy"})
        for i in range(STEPS):
            cache.step(i, lambda: torch.ones(1, 16))


def test_plan_survives_a_file_and_is_refused_elsewhere(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").stat().st_size < 64 * 1024
    assert json.loads((tmp_path / "plan.json").read_text())["made_for"] == {"model": "toy"}
    loaded = Plan.load(tmp_path / "plan.json")
    key = {"model": "toy"}
    assert torch.equal(
        run(100, Forecaster(times=GRID, plan=loaded, made_for=key)),
        run(100, Forecaster(times=GRID, plan=plan, made_for=key)),
    )
    with pytest.raises(ValueError, match="model: plan 'toy', run 'other'"):
        Forecaster(times=GRID, plan=loaded, made_for={"model": "other"})


def test_a_reference_plan_is_closer_to_the_solution():
    fine = np.linspace(0, 1, (STEPS - 1) * 8 + 1).tolist()

    def solved(seed, cache):
        return run(seed, cache, fine)

    key = {}
    taught = calibrate(run, times=GRID, calls=12, seeds=CALIBRATION, target="reference", reference=(solved, fine))
    plain = calibrate(run, times=GRID, calls=12, seeds=CALIBRATION)
    errors = [
        float(np.median(drifts(lambda p=p: Forecaster(times=GRID, plan=p, made_for=key), TEST, solved)))
        for p in (taught, plain)
    ]
    uncached = float(np.median(drifts(lambda: None, TEST, solved)))
    assert errors[0] < errors[1] and errors[0] < uncached
    assert taught.statistics["target"] == "reference"


EDGE = 14  # guidance is on before this step


def guided(seed, cache, grid=GRID):
    """The branches apart; guidance 3 on the first steps, off afterwards."""
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
    for i in range(len(grid) - 1):

        def branches(i=i, x=x):
            on = grid[i] < GRID[EDGE]
            return Guided(velocity(x, grid[i]), torch.tanh(x) - x if on else None)

        v = branches() if cache is None else cache.step(i, branches, state=x)
        both = v.cond if v.uncond is None or grid[i] >= GRID[EDGE] else v.uncond + 3 * (v.cond - v.uncond)
        x = x + (grid[i + 1] - grid[i]) * both
    return x


def combined(seed, cache, grid=GRID):
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
    for i in range(len(grid) - 1):

        def both(i=i, x=x):
            c = velocity(x, grid[i])
            return c if grid[i] >= GRID[EDGE] else (torch.tanh(x) - x) * -2 + 3 * c

        x = x + (grid[i + 1] - grid[i]) * cache.step(i, both, state=x)
    return x


def test_branches_apart_and_the_guidance_edge():
    made = calibrate(guided, times=GRID, calls=9, seeds=CALIBRATION, guidance_scale=3.0)
    on = [i for i in made.weights if i < EDGE]
    assert on and all(made.weights[i].difference for i in on)
    assert not any(w.difference for i, w in made.weights.items() if i >= EDGE)
    cache = Forecaster(times=GRID, plan=made)
    assert torch.isfinite(guided(50, cache)).all() and cache.trace.computed == 9 and not cache.trace.fallbacks
    apart = np.median(drifts(lambda: Forecaster(times=GRID, plan=made), TEST, guided, guided))
    across = np.median(drifts(lambda: Forecaster("linear", times=GRID, computed=made.computed), TEST, guided, combined))
    assert apart < 0.2 * across, "control: the combined velocity extrapolated across the edge"
    with pytest.raises(ValueError, match="guidance_scale must be given"):
        calibrate(guided, times=GRID, calls=9, seeds=[0])


def test_the_last_velocity_is_corrected(plan):
    """It takes out what of the error its columns reach; the same correction the other way adds it once more."""
    last = plan.computed[-1]

    def planned(sign):
        w = plan.weights[last]
        own = np.eye(len(w.velocity))[-1]
        turned = Weights(tuple(own + sign * (np.array(w.velocity) - own)), sign * w.state)
        return Plan(plan.times, plan.computed, {**plan.weights, last: turned})

    found = [np.mean(drifts(lambda p=p: Forecaster(times=GRID, plan=p), CALIBRATION)) for p in map(planned, (1, 0, -1))]
    assert found[0] < 0.9 * found[1] < 0.9 * found[2]
    cache = Forecaster(times=GRID, plan=planned(1))
    run(100, cache)
    assert cache.trace.computed == 7 and cache.trace.steps[last].rules and not cache.trace.fallbacks


def test_the_expected_forward_errors_are_those_of_the_trace(plan):
    found = {}
    for seed in CALIBRATION:
        cache = Forecaster(times=GRID, plan=plan, made_for={"model": "toy"})
        run(seed, cache)
        for step in cache.trace.steps:
            for error in step.forward_error.values():
                found.setdefault(str(step.index), []).append(error)
    expected = plan.statistics["forward_error"]
    assert found.keys() == expected.keys()
    for step, errors in found.items():
        assert np.allclose(expected[step], [np.median(errors), np.percentile(errors, 95)], rtol=1e-3)


def test_nothing_to_correct_where_every_step_is_computed():
    made = calibrate(run, times=GRID, calls=STEPS - 1, seeds=range(2))
    assert not made.weights
    assert torch.equal(run(100, Forecaster(times=GRID, plan=made)), run(100, None))


def test_a_sampler_that_is_not_euler_is_refused():
    def twice(seed, cache):
        x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        for i in range(STEPS):
            x = x + 2 * (GRID[i + 1] - GRID[i]) * cache.step(i, lambda i=i, x=x: velocity(x, GRID[i]), state=x)
        return x

    with pytest.raises(RuntimeError, match=r"run: at step 1 the state is not x \+ sum h_j v_j \(off by"):
        calibrate(twice, times=GRID, calls=9, seeds=[0])
    with pytest.raises(RuntimeError, match="calibration needs an Euler sampler"):
        calibrate(guided, times=GRID, calls=9, seeds=[0], guidance_scale=7.0)


def test_a_plan_with_edges_computes_them():
    made = calibrate(run, times=GRID, calls=8, seeds=range(3), edges=[11])
    assert 11 in made.computed and made.edges == (11,)
    assert all(len(made.weights[i].velocity) == 1 for i in made.weights if i == 12)
    cache = Forecaster(times=GRID, plan=made)
    run(0, cache)
    assert cache.trace.computed == 8 and not cache.trace.fallbacks
    with pytest.raises(ValueError, match="edges must be the plan's"):
        Forecaster(times=GRID, plan=made, edges=[12])


def test_another_model_is_served_without_the_plan_only_on_request(plan):
    with pytest.warns(UserWarning, match="plan not used, it was made for something else: model"):
        cache = Forecaster(times=GRID, plan=plan, made_for={"model": "other"}, strict=False)
    run(0, cache)
    assert cache.trace.computed == 7 and "plan not used" in cache.trace.notes[0]
    assert cache.computed == Forecaster(times=GRID, calls=7).computed
    cache.reset()
    assert "plan not used" in cache.trace.notes[0]


def test_positions_refuses_a_grid_that_misses_a_time():
    with pytest.raises(ValueError, match="is not among its times"):
        positions(record(run, np.array(GRID), 0), np.array([0.0, 0.0123]))


def test_fit_prefers_the_prior_where_the_data_say_nothing():
    flat = {0: torch.ones(2, 8)}
    w, miss = fit(flat, {0: torch.ones(8)}, np.array([-0.5, 1.5]), 2, 1e-3)
    assert np.allclose(w, [-0.5, 1.5]) and miss < 1e-6


def test_a_fit_keeps_its_columns_to_what_is_served():
    """Differences that ask for weights of 1-norm 30 get 8, as the velocity's get 4; a plan with more falls back."""
    steps = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    anchors = torch.stack([steps[0], steps[0] + 0.1 * steps[1]])
    columns = {0: torch.cat((anchors, anchors.flip(1)))}
    wanted = {0: anchors[1] + (torch.tensor([-15.0, 15.0], dtype=torch.float64) @ anchors).flip(0)}
    prior = np.array([-0.5, 1.5, -0.5, 1.5])
    free = np.abs(fit(columns, wanted, prior, 2, 1e-9)[0][2:]).sum()
    held = np.abs(fit(columns, wanted, prior, 2, 1e-9, apart=2)[0])
    assert free > 20 and held[2:].sum() <= 8 + 1e-9 and held[:2].sum() <= 4 + 1e-9
    before = Weights((1.0,), 0.0, (-0.5, 1.5))
    assert np.isclose(np.abs(_guarded(Weights((1.0,), 0.0, (-9.0, 10.0)), before).difference).sum(), 8)
    assert _guarded(before, before) == before


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"calls": 0}, "calls must be 2..23"),
        ({"calls": 24}, "calls must be 2..23"),
        ({"calls": 3, "edges": [5, 11]}, "calls must be 4..23"),
        ({"seeds": []}, "seeds must name"),
        ({"memory": 0}, "memory must be 1..8"),
        ({"ridge": 0.0}, "ridge must be > 0"),
        ({"seeds": [1, 1]}, "each once"),
        ({"probes": -1}, "probes must be 0..64"),
        ({"edges": [23]}, "edges must be steps that move the state"),
        ({"target": "reference"}, "target must be"),
        ({"target": "fine"}, "target must be"),
        ({"reference": (run, GRID)}, "target must be"),
    ],
)
def test_bad_arguments(wrong, error):
    with pytest.raises(ValueError, match=error):
        calibrate(run, **{"times": GRID, "calls": 5, "seeds": [0], **wrong})


def test_a_run_that_ignores_the_cache_is_refused():
    with pytest.raises(RuntimeError, match="did not ask the cache at steps"):
        calibrate(lambda seed, cache: run(seed, None), times=GRID, calls=5, seeds=[0])


# --- refinement -------------------------------------------------------------------------------------------------------
def refined(rounds: int, **options) -> Plan:
    return calibrate(run, times=GRID, calls=7, seeds=range(16), refine=rounds, **options)


@pytest.mark.long
def test_refinement_lands_closer_on_runs_that_it_has_not_seen():
    plain, better = refined(0), refined(2)
    assert plain.computed == better.computed and plain.weights != better.weights
    assert better.statistics["refine"] == 2
    before, after = (drifts(lambda plan=plan: Forecaster(times=GRID, plan=plan), TEST) for plan in (plain, better))
    assert power_mean(np.array(after)) < 0.95 * power_mean(np.array(before))
    assert refined(2) == better, "deterministic"
    for weights in better.weights.values():
        assert abs(sum(weights.velocity) - 1) < 1e-9 and sum(map(abs, weights.velocity)) <= 4 + 1e-9


@pytest.mark.long
def test_refinement_of_branches_apart():
    options = {"times": GRID, "calls": 6, "seeds": CALIBRATION, "guidance_scale": 3.0}
    plain, better = calibrate(guided, **options), calibrate(guided, refine=1, **options)
    moved = [i for i, w in better.weights.items() if w.difference != plain.weights[i].difference]
    assert moved and max(moved) < EDGE
    before, after = (
        drifts(lambda plan=plan: Forecaster(times=GRID, plan=plan), CALIBRATION, guided, guided)
        for plan in (plain, better)
    )
    assert power_mean(np.array(after)) < power_mean(np.array(before))


def test_a_rollout_is_the_run_that_the_plan_will_make():
    made = Calibration(run, times=GRID, seeds=range(4))
    made.record()
    loop, weights = made._close(made.conditions, (0, 1, 4, 8, 12, 17, 22))
    refiner = Refiner(loop)
    plan = Plan(tuple(GRID), loop.computed, {i: w[""] for i, w in weights.items()})
    for seed, rollout in refiner.here.items():
        start = made.conditions[seed].recording.start
        served = run(seed, Forecaster(times=GRID, plan=plan))[0]
        assert torch.allclose(start + rollout.moved, served, atol=1e-5)
    assert np.allclose(refiner.distances(), loop.distances(), atol=1e-6)


def test_a_round_that_lands_no_closer_changes_nothing(monkeypatch):
    made = Calibration(run, times=GRID, seeds=range(4))
    made.record()
    refiner = Refiner(made._close(made.conditions, (0, 3, 7, 12, 17, 22))[0])
    plan, solve = dict(refiner.plan), np.linalg.solve
    with monkeypatch.context() as patched:
        patched.setattr(np.linalg, "solve", lambda a, b: -solve(a, b))  # control: the wrong way
        assert not refiner.round()
    assert refiner.plan == plan
    before = refiner.distances()
    assert refiner.round() and refiner.distances().mean() < before.mean()


def test_refinement_replays_what_it_knows():
    """A trial of a gap computes only the anchors after it."""
    made = Calibration(run, times=GRID, seeds=[0])
    made.record()
    refiner = Refiner(made._close(made.conditions, (0, 3, 7, 12, 17, 22))[0])
    calls["n"] = 0
    refiner.round()
    trials = sum(sum(a > shift.steps[0] for a in refiner.computed) for shift in refiner.shifts)
    assert trials < calls["n"] <= trials + 4 * len(refiner.computed)
    assert refiner.shifts[-1] == Shift("", (22,), "state")


@pytest.mark.parametrize("rounds", [-1, 17])
def test_refine_is_checked(rounds):
    with pytest.raises(ValueError, match=r"refine must be 0\.\.16"):
        Calibration(run, times=GRID, seeds=[0], refine=rounds)


def test_both_targets_share_their_recordings():
    options = {"times": GRID, "seeds": range(4), "probes": 4}
    fine = np.linspace(0, 1, (STEPS - 1) * 8 + 1).tolist()
    reference = (lambda seed, cache: run(seed, cache, fine)), fine
    near = Calibration(run, **options)
    near.plan(7)
    calls["n"] = 0
    shared = near.toward(reference).plan(7)
    made = calls["n"]
    alone = Calibration(run, target="reference", reference=reference, **options)
    calls["n"] = 0
    assert alone.plan(7) == shared != near.plan(7)
    assert made < calls["n"] - 4 * (STEPS - 1), "neither uncached runs nor probes again"
    assert near.target == "uncached" and near.reference is None
