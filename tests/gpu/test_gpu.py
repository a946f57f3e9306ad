"""On a CUDA device: what skipped steps cost and save, that they wait for nothing, graphs, compilation, precision.

``pytest -m gpu`` (docs/gpu.md); no other command runs them. Without such a device every test here is skipped; its logic
is tested on the CPU in ``tests/benchmarks/test_gpu_suite.py`` and ``tests/core/test_waits.py``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_controls
from benchmarks.gpu import cases, measure, problems, results, safety
from benchmarks.gpu.__main__ import CHECKOUTS, main
from benchmarks.gpu.clocks import Clock
from forecache import Forecaster
from forecache.snapshots import Snapshots

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

REPEATS = 7
SLACK = 64 << 20  # bytes of work buffers


@pytest.fixture(scope="module")
def device() -> torch.device:
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def place(device: torch.device, size: str) -> problems.Place:
    folders = {name: os.environ.get(f"FORECACHE_{name.upper()}") for name in CHECKOUTS}
    return problems.Place(device, size, {name: Path(folder) for name, folder in folders.items() if folder})


@pytest.fixture(scope="module")
def production(device: torch.device) -> dict[str, Any]:
    """All figures of Hunyuan3D-2.1 at its production size; its own class where a checkout is given."""
    with torch.inference_mode():
        problem = cases.hunyuan21(place(device, "full"))
        return measure.measured(problem, measure.RULES, Clock(device), REPEATS)


@pytest.mark.parametrize("rule", measure.RULES)
def test_a_skipped_step_costs_at_most_three_percent_of_a_network_call(production: dict[str, Any], rule: str) -> None:
    for clock, share in production["rules"][rule]["overhead"].items():
        assert share <= results.OVERHEAD, clock


@pytest.mark.parametrize("rule", measure.RULES)
def test_at_least_97_percent_of_the_skipped_network_time_is_saved(production: dict[str, Any], rule: str) -> None:
    assert production["rules"][rule]["saved"]["median"] >= results.SAVED


@pytest.mark.parametrize("rule", measure.RULES)
def test_skipped_steps_wait_for_nothing_and_computed_ones_once(production: dict[str, Any], rule: str) -> None:
    each = production["rules"][rule]
    assert each["waits"] == {"record": 1, "skip": 0}
    assert each["returns_early"]


@pytest.mark.parametrize("rule", measure.RULES)
def test_the_peak_of_memory_grows_by_no_more_than_the_snapshots(production: dict[str, Any], rule: str) -> None:
    memory = production["rules"][rule]["memory"]
    assert 0 < memory["snapshots"] <= 8 * 4096 * 64 * 2
    assert memory["cached"] - memory["uncached"] <= memory["snapshots"] + SLACK


@pytest.mark.parametrize("name", cases.CASES)
def test_every_generator_runs_small_and_a_record_waits_once(device: torch.device, name: str) -> None:
    clock = Clock(device)
    with torch.inference_mode():
        problem = cases.CASES[name](place(device, "tiny"))
        found = measure.measured(problem, measure.RULES, clock, 1)["rules"]
    for each in found.values():  # also where each branch is a stream
        assert each["waits"] == {"record": 1, "skip": 0}
        assert each["returns_early"]


def test_a_file_of_results_is_written_and_read(tmp_path: Path) -> None:
    options = ["--device", "cuda", "--size", "tiny", "--repeats", "1", "--rule", "auto", "--out", str(tmp_path)]
    assert main(options) == 0
    (path,) = tmp_path.glob("*.json")
    about = results.load(path)["environment"]
    assert about["device"] == torch.cuda.get_device_name(0) and about["cuda"] == (
        torch.version.cuda or torch.version.hip
    )


# --- graphs, compilation, precision -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_captured_graph_overwrites_its_output_and_no_snapshot(device: torch.device, dtype: torch.dtype) -> None:
    with torch.no_grad():
        f, x = safety.function(device, dtype)
        found = safety.reused(safety.graphed(f, x), x)
    assert found == {"places": 1, "difference": 0.0, "ok": True}


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="torch.compile needs a C compiler")
def test_a_compiled_network_overwrites_its_output_and_no_snapshot(device: torch.device) -> None:
    pytest.importorskip("triton", reason="torch.compile needs Triton")
    with torch.no_grad():
        f, x = safety.function(device, torch.bfloat16)
        found = safety.reused(safety.compiled(f, x), x)
    assert found["difference"] == 0.0
    assert found["places"] < safety.CALLS  # it does overwrite


def test_weights_in_flight_are_not_overwritten(device: torch.device) -> None:
    """Many forecasts queued on another stream behind a busy device: each is made with its own weights."""
    snapshots, draw = Snapshots(3, batch_dim=None), torch.Generator().manual_seed(0)
    for time, value in enumerate(torch.randn(3, 4096, generator=draw).to(device)):
        snapshots.push(float(time), value)
    weights = [torch.randn(3, generator=draw).tolist() for _ in range(200)]
    expected = [snapshots.combine(each) for each in weights]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        got = [snapshots.combine(each) for each in weights]
        assert not side.query()
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, expected))
    assert not torch.equal(got[0], expected[1])


def test_borrowed_snapshots_are_caught(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_controls.borrow(monkeypatch)
    with torch.no_grad():
        f, x = safety.function(device, torch.float32)
        assert safety.reused(safety.graphed(f, x), x)["difference"] > 0


def test_combinations_are_rounded_once_in_every_dtype(device: torch.device) -> None:
    for name, worst in safety.exactness(device).items():
        assert worst <= (1e-11 if name.startswith("gram") else 1), name


# --- the instruments --------------------------------------------------------------------------------------------------
def test_the_counter_sees_waits(device: torch.device) -> None:
    assert Clock(device).sees_waits()


def test_a_forecast_that_reads_the_device_is_caught(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = Forecaster.forecast

    def reads(self: Forecaster, *arguments: Any) -> Any:
        value = forecast(self, *arguments)
        value.sum().item()
        return value

    monkeypatch.setattr(Forecaster, "forecast", reads)
    clock = Clock(device)
    with torch.inference_mode():
        problem = cases.flux(place(device, "tiny"))
        assert measure.waits(problem, measure.forecaster(problem, "auto"), clock)["skip"] == 1
        assert not measure.returns_early(problem, measure.forecaster(problem, "auto"), clock)


def test_events_agree_with_the_wall_over_a_busy_device(device: torch.device) -> None:
    clock = Clock(device)
    _, spent = clock.timed(lambda: torch.cuda._sleep(10 * 100_000_000))
    assert spent.device is not None and 0.9 < spent.device / spent.wall < 1.01
