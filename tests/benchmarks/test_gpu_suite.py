"""The GPU suite on the CPU: its formulas with a simulated clock, its networks at small sizes, its files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gpu_controls
from benchmarks.gpu import cases, clocks, measure, networks, problems, results, safety
from benchmarks.gpu.__main__ import main
from forecache import Forecaster, snapshots

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
RULES = ("auto", "plan")


# --- the clock and the formulas ---------------------------------------------------------------------------------------
class Simulated(clocks.Clock):
    """A CUDA device whose time passes where ``spend`` says so."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.cuda, self.now, self.waited = True, 0.0, 0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def wait(self) -> None:
        self.waited += 1

    def mark(self) -> float:
        return self.now

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def timed(self, function: Callable[[], Any]) -> tuple[Any, clocks.Spent]:
        begin = self.now
        value = function()
        return value, clocks.Spent(self.now - begin + 0.01, self.now - begin)

    def peak(self, function: Callable[[], object]) -> int:
        function()
        return 1000

    def waits(self, function: Callable[[], Any]) -> tuple[Any, int]:
        return function(), 0

    def sees_waits(self) -> bool:
        return True

    def returns_early(self, function: Callable[[], Any]) -> tuple[Any, bool]:
        return function(), True


@pytest.fixture
def simulated() -> tuple[Simulated, problems.Problem]:
    """A network call of one second."""
    clock = Simulated()

    def call(x: torch.Tensor, t: float) -> torch.Tensor:
        clock.spend(1.0)
        return torch.sin(x + 3 * t)

    x = torch.randn(1, 50)
    return clock, problems.Problem(
        "simulated", "sine", "", "", 0, "[1, 50]", problems.grid(20), x.clone, call, lambda v: v
    )  # fmt: skip


