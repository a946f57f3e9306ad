"""Rules, guard, schedules: whatever numbers come, weights are finite, sum to 1 and meet the guard."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core_helpers import RULES
from forecache import schedule
from forecache.rules import Rule, Unfit, dmd, guard
from forecache.rules.guard import blend, guarded, norm
from fuzz.cases import CASES

ODD = (0.0, 1.0, -1.0, 5e-324, 1e-154, 1e154, 1e300, math.inf, -math.inf, math.nan)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of overflow: what comes out is checked


def test_what_is_served_is_finite_and_meets_the_guard() -> None:
    for seed in range(CASES["rules"]):
        rng, rule = np.random.default_rng(seed), RULES[seed % len(RULES)]
        n = int(rng.integers(1, 9))
        v = rng.choice(ODD, size=(n, 3)) if seed % 3 == 0 else rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-160, 160)
        times = np.cumsum(rng.uniform(0.1, 3, n)) * rng.choice([-1, 1]) * 10.0 ** rng.integers(-30, 30)
        target = float(times[-1] + (times[-1] - times[0] if n > 1 else times[-1]) * rng.uniform(0.1, 5))
        limit = float(rng.uniform(1, 9))
        steps = np.arange(n, dtype=float), float(n + rng.integers(0, 6))
        w = guarded(rule, times, target, v @ v.T, limit, steps).weights
        assert np.isfinite(w).all() and norm(w) <= limit * (1 + 1e-4), (seed, rule)
        assert abs(w.sum() - 1) < 1e-6, (seed, rule)


class Broken(Rule):
    name = "broken"

    def __init__(self, given: object) -> None:
        self.given = given

    def weights(self, times, target, gram):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.mark.parametrize(
    "failure", [OverflowError("x"), ZeroDivisionError("x"), np.linalg.LinAlgError("x"), Unfit("x")]
)
def test_arithmetic_that_fails_is_a_named_fall_back(failure: Exception) -> None:
    served = guarded(Broken(failure), np.array([0.0, 1.0]), 2.0, np.eye(2))  # guard: the except clause of guarded()
    assert served.rule == "reuse" and served.fallbacks == ("broken: x",)
    with pytest.raises(KeyError):  # control: a mistake in a rule is not hidden
        guarded(Broken(KeyError("x")), np.array([0.0, 1.0]), 2.0, np.eye(2))


@pytest.mark.parametrize("given", [0.5, [1.0], [0.0, 0.0, 1.0], [[0.0, 1.0]], [1j, 1], None, ["a", "b"]])
def test_weights_of_another_shape_are_refused(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    window = np.array([0.0, 1.0]), 2.0, np.eye(2)
    with pytest.raises(ValueError, match=r"basis 'broken': weights\(\) must return 2 real numbers"):
        guarded(Broken(given), *window)
    if given == 0.5:  # control: without the guard one number is spread over the snapshots
        monkeypatch.setattr(guard, "vector", lambda rule, n, given: given)
        assert guarded(Broken(given), *window).weights.tolist() == [0.5, 0.5]


def test_an_uneven_window_that_overflows_has_no_fit() -> None:
    gram = np.full((6, 6), np.inf)
    with pytest.raises(Unfit, match="not finite"):  # guard: the first lines of uneven_fit(); UnboundLocalError without
        dmd.uneven_fit(gram, (-5.0, -3.5, -2.5, -1.5, -1.0), 0.5, 1e-6)


def test_a_blend_meets_the_guard_and_is_the_largest() -> None:
    for seed in range(CASES["blend"]):
        rng = np.random.default_rng(seed)
        w = rng.normal(size=rng.integers(1, 9)) * 10.0 ** rng.integers(-3, 6)
        reuse, limit = np.eye(len(w))[-1], float(rng.uniform(1, 10))
        given = w + reuse * (1 - w.sum())
        s = blend(given, reuse, limit)
        assert 0 <= s <= 1
        assert norm(reuse + s * (given - reuse)) <= limit * (1 + 1e-6), seed
        assert s == 1 or norm(reuse + min(1, s * 1.01) * (given - reuse)) >= limit * (1 - 1e-6), seed


def test_a_schedule_keeps_its_budget_or_says_what_is_wrong() -> None:
    for seed in range(CASES["schedules"]):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(0, 60))
        effective = tuple(range(3, 3 + 2 * n, 2))
        interval, warmup, end, calls = (None if rng.random() < 0.5 else int(rng.integers(-2, 70)) for _ in range(4))
        try:
            computed = schedule.choose(effective, bool(seed % 2), interval, warmup, end, calls)
        except ValueError as error:
            assert any(name in str(error) for name in ("interval", "calls", "warmup"))
            continue
        assert list(computed) == sorted(set(computed)) and set(computed) <= set(effective), seed
        if n:
            assert computed[0] == effective[0] and (calls is None or len(computed) == calls), seed
            assert computed[-1] == effective[-1] or len(computed) == 1, seed


def test_edges_are_computed_within_the_budget() -> None:
    for seed in range(CASES["edges"]):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        calls, edges = (
            int(rng.integers(1, n + 1)),
            sorted({int(e) for e in rng.integers(-1, n + 1, rng.integers(0, 5))}),
        )
        try:
            steps = schedule.with_edges(schedule.even(range(n), calls), range(n), edges, exact=True)
        except ValueError as error:
            assert "edges must be" in str(error) or "calls must be" in str(error)
            continue
        assert len(steps) == calls and set(edges) <= set(steps), seed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_schedules_of_no_number_are_refused(bad: float) -> None:
    for call in (
        lambda: schedule.cosine(range(20), 5, power=bad),
        lambda: schedule.ramp(range(20), start=bad),
        lambda: schedule.ramp(range(20), growth=bad),
    ):
        with pytest.raises(ValueError, match="needs"):  # without: "cannot convert float NaN to integer"
            call()
