"""Forecast rules are pure functions of times and a Gram matrix; no test here makes a forecaster."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from core_helpers import NAMES, RULES, gram, windows
from forecache.rules import (
    DMD,
    GUARD,
    Auto,
    Chebyshev,
    Exponential,
    Hermite,
    Linear,
    Reuse,
    Rule,
    Taylor,
    Unfit,
    auto,
    dmd,
    make_rule,
)
from forecache.rules.auto import coherent_error
from forecache.rules.dmd import GROWTH, UNEVEN_RECENCY, difference_dmd, exponential_weights
from forecache.rules.guard import guarded
from forecache.rules.hermite import physicists_hermite, scaled_hermite
from forecache.rules.taylor import backward_differences
from scenarios import exponentials

ANY_CLOCK = tuple(rule for rule in RULES if not isinstance(rule, Hermite))  # the others read unit steps
# most random windows have no exponential fit
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def weights(rule: Rule, times: np.ndarray, target: float, g: np.ndarray) -> np.ndarray:
    n = min(rule.window, len(times))
    try:
        return rule.weights(times[-n:], target, g[-n:, -n:])
    except Unfit:
        reject()  # random snapshots may have no fit


# --- every rule -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", RULES, ids=repr)
@quick
@given(window=windows(least=4))
def test_weights_sum_to_one(rule: Rule, window: tuple) -> None:
    w = weights(rule, *window)
    assert abs(w.sum() - 1) <= 1e-9 * np.abs(w).sum()


def test_sum_control() -> None:
    """The published Chebyshev ridge penalises its constant: its weights fall short of 1."""
    tau = np.linspace(-1, -0.5, 5)
    b = np.polynomial.chebyshev.chebvander(np.append(tau, -0.4), 4)
    w = b[:-1] @ np.linalg.solve(b[:-1].T @ b[:-1] + 0.1 * np.eye(5), b[-1])
    assert w.sum() < 0.99


@pytest.mark.parametrize("rule", ANY_CLOCK, ids=repr)
@quick
@given(window=windows(least=4), scale=st.floats(0.05, 20), shift=st.floats(-5, 5), reverse=st.booleans())
def test_affine_maps_of_the_clock_change_nothing(
    rule: Rule, window: tuple, scale: float, shift: float, reverse: bool
) -> None:
    times, target, g = window
    a = -scale if reverse else scale
    before = weights(rule, times, target, g)
    after = weights(rule, a * times + shift, a * target + shift, g)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).sum()


@pytest.mark.parametrize("steps", range(7, 60))
def test_a_gap_ratio_on_the_limit_is_not_decided_by_round_off(steps: int) -> None:
    """Gaps of 1 and 3 steps on grids whose differences round either way."""
    anchors, v = np.array([0.0, 3, 4, 7, 8]), np.random.default_rng(0).normal(size=(5, 8)).cumsum(0)
    expected = DMD().weights(anchors, 10.0, gram(v))
    for grid in (anchors / steps, 1 - anchors / steps, anchors * (1000 / steps)):
        target = grid[0] + 10 * (grid[1] - grid[0]) / 3
        assert DMD().weights(grid, target, gram(v)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_affine_control() -> None:
    """A rule published on the step index is not invariant, which is why it is given the index."""
    times, g = np.array([0.0, 1.0, 2.0]), np.eye(3)
    assert not np.allclose(Hermite(2).weights(times, 3.0, g), Hermite(2).weights(times / 20, 3.0 / 20, g), atol=1e-2)


@pytest.mark.parametrize("even", [True, False])
@quick
@given(seed=st.integers(0, 999), c=st.floats(0.1, 10))
def test_dmd_depends_on_the_gram_matrix_alone(even: bool, seed: int, c: float) -> None:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    times = np.arange(6.0) if even else np.array([0, 0.7, 1.5, 2.9, 3.6, 5.0])
    v = np.exp(-np.linspace(0.02, 2, 9) * times[:, None]) + 0.02 * rng.normal(size=(6, 9))
    w, moved = (DMD().weights(times, times[-1] + 0.7, gram(x)) for x in (v, c * v @ q.T))
    assert np.abs(w - moved).max() < 1e-6


@pytest.mark.parametrize("times", [np.arange(6.0), np.array([0, 0.7, 1.5, 2.9, 3.6, 5.0])], ids=["even", "uneven"])
def test_gram_control(times: np.ndarray) -> None:
    """A map that is not orthogonal, here one that mutes the slow features, changes the weights."""
    v = np.exp(-np.linspace(0.02, 2, 9) * times[:, None])
    w, bent = (DMD().weights(times, times[-1] + 0.7, gram(v * a)) for a in (1, np.linspace(0, 1, 9) ** 3))
    assert np.abs(w - bent).max() > 1e-3


# --- polynomial rules -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", range(5))
@quick
@given(window=windows(least=5), coefficients=st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_lagrange_reproduces_polynomials_of_its_degree(order: int, window: tuple, coefficients: list[float]) -> None:
    times, target, g = window
    poly = np.polynomial.Polynomial(coefficients[: order + 1])
    w = Linear(order).weights(times, target, g)
    assert abs(w @ poly(times) - poly(target)) <= 1e-8 * (1 + np.abs(w) @ np.abs(poly(times)))


def test_lagrange_degree_is_not_exceeded() -> None:
    times = np.array([0.0, 1.0, 2.5])
    assert abs(Linear(1).weights(times, 4.0, np.eye(3)) @ times**2 - 16) > 1


def test_taylorseer_documented_values() -> None:
    t = np.arange(6.0)
    assert Taylor(2).weights(t[-3:], 6.0, np.eye(3)) == pytest.approx([0.5, -2, 2.5])
    assert Taylor(2).weights(t[-3:], 6.0, np.eye(3)) @ t[-3:] ** 2 == pytest.approx(35)
    assert Linear(2).weights(t[-3:], 6.0, np.eye(3)) @ t[-3:] ** 2 == pytest.approx(36)
    anchors = np.array([0.0, 1, 2, 3, 6, 9])
    assert Taylor(2).weights(anchors, 11.0, np.eye(6)) @ anchors**2 == pytest.approx(115)
    assert Linear(2).weights(anchors, 11.0, np.eye(6)) @ anchors**2 == pytest.approx(121)


@quick
@given(window=windows(least=2))
def test_taylor_of_order_one_is_the_line(window: tuple) -> None:
    times, target, g = window
    line = Linear(1).weights(times, target, g)
    assert Taylor(1).weights(times, target, g) == pytest.approx(line, abs=1e-9 * np.abs(line).max())


def test_hermite_damping_and_sign() -> None:
    anchors = np.array([0.0, 4.0])
    for k in (1.0, 2.0, 3.0):
        half = Hermite(1, sigma=0.5).weights(anchors, 4 + k, np.eye(2))
        assert half @ anchors == pytest.approx(4 + 0.5 * k)
        line = Hermite(1, sigma=math.sqrt(0.5)).weights(anchors, 4 + k, np.eye(2))
        assert line @ anchors == pytest.approx(4 + k)
        wrong = Hermite(1, sigma=0.5).weights(anchors, 4 - k, np.eye(2))  # control: evaluated at -k
        assert abs(wrong @ anchors - (4 + k)) > k  # worse than reuse, whose error is k


def test_hermite_polynomials() -> None:
    x = np.linspace(-2, 2, 7)
    for n in range(6):
        assert physicists_hermite(n, 0.3) == pytest.approx(np.polynomial.hermite.Hermite.basis(n)(0.3))
        assert [scaled_hermite(n, t, 0.5) for t in x] == pytest.approx(
            0.5**n * np.polynomial.hermite.Hermite.basis(n)(x / 2)
        )
    with pytest.raises(ValueError, match="order"):
        physicists_hermite(-1, 1.0)


def test_backward_differences_divide_by_the_newest_gap() -> None:
    first, second = backward_differences(np.array([0.0, 1.0, 3.0]), 2)[1:]
    assert first == pytest.approx([0, -0.5, 0.5])
    assert second == pytest.approx([0.5, -0.75, 0.25])  # ((v3 - v2)/2 - (v2 - v1)/1) / 2


@quick
@given(window=windows(least=2))
def test_chebyshev_pulls_a_line_towards_reuse(window: tuple) -> None:
    times, target, g = window
    rule = Chebyshev(ridge=1e-9, degree=1, span=(0.0, float(target)))
    assert rule.weights(times, target, g) @ times == pytest.approx(target, rel=1e-4)
    damped = Chebyshev(ridge=1e3, degree=1, span=(0.0, float(target))).weights(times, target, g) @ times
    assert times[-1] - 1e-9 <= damped < target


# --- DMD --------------------------------------------------------------------------------------------------------------
POLES = ([0.95 * np.exp(0.2j)], [0.95 * np.exp(0.2j), 0.8 * np.exp(0.9j)], [0.9 * np.exp(0.3j), 0.7 * np.exp(1.2j)],
         [0.9 + 0j, 0.5 + 0j])  # fmt: skip


@pytest.mark.parametrize("poles", POLES, ids=str)
@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 6, 7, 8, 0.25, 1 / 3, 1.5, 6.75])
def test_dmd_is_exact_on_exponentials(poles: list[complex], horizon: float) -> None:
    v = exponentials(64, poles, 6, seed=1).numpy()
    rng = np.random.default_rng(1)
    amplitudes = rng.normal(size=(64, len(poles))) + 1j * rng.normal(size=(64, len(poles)))
    truth = (amplitudes @ np.array(poles) ** (5 + horizon)).real
    w = DMD().weights(np.arange(6.0), 5 + horizon, gram(v))
    error = np.linalg.norm(w @ v - truth) / np.linalg.norm(truth)
    assert error < 1e-9
    poly = Linear(2).weights(np.arange(6.0), 5 + horizon, gram(v))  # control: a parabola is not
    assert np.linalg.norm(poly @ v - truth) / np.linalg.norm(truth) > 1e-5


@pytest.mark.parametrize("horizon", [0.5, 1, 2.25, 6])
def test_dmd_is_exact_on_a_line_and_on_constant_plus_exponentials(horizon: float) -> None:
    rng = np.random.default_rng(0)
    (a, b, c, d), t = rng.normal(size=(4, 64)), np.arange(7.0)

    def path(s: np.ndarray | float) -> np.ndarray:
        s = np.asarray(s)[..., None]
        return a + 0.8**s * b + 0.9**s * (np.cos(0.7 * s) * c + np.sin(0.7 * s) * d)

    def line(s: np.ndarray | float) -> np.ndarray:
        return a + np.asarray(s)[..., None] * b

    for curve, bound in ((line, 1e-9), (path, 1e-8)):
        w = DMD().weights(t, 6 + horizon, gram(curve(t)))
        assert np.linalg.norm(w @ curve(t) - curve(6 + horizon)) <= bound * np.linalg.norm(curve(6 + horizon))
        wrong = w[::-1]  # control: snapshots in the wrong order
        assert np.linalg.norm(wrong @ curve(t) - curve(6 + horizon)) > 0.01 * np.linalg.norm(curve(6 + horizon))


@pytest.mark.parametrize("reverse", [False, True])
def test_variable_projection_is_exact_on_its_grid_at_irregular_times(reverse: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 40))
    t = np.array([0.0, 1.0, 1.7, 3.1, 4.0, 6.0])
    s = -1 if reverse else 1
    for rate in dmd.grid(dmd.RATES, 1)[:, 0] / ((t[-1] - t[0]) / 5):
        v = a + np.exp(rate * t)[:, None] * b
        truth = a + np.exp(rate * 7.3) * b
        w = exponential_weights(s * t, s * 7.3, gram(v), 0.6, ridge=0.0)
        assert np.linalg.norm(w @ v - truth) < 1e-7 * np.linalg.norm(truth)
        served = DMD().weights(s * t, s * 7.3, gram(v))
        assert np.linalg.norm(served @ v - truth) < 1e-3 * np.linalg.norm(truth)
        if abs(rate) > 0.3:  # control: a line is not exact
            assert np.linalg.norm(Linear(1).weights(t, 7.3, gram(v)) @ v - truth) > 1e-2 * np.linalg.norm(truth)


@quick
@given(window=windows(least=5), scale=st.floats(0.05, 20))
def test_dmd_is_exact_on_a_line_at_irregular_times(window: tuple, scale: float) -> None:
    times, target, _ = window
    a, b = np.random.default_rng(0).normal(size=(2, 24))
    v, truth = a + scale * times[:, None] * b, a + scale * target * b
    w = exponential_weights(times, target, gram(v), UNEVEN_RECENCY)
    assert np.linalg.norm(w @ v - truth) < 1e-6 * np.linalg.norm(truth) * np.abs(w).sum()
    exponents, _ = dmd.uneven_fit(gram(v), tuple((times[:-1] - times[-1]).tolist()), UNEVEN_RECENCY, 1e-6)
    assert exponents.tolist() == [0.0]  # control: no other exponent is a line


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("kind", ["zero", "constant", "repeated", "one jump", "tiny", "huge"])
def test_degenerate_windows_are_served_by_finite_weights(even: bool, kind: str) -> None:
    rng = np.random.default_rng(0)
    v = {
        "zero": np.zeros((6, 8)),
        "constant": np.ones((6, 8)) * rng.normal(size=8),
        "repeated": np.repeat(rng.normal(size=(3, 8)), 2, axis=0),
        "one jump": np.array([[0.0] * 8] * 5 + [[1.0] * 8]),
        "tiny": 1e-150 * rng.normal(size=(6, 8)),
        "huge": 1e60 * rng.normal(size=(6, 8)),
    }[kind]
    times = np.arange(6.0) if even else np.array([0, 1, 1.5, 3, 4, 6.0])
    for target in (times[-1] + 1, times[-1] + 0.4):
        served = guarded(DMD(), times, target, gram(v))
        assert np.isfinite(served.weights).all() and abs(served.weights.sum() - 1) < 1e-9
        assert np.abs(served.weights).sum() <= GUARD + 1e-9
        assert np.linalg.norm(served.weights @ v) <= GUARD * np.linalg.norm(v, axis=1).max() + 1e-300


def test_weights_that_round_off_keeps_from_summing_to_one_are_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    v = np.random.default_rng(0).normal(size=(6, 30))
    for scale in (1e-155, 1.0, 1e70):  # an inverse of the smallest Gram matrix overflows
        w = DMD().weights(np.arange(6.0), 7.0, gram(scale * v))
        assert abs(w.sum() - 1) <= 1e-9 * np.abs(w).sum()
    monkeypatch.setattr(dmd, "missing", lambda gram: np.zeros(len(gram)))  # what came of it before
    with pytest.raises(Unfit, match="the weights sum to"):
        DMD().weights(np.arange(6.0), 7.0, gram(v))


def test_windows_without_a_fit_say_so() -> None:
    with pytest.raises(Unfit, match="do not differ"):
        DMD().weights(np.arange(5.0), 5.0, np.zeros((5, 5)))
    with pytest.raises(Unfit, match="3 of 4"):
        DMD().weights(np.arange(3.0), 3.0, np.eye(3))
    assert guarded(DMD(), np.arange(5.0), 5.0, np.full((5, 5), np.nan)).fallbacks
    with pytest.raises(Unfit, match="defines no weights"):
        Rule().weights(np.arange(2.0), 2.0, np.eye(2))
    served = guarded(DMD(), np.arange(5.0), 5.0, np.zeros((5, 5)))
    assert served.rule.startswith("linear") and "do not differ" in served.fallbacks[0]


def test_growth_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    v = 1.6 ** np.arange(6.0)[:, None] * np.ones(4)
    near, far = (difference_dmd(gram(v), h, 1e-6, 0.6) @ v - v[-1] for h in (1, 6))
    assert far == pytest.approx(near * (GROWTH**6 - 1) / (GROWTH - 1))  # grows by 1.25 a gap, not by 1.6
    monkeypatch.setattr(dmd, "GROWTH", 2.0)  # control: unclipped it is the exact exponential, three times as far
    assert difference_dmd(gram(2 * v), 6, 1e-6, 0.6) @ v == pytest.approx(v[-1] * 1.6**6)
    assert (v[-1] * 1.6**6 > 2.5 * (v[-1] + far)).all()
    monkeypatch.undo()
    gentle = 1.2 ** np.arange(6.0)[:, None] * np.ones(4)
    assert difference_dmd(gram(gentle), 6, 1e-6, 0.6) @ gentle == pytest.approx(gentle[-1] * 1.2**6)


def test_aliasing_poles_are_removed_at_fractional_horizons() -> None:
    v = (-0.9) ** np.arange(6.0)[:, None] * np.ones(4)
    assert DMD().weights(np.arange(6.0), 6.0, gram(v)) @ v == pytest.approx(v[-1] * -0.9)  # whole gaps are exact
    with pytest.raises(Unfit, match="aliases"):
        DMD().weights(np.arange(6.0), 5.5, gram(v))
    rng = np.random.default_rng(0)
    mixed = v @ rng.normal(size=(4, 10)) + 0.95 ** np.arange(6.0)[:, None] * rng.normal(size=10)
    w = DMD().weights(np.arange(6.0), 5.5, gram(mixed))
    assert np.isfinite(w).all() and np.abs(w).sum() < 10


# --- the guard --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", RULES, ids=repr)
@quick
@given(window=windows(), guard=st.floats(1.0, 6.0))
def test_what_is_served_meets_the_guard(rule: Rule, window: tuple, guard: float) -> None:
    served = guarded(rule, *window, guard)
    assert np.isfinite(served.weights).all()
    assert np.abs(served.weights).sum() <= guard + 1e-9
    assert abs(served.weights.sum() - 1) < 1e-9
    assert served.rule == rule.chosen(window[0], window[2]).name or served.fallbacks  # never silent


def test_guard_lowers_the_order_then_blends() -> None:
    times, g = np.array([0.0, 1.0, 2.0]), np.eye(3)
    one, two, far = (guarded(Linear(2), times, t, g) for t in (2.3, 3.2, 9.0))
    assert (one.rule, one.fallbacks) == ("linear2", ())
    assert two.rule == "linear1" and two.fallbacks[0].startswith("linear2: |w|_1 =")
    assert far.rule == "linear1" and "blended toward reuse" in far.fallbacks[-1]
    assert np.abs(far.weights).sum() == pytest.approx(GUARD)
    assert far.weights == pytest.approx([0, -1.5, 2.5])  # the largest step that the cap allows
    assert np.abs(guarded(Linear(2), times, 9.0, g, math.inf).weights).sum() > GUARD  # control: unguarded


@pytest.mark.parametrize(("noise", "rule"), [(0.0, "dmd"), (0.03, "linear1")])
def test_a_window_without_noise_is_served_beyond_the_guard(noise: float, rule: str) -> None:
    """Constant + two exponentials at horizon 8; with noise the same weights are refused, and so is a guard given."""
    rng, t = np.random.default_rng(0), np.arange(15.0)
    v = np.ones(64) + 0.9 ** t[:, None] * rng.normal(size=64) + 0.6 ** t[:, None] * rng.normal(size=64)
    seen = v[:7] + noise * rng.normal(size=(7, 64))
    served = guarded(DMD(), t[:7], 14.0, gram(seen))
    assert served.rule == rule and (served.size > GUARD) is (not noise)
    if not noise:
        assert np.linalg.norm(served.weights @ seen - v[14]) < 1e-5 * np.linalg.norm(v[14])
    assert guarded(DMD(), t[:7], 14.0, gram(seen), GUARD).rule != "dmd"


def test_each_rule_of_the_chain_reads_its_own_clock() -> None:
    """The step index, unless the rule says that it reads the sampler's time; each rule of a chain for itself."""
    times, steps = np.array([0.0, 0.1, 0.4, 0.8]), np.array([0.0, 1, 2, 4])
    chain = guarded(Taylor(1), times, 0.9, np.eye(4), GUARD, (steps, 9.0))  # index horizon 2.5 gaps: guarded, lowered
    assert chain.rule == "linear1" and chain.weights == pytest.approx([0, 0, -1.5, 2.5])
    assert all(rule.clock == "index" for rule in RULES)

    class OnTime(Linear):
        clock = "time"

    timed = guarded(OnTime(1), times, 0.9, np.eye(4), GUARD, (steps, 9.0))
    assert timed.weights == pytest.approx([0, 0, -0.25, 1.25]) and not timed.fallbacks
    lowered = guarded(OnTime(2), times, 2.5, np.eye(4), GUARD, (steps, 5.0))  # too far on time: a line on the index
    assert lowered.rule == "linear1" and lowered.weights == pytest.approx([0, 0, -0.5, 1.5])

    class Never(Rule):
        name = "never"
        clock = "time"

        def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
            raise Unfit("never")

        def lower(self) -> Rule:
            return Hermite(1)

    served = guarded(Never(), times, 0.9, np.eye(4), GUARD, (steps, 5.0))
    assert served.rule == "hermite1" and served.weights == pytest.approx([0, 0, -0.25, 1.25])
    wrong = guarded(Never(), times, 0.9, np.eye(4), GUARD)  # control: given true time, the slope is another
    assert np.abs(wrong.weights - served.weights).max() > 0.1


