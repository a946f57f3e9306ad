"""Schedule search and closed-loop weights, on a flow of two coupled nonlinear oscillators per condition."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from forecache import Forecaster, Guided, Plan, calibrate
from forecache.basis import Linear
from forecache.calibrate import fit, positions, record
from forecache.search import cost, displacement_errors, search

STEPS = 40
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
        v = cache.step(i, lambda i=i, now=now: velocity(now, grid[i])) if cache else velocity(now, grid[i])
        x = x + (grid[i + 1] - grid[i]) * v
    return x


def drifts(make, seeds, reference=run):
    return [float((run(s, make()) - reference(s, None)).norm() / reference(s, None).norm()) for s in seeds]


TEST, CALIBRATION = range(100, 112), range(8)


def test_record_is_the_gram_matrix_of_the_velocities():
    values, gram = record(run, np.array(GRID), 3)
    stacked = torch.stack([values[i] for i in range(STEPS - 1)]).double().numpy()
    assert sorted(values) == list(range(STEPS - 1)), "the step with dt = 0 is not computed"
    assert np.allclose(gram[:-1, :-1], stacked @ stacked.T, rtol=1e-12)
    assert not gram[-1].any()


def test_open_loop_simulation_equals_a_replay():
    values, gram = record(run, np.array(GRID), 3)
    computed = (0, 3, 9, 20, 30, 38)
    cache = Forecaster(Linear(2), times=GRID, computed=computed)
    off, norms = torch.zeros(16), []
    for i in range(STEPS):
        v = cache.step(i, lambda i=i: values[i][None])[0]
        if i in values:
            off = off + (GRID[i + 1] - GRID[i]) * (v - values[i])
        norms.append(float(off.norm()))
    simulated = np.sqrt(displacement_errors(gram, np.array(GRID), computed, Linear(2)))
    assert np.allclose(simulated, norms, atol=2e-5)
    assert norms[-1] > 1e-3, "a replay without error would show nothing"


def test_search_never_loses_to_its_starts_and_keeps_the_budget():
    _, gram = record(run, np.array(GRID), 3)
    times = np.array(GRID)
    for budget in (2, 5, 9, STEPS - 1):
        found, error = search(gram, times, budget, Linear(2))
        spread = Forecaster("linear", times=GRID, calls=budget).computed
        assert len(found) == budget and found[0] == 0 and found[-1] == STEPS - 2
        assert error**2 <= cost(gram, times, spread, Linear(2)) * (1 + 1e-9)
    assert search(gram, times, 9, Linear(2)) == search(gram, times, 9, Linear(2))


@pytest.fixture(scope="module")
def plan():
    return calibrate(run, times=GRID, calls=7, seeds=CALIBRATION, made_for={"model": "toy"})


def test_calibration_costs_what_it_says(plan):
    calls["n"] = 0
    again = calibrate(run, times=GRID, calls=7, seeds=CALIBRATION, made_for={"model": "toy"})
    assert calls["n"] == len(CALIBRATION) * (STEPS - 1 + 7)
    assert again == plan, "calibration is deterministic"


def test_plan_beats_its_own_schedule_and_the_even_one_on_other_seeds(plan):
    key = {"model": "toy"}
    planned = drifts(lambda: Forecaster(times=GRID, plan=plan, made_for=key), TEST)
    schedule_only = drifts(lambda: Forecaster(Linear(2), times=GRID, computed=plan.computed), TEST)
    even = drifts(lambda: Forecaster("linear", times=GRID, calls=7), TEST)
    assert np.median(planned) < 0.6 * min(np.median(schedule_only), np.median(even))
    wrong = Plan(plan.times, plan.computed, {k: w[::-1] for k, w in plan.weights.items()}, key)
    assert np.median(drifts(lambda: Forecaster(times=GRID, plan=wrong, made_for=key), TEST)) > 3 * np.median(planned)


def test_weights_sum_to_one_and_meet_the_guard(plan):
    assert set(plan.weights) == set(range(STEPS - 1)) - set(plan.computed)
    for w in plan.weights.values():
        assert abs(sum(w) - 1) < 1e-9 and np.abs(w).sum() <= 4 + 1e-9 and len(w) <= 4


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
    taught = calibrate(run, times=GRID, calls=12, seeds=CALIBRATION, reference=(solved, fine))
    plain = calibrate(run, times=GRID, calls=12, seeds=CALIBRATION)
    errors = [
        float(np.median(drifts(lambda p=p: Forecaster(times=GRID, plan=p, made_for=key), TEST, solved)))
        for p in (taught, plain)
    ]
    uncached = float(np.median(drifts(lambda: None, TEST, solved)))
    assert errors[0] < errors[1] and errors[0] < uncached
    assert taught.statistics["target"] == "reference"


def test_structured_velocities():
    def pair(seed, cache):
        x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        for i in range(STEPS):
            v = cache.step(i, lambda i=i, x=x: Guided(velocity(x, GRID[i]), velocity(0.5 * x, GRID[i])))
            x = x + (GRID[i + 1] - GRID[i]) * (v.uncond + 3 * (v.cond - v.uncond))
        return x

    made = calibrate(pair, times=GRID, calls=9, seeds=range(3))
    cache = Forecaster(times=GRID, plan=made)
    assert torch.isfinite(pair(50, cache)).all() and cache.trace.computed == 9


def test_positions_refuses_a_grid_that_misses_a_time():
    values, _ = record(run, np.array(GRID), 0)
    with pytest.raises(ValueError, match="is not among its times"):
        positions(values, np.array(GRID), np.array([0.0, 0.0123]))


def test_fit_prefers_the_prior_where_the_data_say_nothing():
    flat = {0: torch.ones(2, 8)}
    w, miss = fit(flat, {0: torch.ones(8)}, np.array([-0.5, 1.5]), 1e-3)
    assert np.allclose(w, [-0.5, 1.5]) and miss < 1e-6


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"calls": 0}, "calls must be 1..39"),
        ({"calls": 40}, "calls must be 1..39"),
        ({"seeds": []}, "seeds must name"),
        ({"memory": 0}, "memory must be 1..8"),
        ({"ridge": 0.0}, "ridge must be > 0"),
    ],
)
def test_bad_arguments(wrong, error):
    with pytest.raises(ValueError, match=error):
        calibrate(run, **{"times": GRID, "calls": 5, "seeds": [0], **wrong})


def test_a_run_that_ignores_the_cache_is_refused():
    with pytest.raises(RuntimeError, match=r"run\(0, cache\) did not ask the cache"):
        calibrate(lambda seed, cache: run(seed, None), times=GRID, calls=5, seeds=[0])