def test_shares_are_what_their_formulas_say(
    simulated: tuple[Simulated, problems.Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forecasts for nothing save everything; at a tenth of a call they cost 10 % and save 90 %."""
    clock, problem = simulated
    found = measure.measured(problem, RULES, clock, 2)
    for each in found["rules"].values():
        assert (each["calls"], each["skipped"]) == (6, 14)
        assert each["saved"]["median"] == pytest.approx(1, abs=1e-9)
        assert each["overhead"] == {"wall": pytest.approx(0.01 / 1.01), "device": 0}
        assert each["seconds"]["uncached"]["median"] == pytest.approx(20.01)
        assert each["memory"]["snapshots"] > 0 and each["returns_early"]
    forecast = Forecaster.forecast

    def slow(self: Forecaster, *arguments: Any) -> Any:
        clock.spend(0.1)
        return forecast(self, *arguments)

    monkeypatch.setattr(Forecaster, "forecast", slow)
    each = measure.measured(problem, ("dmd",), clock, 2)["rules"]["dmd"]
    assert each["saved"]["median"] == pytest.approx(0.9, abs=1e-9)
    assert each["overhead"]["device"] == pytest.approx(0.1, abs=1e-9)
    assert each["skip"]["device"] == {"median": pytest.approx(0.1), "p95": pytest.approx(0.1), "n": 28}


def test_only_forecasts_and_records_are_counted(simulated: tuple[Simulated, problems.Problem]) -> None:
    """What a network waits for itself is its own affair."""
    clock, problem = simulated
    counted: list[str] = []
    clock.waits = lambda function: (counted.append("one"), (function(), len(counted) % 3))[1]  # type: ignore[method-assign]
    assert measure.waits(problem, measure.forecaster(problem, "dmd"), clock) == {"record": 2, "skip": 2}
    assert len(counted) == problem.steps


def test_one_late_return_is_enough(simulated: tuple[Simulated, problems.Problem]) -> None:
    clock, problem = simulated
    for late, early in ((0, True), (1, False), (measure.BUSY_STEPS, False)):  # the first may enlarge torch's pool
        left = [k != late for k in range(measure.BUSY_STEPS + 1)]
        clock.returns_early = lambda function: (function(), left.pop(0))  # type: ignore[method-assign]  # noqa: B023
        assert measure.returns_early(problem, measure.forecaster(problem, "dmd"), clock) is early
        assert not left


def test_summaries() -> None:
    assert clocks.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": pytest.approx(2.9), "n": 3}
    with pytest.raises(ValueError, match="empty"):
        clocks.summary([])
    assert measure.Pair(10.0, 4.0, 1.0).saved(6) == 1.0 and measure.Pair(10.0, 7.0, 1.0).saved(6) == 0.5


def test_waits_are_counted_by_torchs_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by no other; the mode is put back, also after an error."""
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    clock = clocks.Clock(CPU)

    def noisy() -> str:
        for text in ("called a synchronizing CUDA operation (Triggered internally ...)",) * 2 + (
            "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations",
        ):
            warnings.warn(text, stacklevel=1)
        return "value"

    assert clock.waits(noisy) == ("value", 2)
    with pytest.raises(ZeroDivisionError):
        clock.waits(lambda: 1 / 0)
    assert modes == ["warn", 0] * 2
    assert not clock.sees_waits()  # blind here: nothing warns


class Event:
    """Of a device that is as fast as the host."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3

    def query(self) -> bool:
        return False


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Functions of ``torch.cuda`` that the suite calls, in order of their calls; torch must know each by its name."""
    called: list[str] = []

    def stands_in(name: str, result: Any = None) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda *given, **named: (called.append(name), result)[1])

    for name, result in {
        "synchronize": None, "_sleep": None, "reset_peak_memory_stats": None, "max_memory_allocated": 7,
        "get_sync_debug_mode": 0, "set_sync_debug_mode": None, "current_stream": SimpleNamespace(wait_stream=id),
        "Stream": SimpleNamespace(wait_stream=id), "stream": nullcontext(), "graph": nullcontext(),
        "get_device_properties": SimpleNamespace(name="a GPU", total_memory=9, major=9, minor=0),
    }.items():  # fmt: skip
        stands_in(name, result)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return called


def test_what_only_a_cuda_device_is_asked_for(
    simulated: tuple[Simulated, problems.Problem], pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocks.Clock(CPU)
    clock.cuda = True
    monkeypatch.setattr(clocks.Clock, "sees_waits", lambda self: True)
    with warnings.catch_warnings(record=True):
        each = measure.measured(simulated[1], ("auto",), clock, 1)["rules"]["auto"]
    assert each["memory"] == {"uncached": 7, "cached": 7, "snapshots": each["memory"]["snapshots"]}
    assert each["waits"] == {"record": 0, "skip": 0} and each["returns_early"]
    assert each["overhead"]["device"] < each["overhead"]["wall"] * 2
    assert pretended.count("reset_peak_memory_stats") == pretended.count("max_memory_allocated") == 2
    assert pretended.count("set_sync_debug_mode") == 2 * simulated[1].steps
    asleep = pretended.index("_sleep")  # queued on an empty queue, and waited for in the end
    assert pretended[asleep - 1] == pretended[asleep + 1] == "synchronize"
    about = results.environment(torch.device("cuda", 0))
    assert (about["device"], about["memory"], about["capability"]) == ("a GPU", 9, "9.0")


def test_a_graph_is_captured_after_a_warm_up_and_replayed_on_its_own_inputs(
    pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[torch.Tensor, ...]] = []
    out = torch.zeros(1, 3)

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        given.append((x, t))
        return out.copy_(x + t)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: f(*given[0])))
    x = torch.ones(1, 3)
    call = safety.graphed(f, x)
    assert len(given) == 4 and len({each[0].data_ptr() for each in given}) == 1
    assert pretended[-1] == "graph" and pretended.index("stream") < pretended.index("graph")
    assert call(x * 2, torch.full((1,), 3.0)).tolist() == [[5.0] * 3] and torch.equal(x, torch.ones(1, 3))


def test_times_of_the_cpu_are_of_the_wall() -> None:
    value, spent = clocks.Clock(CPU).timed(lambda: 3)
    assert value == 3 and spent.wall > 0 and spent.device is None


# --- networks ---------------------------------------------------------------------------------------------------------
def run(problem: problems.Problem) -> None:
    """A cached run skips calls, its forecasts move, and it ends near the uncached one."""
    made: list[float] = []
    call = problem.call
    counted = problems.Problem(**{**vars(problem), "call": lambda x, t: (made.append(t), call(x, t))[1]})
    with torch.inference_mode():
        exact = measure.sample(counted).float()
        assert len(made) == problem.steps == len(set(made))
        cache = measure.forecaster(problem, "auto")
        ended = measure.sample(counted, cache).float()
        assert len(made) == problem.steps + cache.trace.computed < 2 * problem.steps
        began = problem.noise().float()
    assert 1e-8 < (ended - exact).norm() / (exact - began).norm() < 0.2


