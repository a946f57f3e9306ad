"""The budget ladder: plans measured on conditions that they were not made on."""

from __future__ import annotations

import numpy as np
import pytest
from test_calibrate import GRID, STEPS, run

from forecache import Calibration, Forecaster, Plan
from forecache.calibration.ladder import ladder, table


def test_a_ladder_measures_each_budget_on_other_conditions():
    fine = np.linspace(0, 1, (STEPS - 1) * 4 + 1).tolist()

    def solved(seed, cache):
        return run(seed, cache, fine)

    made = Calibration(run, times=GRID, seeds=range(4), target="reference", reference=(solved, fine), probes=3)
    rungs = ladder(made, [8, 16], range(100, 104))
    assert [len(rung.plan.computed) for rung in rungs] == [8, 16]
    seed = 100
    uncached = run(seed, None)
    cached = run(seed, Forecaster(times=GRID, plan=rungs[0].plan))
    assert np.isclose(rungs[0].drift[0], float((cached - uncached).norm() / uncached.norm()), rtol=1e-4)
    assert np.isclose(
        rungs[0].error[0], float((cached - solved(seed, None)).norm() / solved(seed, None).norm()), rtol=1e-4
    )
    assert np.median(rungs[1].error) < np.median(rungs[0].error), "the target is the reference"
    assert table(rungs).count("\n") == 3
    with pytest.raises(ValueError, match=r"not calibrated on, got \[8\]; \[2, 3\]"):
        ladder(made, [8], range(2, 6))


def test_a_plan_of_an_older_version_says_what_to_do(tmp_path):
    (tmp_path / "old.json").write_text('{"forecache_plan": 1}')
    with pytest.raises(ValueError, match="version 1, this release reads 3: calibrate again"):
        Plan.load(tmp_path / "old.json")