# --- the calibration-free default -------------------------------------------------------------------------------------
STEPS = np.arange(6.0)
HALF, LINE, PARABOLA = Auto().candidates


def bent(bend: float, zigzag: float) -> np.ndarray:
    """Snapshots ``[6, 3]`` at steps 0..5: a parabola, and scatter that changes its sign at every step."""
    return np.stack([np.array([1 + k, bend * k * k, zigzag * (-1) ** k]) for k in STEPS])


def test_auto_follows_the_bend_where_it_shows_and_not_the_scatter() -> None:
    default = Auto()
    assert default.chosen(STEPS, gram(bent(1.0, 0.0))) is PARABOLA
    assert default.chosen(STEPS, gram(bent(0.0, 1.0))) is LINE
    assert default.chosen(STEPS[:2], gram(bent(0.0, 0.0)[:2])) is HALF  # no error of any yet
    assert default.chosen(STEPS[:3], gram(bent(0.0, 0.0)[:3])) is LINE
    assert default.chosen(STEPS[:3], gram(bent(1.0, 0.0)[:3])) is LINE  # no error of the parabola yet
    assert default.chosen(STEPS[:3], gram(bent(0.0, 100.0)[:3])) is HALF  # what swings is missed by less
    assert default.chosen(STEPS, gram(np.ones((6, 3)))) is HALF  # all are equal
    assert Auto((PARABOLA, LINE)).chosen(STEPS, gram(np.ones((6, 3)))) is PARABOLA  # control
    with pytest.raises(ValueError, match="candidates must hold at least one rule"):
        Auto(())