@pytest.mark.parametrize("name", cases.CASES)
def test_stand_ins_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    problem = cases.CASES[name](problems.Place(CPU, "tiny"))
    assert problem.network == "Plain" and problem.stand_in and problem.parameters > 10_000
    run(problem)


def test_the_upstreams_own_classes_run(checkouts: Callable[..., Path]) -> None:
    """Small; and at the production size they have the parameters that they are known for."""
    pytest.importorskip("einops", reason="needs the extra `hunyuan21`")
    pytest.importorskip("easydict", reason="needs the extra `trellis`")
    # the checkouts that the other tests import: a process can import one of each
    places = {
        "hunyuan21": checkouts("hunyuan21", patched=True),
        "trellis": checkouts("trellis", patched=True, source="wheel"),
    }
    place = problems.Place(CPU, "tiny", places)
    for name, network in (
        ("hunyuan3d-2.1", "HunYuanDiTPlain"),
        ("trellis-structure", "SparseStructureFlowModel"),
        ("trellis-slat", "SLatFlowModel"),
    ):
        problem = cases.CASES[name](place)
        assert problem.network == network
        with torch.inference_mode():
            x = problem.noise()
            first, second = (problem.velocity(problem.call(x, t)) for t in (0.2, 0.6))
        assert first.shape == x.shape and 1e-4 < (second - first).norm() / first.norm() < 1
    from forecache_lab.generators.reference import hunyuan21, trellis

    dit = hunyuan21.load(place.checkouts["hunyuan21"]).Network
    flow = trellis.load(place.checkouts["trellis"]).models.SparseStructureFlowModel
    with torch.device("meta"):
        assert problems.count(dit(**cases.HUNYUAN21["full"], **cases.OF_HUNYUAN21)) == pytest.approx(3.05e9, rel=0.01)
        structure = flow(**cases.SHARED, **cases.STRUCTURE["full"], patch_size=1)
        assert problems.count(structure) == pytest.approx(0.556e9, rel=0.01)


def test_fluxs_own_class_runs() -> None:
    pytest.importorskip("diffusers", reason="needs the extra `diffusers`")
    problem = cases.flux(problems.Place(CPU, "tiny"))
    assert problem.network == "FluxTransformer2DModel" and not problem.stand_in
    run(problem)
    from diffusers import FluxTransformer2DModel

    config = cases.FLUX["full"]
    with torch.device("meta"):
        parameters = problems.count(FluxTransformer2DModel(**config, guidance_embeds=True))
    assert parameters == pytest.approx(11.9e9, rel=0.01)
    width = config["attention_head_dim"] * config["num_attention_heads"]
    told = width**2 * (cases.DOUBLE * config["num_layers"] + cases.SINGLE * config["num_single_layers"])
    assert told == pytest.approx(parameters, rel=0.01)  # from which the blocks that fit are reckoned


def test_fewer_blocks_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for free, blocks in ((40, (19, 38)), (16, (9, 19)), (4, (1, 1))):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * cases.GIB, 0))
        fits = cases.blocks_that_fit(cases.FLUX["full"], cuda)
        assert fits == pytest.approx(blocks, abs=1)
    assert cases.blocks_that_fit(cases.FLUX["full"], CPU) == (19, 38)


def test_sizes_of_production() -> None:
    assert abs(len(cases.shell(64)) - 20_000) < 500
    with torch.device("meta"):
        size = networks.Size(4096, 64, 2048, 21, 16, 1370, 1024)
        plain = networks.Plain(size)
        out = plain(torch.empty(2, 4096, 64), torch.empty(2), torch.empty(2, 1370, 1024))
    assert out.shape == (2, 4096, 64) and problems.count(plain) > 1e9


def test_zero_parameters_are_drawn_anew() -> None:
    def silent() -> torch.nn.Module:
        layer = torch.nn.Linear(3, 3)
        torch.nn.init.zeros_(layer.weight)
        return layer

    assert networks.random_network(silent, CPU, torch.float16).weight.any()
    assert not silent().weight.any()  # type: ignore[operator, union-attr]
    assert torch.get_default_dtype() == torch.float32


