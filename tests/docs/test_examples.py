"""The examples of the documentation: they run, and what the pages say about them holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from document_checks import ROOT, Page
from typer.testing import CliRunner

import first_steps
import forecache_cli.main as cli
import superresolution
from calibrate_plan import problem
from forecache import Forecaster, Plan
from forecache.rules import Linear, Rule
from forecache_adapters.settings import Settings
from forty_line_adapter import disable, enable
from small_generator import SmallGenerator
from twenty_line_basis import Wave

EXAMPLES = ROOT / "docs" / "examples"


class Backwards(Rule):
    """The wrong sign of a rule: what it would add to the newest snapshot is taken away."""

    def __init__(self, inner):
        self.inner, self.name = inner, f"wrong sign of {inner.name}"
        self.window, self.floor = inner.window, inner.floor

    def weights(self, times, target, gram):
        newest = np.eye(len(times))[-1]
        return 2 * newest - self.inner.weights(times, target, gram)


def lines_of(name):
    """Lines that are not blank: docstrings, imports and comments count."""
    return sum(bool(line.strip()) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines())


def test_the_counts_of_lines_are_true():
    assert lines_of("twenty_line_basis.py") <= 20
    assert lines_of("forty_line_adapter.py") <= 40
    assert lines_of("superresolution.py") > 40, "it counts"


# --- what the README shows --------------------------------------------------------------------------------------------
def test_the_readmes_sampler_and_rule_run_as_they_stand(capsys):
    sampler, rule, _ = [content for language, content in Page(ROOT / "README.md").blocks if language == "python"]
    names = {}
    exec(sampler, names)
    assert capsys.readouterr().out == "15\n"
    exec(rule, names)

    def sample(**settings):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        cache, grid = Forecaster(times=names["grid"], **settings), names["grid"]
        for i in range(len(grid) - 1):
            x = x + (grid[i + 1] - grid[i]) * cache.step(i, lambda x=x, i=i: names["model"](x, grid[i]), state=x)
        return x

    plain, mine = sample(interval=1), sample(basis=names["Tail"](), calls=15)
    assert torch.equal(mine, sample(basis="linear", calls=15)), "the rule is a line"
    assert 0 < (mine - plain).norm() < 0.2 * (sample(basis="reuse", calls=15) - plain).norm()


def test_the_rule_of_the_contributing_page_runs_as_it_stands(capsys):
    (whole,) = [content for language, content in Page(ROOT / "CONTRIBUTING.md").blocks if language == "python"]
    exec(whole, {})
    assert capsys.readouterr().out == "6 of 30 steps computed\n"
    assert len(whole.split("class Decay")[1].split("cache = ")[0].splitlines()) <= 20
    with pytest.raises(AssertionError):
        exec(whole.replace("1 - share, share", "1 + share, -share"), {})  # the wrong sign


# --- a basis in 20 lines ----------------------------------------------------------------------------------------------
def wave(times, period):
    """``[n, 5]``: a constant and a wave of the period, in five directions."""
    random = np.random.default_rng(0)
    phase = 2 * np.pi / period * np.asarray(times)[:, None]
    return random.normal(size=5) + np.cos(phase) * random.normal(size=5) + np.sin(phase) * random.normal(size=5)


@pytest.mark.parametrize("times", [(0.0, 1.0, 2.0), (0.0, 0.7, 2.9)])
def test_the_basis_is_exact_on_what_it_claims(times):
    target, period = 3.3, 18.0
    values = wave((*times, target), period)

    def error(rule):
        return np.abs(rule.weights(np.array(times), target, np.eye(3)) @ values[:-1] - values[-1]).max()

    assert error(Wave(period)) < 1e-12
    assert error(Wave(1.3 * period)) > 1e-2, "another period"
    assert error(Linear(2)) > 1e-2 and error(Backwards(Wave(period))) > 0.1
    assert Wave(period).weights(np.array(times), target, np.eye(3)).sum() == pytest.approx(1)


def test_the_basis_serves_a_run_and_falls_back():
    times = list(range(31))
    values = torch.from_numpy(wave(times, 18.0))
    cache = Forecaster(Wave(18.0), times=times, computed=range(0, 30, 3))
    found = [cache.step(i, lambda i=i: values[i]) for i in times[:-1]]
    assert torch.allclose(torch.stack(found[6:]), values[6:-1], atol=1e-9)
    assert not torch.allclose(found[4], values[4], atol=1e-2), "two snapshots: a line"
    served = [step.rules["v"] for step in cache.trace.steps if step.kind == "forecast"]
    assert served[4:] == ["wave"] * 16 and "wave" not in served[:4]

    cache = Forecaster(Wave(6.0), times=times, computed=[0, 6, 12, 18, 24, 29])  # a period apart: nothing is told apart
    for i in times[:-1]:
        cache.step(i, lambda i=i: values[i])
    reasons = [reason for step in cache.trace.steps for each in step.fallbacks.values() for reason in each]
    assert any("tell the three terms apart" in reason for reason in reasons) and cache.trace.forecast == 24


# --- an adapter in 40 lines -------------------------------------------------------------------------------------------
@pytest.fixture
def pipe():
    pipe = SmallGenerator()
    pipe.calls = 0

    def count(*_):
        pipe.calls += 1

    pipe.network.register_forward_hook(count)
    return pipe


def inputs():
    random = torch.Generator().manual_seed(1)
    return torch.randn(3, 32, generator=random), torch.randn(3, 32, generator=random)


def test_the_adapter_counts_calls_and_off_is_bit_identical(pipe):
    x, cond = inputs()
    plain = pipe.generate(x, cond)
    assert pipe.calls == 48

    handle, pipe.calls = enable(pipe, interval=1), 0
    assert torch.equal(pipe.generate(x, cond), plain) and pipe.calls == 48, "every step computed"

    handle, pipe.calls = enable(pipe, calls=8), 0
    cached = pipe.generate(x, cond)
    assert pipe.calls == 16 == sum(trace.computed for trace in handle.traces.values())
    assert 1e-6 < (cached - plain).norm() / plain.norm() < 0.05
    assert handle.caches == {}, "no snapshot is left"
    assert torch.equal(pipe.generate(x, cond), cached), "nothing of the first run is left"
    assert torch.allclose(pipe.generate(x[:1], cond[:1]), cached[:1], atol=1e-5), "items are independent"

    disable(pipe)
    disable(pipe)
    pipe.calls = 0
    assert torch.equal(pipe.generate(x, cond), plain) and pipe.calls == 48
    assert not {"generate", "velocity"} & set(vars(pipe))


def test_the_adapter_stays_off_in_short_runs_and_beats_its_controls(pipe, monkeypatch):
    x, cond = inputs()
    plain = pipe.generate(x, cond)

    def drift(**settings):
        enable(pipe, interval=3, warmup=3, **settings)
        try:
            return float((pipe.generate(x, cond) - plain).norm() / plain.norm())
        finally:
            disable(pipe)

    right = drift(basis=Linear(1))
    assert drift(basis=Backwards(Linear(1))) > 3 * right and drift(basis="reuse") > 2 * right
    handle = enable(pipe, interval=3)
    one = handle.settings.begin(pipe.times(24), {})
    with monkeypatch.context() as patch:
        patch.setattr(Settings, "begin", lambda self, times, made_for: one)
        with pytest.raises(ValueError, match="step"):
            pipe.generate(x, cond)  # one history for both branches
    disable(pipe)

    short = pipe.generate(x, cond, steps=6)
    with pytest.warns(UserWarning, match="distilled"):
        handle = enable(pipe, interval=3)
        assert torch.equal(pipe.generate(x, cond, steps=6), short)
    assert all("off" in trace.notes[0] for trace in handle.traces.values())


# --- three calls in a sampler of one's own ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def network():
    return superresolution.trained(iterations=150)


def test_superresolution_forecasts_do_not_call_the_network(network):
    steps, n = 40, 8
    low = superresolution.shrink(superresolution.pictures(n, seed=1))
    noise = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    grid = torch.linspace(0, 1, steps + 1).tolist()
    network.calls = 0
    reference = superresolution.enlarge(network, low, noise, steps)
    assert network.calls == steps
    moved = {}
    for name, basis in (("linear", Linear(1)), ("backwards", Backwards(Linear(1))), ("auto", "auto")):
        network.calls = 0
        cache = Forecaster(basis, times=grid, calls=10)
        x = superresolution.enlarge(network, low, noise, steps, cache)
        assert network.calls == 10 == cache.trace.computed and cache.trace.forecast == 30
        moved[name] = superresolution.drift(x, reference)
    euler = superresolution.drift(superresolution.enlarge(network, low, noise, 10), reference)
    assert 0 < moved["auto"] < euler and 0 < moved["linear"] < euler
    assert moved["backwards"] > 2 * moved["linear"]
    full = Forecaster(times=grid, interval=1)
    assert torch.equal(superresolution.enlarge(network, low, noise, steps, full), reference)


def test_superresolution_follows_its_condition(network):
    pictures = superresolution.pictures(8, seed=2)
    low, noise = superresolution.shrink(pictures), torch.randn(8, 1, 16, 16)
    found = superresolution.shrink(superresolution.enlarge(network, low, noise))
    assert (found - low).norm() < 0.5 * (found - low.roll(1, 0)).norm(), "trained: another condition is another picture"


def test_superresolution_prints_calls_and_drift(network, monkeypatch):
    monkeypatch.setattr(superresolution, "trained", lambda: network)
    network.calls = 0
    rows = superresolution.main(n=4)
    assert rows["uncached"][0] == 40 and rows["uncached"][1] == 0
    assert rows["forecasts, auto"][0] == 10 and rows["forecasts, auto"][1] < rows["forecasts, reuse"][1]


# --- first steps, calibration -----------------------------------------------------------------------------------------
def test_first_steps(monkeypatch):
    called = []
    plain = first_steps.model
    monkeypatch.setattr(first_steps, "model", lambda x, t: called.append(t) or plain(x, t))
    rows = first_steps.main()
    assert len(called) == 50 + sum(calls for calls, _ in rows.values()) == 120
    assert all(rows[name][1] < rows["reuse"][1] for name in ("taylor", "hermite", "dmd", "auto"))


def test_a_plan_is_calibrated_and_serves(tmp_path):
    source = f"{EXAMPLES / 'calibrate_plan.py'}:problem"
    arguments = ["calibrate", source, "--calls", "7", "--out", str(tmp_path), "--seeds", "4", "--test", "100:102"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    known = problem()
    plan = Plan.load(tmp_path / "plan-7.json")
    assert len(plan.computed) == 7

    def drift(**options):
        reference = known["run"](200, Forecaster(times=known["times"], interval=1))
        moved = known["run"](200, Forecaster(times=known["times"], **options))
        return float((moved - reference).norm() / reference.norm())

    planned = drift(plan=plan, made_for=known["made_for"])
    assert planned < drift(basis="linear", calls=7) and planned < drift(basis="reuse", calls=7)
    with pytest.raises(ValueError, match="made for something else"):
        drift(plan=plan, made_for={"model": "another"})
