"""``forecache calibrate``: a ladder of plans from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from forecache import Forecaster, Plan
from forecache_cli.main import app

SOURCE = """
import torch
GRID = [k / 12 for k in range(13)]
ran = []
def run(seed, cache):
    ran.append(seed)
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
    for i in range(12):
        x = x + (GRID[i + 1] - GRID[i]) * cache.step(i, lambda: torch.sin(3 * x) - x * GRID[i], state=x)
    return x
def toy():
    return {"run": run, "times": GRID, "made_for": {"model": "toy"}, "probes": 2}
def nothing():
    return 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "toy_flow.py").write_text(SOURCE)
    return tmp_path / "toy_flow.py"


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["calibrate", *arguments])


def test_plans_for_several_budgets_and_their_drift(source, tmp_path):
    out = tmp_path / "out"
    options = ["--calls", "5", "--calls", "4", "--seeds", "3", "--test", "50:53", "--out", str(out)]
    first = invoke(f"{source}:toy", *options)
    assert first.exit_code == 0, first.output
    assert "| 4 |" in first.output and "| 5 |" in first.output and "n = 3 test conditions" in first.output
    plan = Plan.load(out / "plan-5.json")
    assert Forecaster(times=plan.times, plan=plan, made_for={"model": "toy"}).computed == plan.computed
    before = (out / "plan-5.json").read_bytes()
    assert invoke(f"{source}:toy", *options, "--refine", "1").exit_code == 0
    assert Plan.load(out / "plan-5.json").statistics["refine"] == 1
    assert invoke(f"{source}:toy", *options).exit_code == 0
    assert (out / "plan-5.json").read_bytes() == before, "resumed from its recordings, to the same plan"


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("nowhere.py:toy", [], "there is no file"),
        ("no.such.module:toy", [], "No module named"),
        ("{source}", [], "must be MODULE:FUNCTION"),
        ("{source}:other", [], "has no function other"),
        ("{source}:nothing", [], "must return a mapping"),
        ("{source}:toy", ["--seeds", "x"], "seeds must be N or FIRST:END"),
        ("{source}:toy", ["--seeds", "0"], "at least one run"),
        ("{source}:toy", ["--seeds", "4", "--test", "2:6"], "not calibrated on"),
    ],
)
def test_bad_input_is_one_clear_line(source, tmp_path, where, options, message):
    result = invoke(where.format(source=source), "--calls", "5", "--out", str(tmp_path / "out"), *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.glob("out/plan-*.json"))