# --- graphs and precision ---------------------------------------------------------------------------------------------
def test_an_output_that_is_overwritten_changes_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        f, x = safety.function(CPU, torch.float32, safety.TINY)
        assert safety.reused(safety.static(f, x), x) == {"places": 1, "difference": 0.0, "ok": True}
        fresh = safety.reused(f, x)  # nothing is overwritten: nothing is shown
        assert fresh["places"] == safety.CALLS and not fresh["ok"]
        gpu_controls.borrow(monkeypatch)
        assert safety.reused(safety.static(f, x), x)["difference"] > 1e-3
        assert safety.reused(f, x)["difference"] == 0  # borrowing alone is no harm


def test_rounding_is_told_from_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = safety.exactness(CPU, 5000)
    assert all(worst <= (1e-11 if name.startswith("gram") else 1) for name, worst in found.items())
    assert found["bfloat16"] > 0.9 and found["float16"] > 0.9  # the bound is no wider than it must be

    def coarse(numbers: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.tensor(numbers, device=device).bfloat16().to(dtype)

    monkeypatch.setattr(snapshots, "sent", coarse)
    found = safety.exactness(CPU, 5000)
    assert min(found[name] for name in ("float64", "float32", "float16", "bfloat16")) > 1
    values = torch.randn(4, 5000)
    weights = np.array([0.5, -0.25, 0.5, 0.25])
    exact = sum(w * v for w, v in zip(weights, values.double(), strict=True))
    assert safety.rounding(values, weights, exact.float(), torch.float32) <= 1
    tf32 = values.view(torch.int32).bitwise_and(-(1 << 13)).view(torch.float32)  # ten bits of the mantissa
    wrong = sum(w * v for w, v in zip(weights, tf32.double(), strict=True)).float()
    assert safety.rounding(values, weights, wrong, torch.float32) > 10


# --- files ------------------------------------------------------------------------------------------------------------
PACKAGES = ("typer", "rich", "scipy", "diffusers", "trimesh", "matplotlib", "forecache_lab", "forecache_adapters")
ALONE = f"""
import sys
for name in {PACKAGES}:
    sys.modules[name] = None
from benchmarks.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of results, made with torch and numpy alone."""
    out = tmp_path_factory.mktemp("results")
    options = ["--device=cpu", "--case=hunyuan3d-2.1", "--case=flux", "--rule=auto", "--repeats=1", f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "core"), str(ROOT)))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *options], cwd=out, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.json")
    assert f"written to {path}" in done.stdout
    return path