def test_auto_keeps_to_half_the_slope_where_the_second_differences_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest bend is opposite to the one before: the line did a little better so far and is not believed."""
    v = bent(0.3, 0.0)
    v[-1, 1] -= 4.0
    times, g = tuple(STEPS.tolist()), gram(v)
    assert auto.alternates(times, g) and not auto.alternates(times, gram(bent(0.3, 0.0)))
    assert not auto.alternates(times[:3], g[:3, :3])
    assert Auto().chosen(STEPS, g) is HALF
    assert Auto().chosen(STEPS, gram(bent(1.0, 0.0))) is PARABOLA  # the bends agree
    straight = np.outer(STEPS, np.ones(3)) + 1e-12 * bent(0.0, 1.0)  # whose bends are round-off
    assert Auto().chosen(STEPS, gram(straight)) is not HALF
    monkeypatch.setattr(auto, "DOUBT", 1.0)
    assert Auto().chosen(STEPS + 1.0, g) is LINE  # control, of times that nothing is remembered of


def test_errors_are_added_up_with_their_signs() -> None:
    """A line misses a bend on one side, step after step; scatter comes from both sides and leaves little of itself."""
    v = bent(2.0, 1.0)
    g, times = gram(v), tuple(STEPS.tolist())
    line, parabola = (
        [v[k] - guarded(rule, STEPS[:k], STEPS[k], g[:k, :k]).weights @ v[:k] for k in range(rule.floor, 6)]
        for rule in (LINE, PARABOLA)
    )
    assert len(line) == 4 and len(parabola) == 3
    for rule, errors in ((LINE, line), (PARABOLA, parabola)):
        wanted = np.linalg.norm(np.sum(errors, 0)) / len(errors)
        assert coherent_error(rule, times, g) == pytest.approx(wanted, rel=1e-9)
    assert Auto((LINE, PARABOLA)).chosen(STEPS, g) is PARABOLA
    assert np.square(line).sum(1).mean() < np.square(parabola).sum(1).mean()  # control: without signs it is the line


def test_auto_is_exact_on_a_parabola_once_there_is_evidence() -> None:
    v = bent(0.3, 0.0)
    truth = np.array([7.0, 0.3 * 36, 0.0])
    served = guarded(Auto(), STEPS, 6.0, gram(v))
    assert served.rule == "linear2" and np.abs(served.weights @ v - truth).max() < 1e-9
    line = guarded(Auto((LINE,)), STEPS, 6.0, gram(v))  # control
    assert np.abs(line.weights @ v - truth).max() > 0.5


def test_auto_is_kept_on_its_rules_guards() -> None:
    far = guarded(Auto(), STEPS, 9.5, gram(bent(0.0, 1.0)))
    assert np.abs(far.weights).sum() == pytest.approx(8) and far.fallbacks
    strict = guarded(Auto(), STEPS, 9.5, gram(bent(1.0, 0.0)), 1.5)
    assert np.abs(strict.weights).sum() <= 1.5 + 1e-9 and len(strict.fallbacks) == 2  # the parabola and the line


def test_weights_that_do_not_see_the_run_are_made_once_for_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Rule] = []
    made = auto.guarded
    monkeypatch.setattr(auto, "guarded", lambda rule, *rest: asked.append(rule) or made(rule, *rest))
    times = STEPS + 1e6  # a window that no other test has asked for
    for seed in range(5):
        Auto().chosen(times, gram(np.random.default_rng(seed).normal(size=(6, 9))))
    assert len(asked) == 4 + 4 + 3
    asked.clear()
    for seed in range(5):  # control: a rule that reads the Gram matrix
        Auto((Exponential(),)).chosen(times, gram(np.random.default_rng(seed).normal(size=(6, 9))))
    assert len(asked) == 5 * 3


# --- names ------------------------------------------------------------------------------------------------------------
def test_names_and_arguments() -> None:
    for name in NAMES:
        assert isinstance(make_rule(name, (0.0, 1.0)), Rule)
        assert isinstance(make_rule(name, None), Rule)
    assert isinstance(make_rule("auto", (0, 1)), Auto)
    assert make_rule("linear", (0, 1), order=3) == Linear(3)
    assert make_rule("hermite", (0, 1), order=1, sigma=0.7) == Hermite(1, 0.7)
    rule = Reuse()
    assert make_rule(rule, (0, 1)) is rule
    with pytest.raises(ValueError, match="reuse, linear"):
        make_rule("newton", (0, 1))
    with pytest.raises(TypeError, match="weights"):
        make_rule(3, (0, 1))
    for bad in (lambda: Linear(8), lambda: Taylor(0), lambda: Hermite(1, 1.0), lambda: DMD(recency=0),
                lambda: Chebyshev(degree=0), lambda: Chebyshev(ridge=0)):  # fmt: skip
        with pytest.raises(ValueError):
            bad()