def test_a_file_says_what_it_is(written: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    body = results.load(written)
    assert written.name.endswith(f"-tiny-{body['made'][:10]}.json")
    assert "--case=hunyuan3d-2.1" in body["command"]
    assert [case["stand_in"] for case in body["cases"]] == [
        "no checkout of hunyuan21 was given", "not installed: diffusers",
    ]  # fmt: skip
    assert body["checks"]["static buffer"]["ok"]
    page = written.with_suffix(".md").read_text(encoding="utf-8")
    assert results.TINY[1:] in page and "stand-in" in page and "Target" not in page
    assert main(["--show", str(written)]) == 0
    assert capsys.readouterr().out.strip() == page.strip()
    for name in (written.name, written.name.replace(".json", "-2.json")):
        path = results.free_path(body, tmp_path)
        assert path.name == name
        results.write(body, path)
        assert results.load(path) == body


def on_cuda(body: dict[str, Any], share: float, saved: float) -> dict[str, Any]:
    """What a CUDA machine would have written."""
    made = copy.deepcopy(body)
    made["settings"]["size"] = "full"
    made["environment"] |= {"type": "cuda", "device": "a GPU", "cuda": "13.0", "capability": "9.0", "memory": 1}
    for case in made["cases"]:
        case["call"]["device"] = {"median": 1.0, "p95": 1.0, "n": 3}
        case["call"]["wall"] = {"median": 1.0, "p95": 1.0, "n": 3}
        for rule in case["rules"].values():
            rule["skip"] = {clock: {"median": share, "p95": share, "n": 3} for clock in ("wall", "device")}
            rule["record"]["device"] = rule["record"]["wall"]
            rule["overhead"] = {"wall": share, "device": share}
            rule["saved"] = {"median": saved, "p95": saved, "n": 3, "least": saved}
            rule["memory"] = {"uncached": 1, "cached": 2, "snapshots": 1}
            rule["waits"], rule["returns_early"] = {"record": 1, "skip": 0}, True
    return made


@pytest.mark.parametrize(
    ("share", "saved", "said"), [(0.03, 0.97, "met by auto"), (0.031, 0.99, "missed"), (0.01, 0.96, "missed")]
)
def test_the_target_is_told_for_the_production_size_alone(written: Path, share: float, saved: float, said: str) -> None:
    body = on_cuda(results.load(written), share, saved)
    assert results.faults(body) == []
    page = results.page(body)
    assert page.count("Target") == 1 and said in page and results.TINY[1:] not in page


def spoilt(path: tuple[Any, ...], value: Any) -> Any:
    def change(body: dict[str, Any]) -> None:
        at: Any = body
        for key in path[:-1]:
            at = at[key]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return change


RULE = ("cases", 0, "rules", "auto")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoilt(("format",), 2), "format must be 1"),
        (spoilt(("made",), "today"), "made must be a date"),
        (spoilt(("command",), ""), "command"),
        (spoilt(("environment", "torch"), ""), "environment.torch"),
        (spoilt(("environment",), None), "malformed"),
        (spoilt(("settings", "size"), "large"), "settings.size"),
        (spoilt((*RULE, "calls"), 7), "7 calls and 14 skipped"),
        (spoilt((*RULE, "overhead", "wall"), 0.001), "overhead.wall is 0.001"),
        (spoilt((*RULE, "skip", "wall", "p95"), 1e-9), "skip: no median"),
        (spoilt((*RULE, "record", "wall", "median"), float("nan")), "record: no median"),
        (spoilt((*RULE, "saved", "least"), 50.0), "saved"),
        (spoilt((*RULE, "returns_early"), True), "only there"),
        (spoilt(("cases", 0, "call", "device"), {"median": 1, "p95": 1, "n": 1}), "only there"),
        (spoilt(("environment", "type"), "cuda"), "malformed"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(
    written: Path, change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    body = results.load(written)
    assert results.faults(body) == []
    change(body)
    assert any(said in each for each in results.faults(body))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.json"):
        results.load(bad)
    with pytest.raises(ValueError, match="results: "):
        results.write(body, tmp_path / "never.json")
    assert not (tmp_path / "never.json").exists()


def test_the_files_that_are_kept_hold_together_and_claim_no_device_that_was_not_there() -> None:
    folder = ROOT / "benchmarks" / "results"
    assert (folder / "README.md").is_file()
    for path in folder.glob("*.json"):
        body = results.load(path)
        page = path.with_suffix(".md").read_text(encoding="utf-8")
        assert page == results.page(body)
        if body["environment"]["type"] == "cpu":
            assert body["settings"]["size"] == "tiny" and results.TINY[1:] in page


def test_a_case_without_room_or_that_fails_is_left_out_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def large(place: problems.Place) -> problems.Problem:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    def broken(place: problems.Place) -> problems.Problem:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(cases.CASES, "flux", large)
    monkeypatch.setattr(safety, "checks", lambda device: {})
    options = ["--device=cpu", "--rule=plan", "--repeats=1", "--case=flux", "--case=hunyuan3d-2.1", f"--out={tmp_path}"]
    assert main(options) == 0
    page = capsys.readouterr().out
    assert "flux was left out: out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.\n" in page
    assert "## hunyuan3d-2.1" in page
    monkeypatch.setitem(cases.CASES, "flux", broken)

    def interrupted(place: problems.Place) -> problems.Problem:
        (path,) = tmp_path.glob("*-2.json")  # of this run, after its first case
        assert set(results.load(path)["left_out"]) == {"flux", "hunyuan3d-2.1"}
        return cases.hunyuan21(place)

    monkeypatch.setitem(cases.CASES, "hunyuan3d-2.1", interrupted)
    assert main(options) == 1
    page = capsys.readouterr().out
    assert "flux was left out: it failed, RuntimeError('no kernel image').\n" in page and "## hunyuan3d-2.1" in page


def test_what_cannot_run_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, said in (
        (["--device", "cuda"], "device cuda: no CUDA device"),
        (["--device", "meta"], "device must be cuda or cpu, got 'meta'"),
        (["--repeats", "0", "--device", "cpu"], "repeats must be >= 1, got 0"),
        (["--show", "absent.json"], "absent.json"),
    ):
        assert main(options) == 1
        assert said in capsys.readouterr().err
