"""The rule for unevenly spaced anchors: what it is exact on, what it does not depend on, what it does elsewhere.

What holds of every rule (weights sum to 1, time may be shifted, scaled and reversed, the guard is met) is in
``test_rules.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_helpers import gram, windows
from forecache.rules import GUARD, Auto, Exponential, Linear, Reuse, Rule, Unfit
from forecache.rules.exponential import RATES
from forecache.rules.guard import guarded
from forecache.rules.projection import grid
from forecache.streams import Stream

UNEVEN = np.array([0.0, 1, 2, 3, 7, 8])
quick = settings(max_examples=40, deadline=None)


def miss(rule: Rule, times: np.ndarray, target: float, v: np.ndarray, truth: np.ndarray) -> float:
    """Error of the served forecast, relative to what has moved since the newest snapshot."""
    w = guarded(rule, times, target, gram(v)).weights
    return float(np.linalg.norm(w @ v - truth) / np.linalg.norm(truth - v[-1]))


@quick
@given(window=windows(least=3, most=6), reach=st.floats(0.05, 1.4), scale=st.floats(0.01, 100))
def test_a_line_is_exact_at_any_spacing(window: tuple, reach: float, scale: float) -> None:
    """As far ahead as the guard allows a line, 1.5 newest gaps."""
    times = window[0]
    target = times[-1] + reach * (times[-1] - times[-2])
    a, b = np.random.default_rng(0).normal(size=(2, 24))
    v, truth = a + scale * times[:, None] * b, a + scale * target * b
    served = guarded(Exponential(), times, target, gram(v))
    assert served.rule == "exponential" and not served.fallbacks
    assert np.linalg.norm(served.weights @ v - truth) < 1e-6 * np.linalg.norm(truth)
    assert miss(Linear(1, damping=0.7), times, target, v, truth) > 0.2  # control: shrunk towards reuse


def test_it_reaches_further_than_the_newest_gap_would_allow() -> None:
    """After a short gap a line through the newest two snapshots is cut down by the guard; this one leans on all."""
    a, b = np.random.default_rng(0).normal(size=(2, 24))
    v = a + UNEVEN[:, None] * b
    for target in (10.0, 11.0):
        assert miss(Exponential(), UNEVEN, target, v, a + target * b) < 1e-6
    assert miss(Linear(1), UNEVEN, 11.0, v, a + 11 * b) > 0.3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1, 0.02])
def test_exponentials_of_its_grid_are_exact_at_uneven_times(sign: int, scale: float) -> None:
    """A constant with one decaying exponential, with a line and one, with two."""
    rng = np.random.default_rng(3)
    gap = 8 / 5
    for exponents in [*grid(RATES, 1), *grid(RATES, 2)]:
        c = rng.normal(size=(3, 40))

        def path(t: np.ndarray | float, r: np.ndarray = exponents, c: np.ndarray = c) -> np.ndarray:
            t = np.asarray(t)[..., None]
            return c[0] + sum(c[k + 1] * (t if x == 0 else np.exp(x / gap * t)) for k, x in enumerate(r))

        target, v = 8.7, path(UNEVEN)
        times, goal = sign * scale * UNEVEN, sign * scale * target
        w = Exponential(recencies=(1.0,)).weights(times, goal, gram(v))
        assert np.abs(w).sum() > GUARD or np.linalg.norm(w @ v - path(target)) < 1e-4 * np.linalg.norm(v[-1] - v[-2])
    steep = np.exp(-0.6 / gap * UNEVEN)[:, None] * c[1]
    assert miss(Linear(1), UNEVEN, 8.7, steep, np.exp(-0.6 / gap * 8.7) * c[1]) > 0.1  # control


@quick
@given(slow=st.floats(0.01, 0.1), fast=st.floats(0.15, 0.3), seed=st.integers(0, 99))
def test_other_decays_are_close(slow: float, fast: float, seed: int) -> None:
    a, b, c = np.random.default_rng(seed).normal(size=(3, 40))

    def path(t: np.ndarray | float) -> np.ndarray:
        t = np.asarray(t)[..., None]
        return a + np.exp(-slow * t) * b + np.exp(-fast * t) * c

    ours, reuse = (miss(rule, UNEVEN, 9.5, path(UNEVEN), path(9.5)) for rule in (Exponential(), Reuse()))
    assert ours < 0.5 and reuse == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [1e-60, 1e-3, 1e60])
def test_it_depends_on_the_gram_matrix_up_to_a_factor(factor: float) -> None:
    rng = np.random.default_rng(1)
    v = np.exp(-np.linspace(0.02, 0.6, 9) * UNEVEN[:, None]) + 0.02 * rng.normal(size=(6, 9))
    w = Exponential().weights(UNEVEN, 9.0, gram(v))
    assert Exponential().weights(UNEVEN, 9.0, factor * gram(v)) == pytest.approx(w, rel=1e-9)
    bent = Exponential().weights(UNEVEN, 9.0, gram(v * np.linspace(0, 1, 9) ** 3))  # control: another geometry
    assert np.abs(bent - w).max() > 1e-3


def test_items_of_a_batch_are_independent() -> None:
    def run(*seeds: int) -> torch.Tensor:
        stream = Stream(Exponential(), 6, 0, None)
        for t in UNEVEN:
            value = torch.stack([
                sum(p**t * torch.randn(30, generator=torch.Generator().manual_seed(10 * seed + k)) for k, p in
                    enumerate((1.0, 0.95 - 0.1 * seed, 0.7))) for seed in seeds
            ])  # fmt: skip
            stream.push(int(t), float(t), value, stream.snapshots.products(value))
        return stream.forecast(10, 10.0)[0]

    both, alone = run(0, 3), torch.cat([run(0), run(3)])
    assert torch.allclose(both, alone, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(run(3, 0)[0], alone[0], rtol=1e-3)  # control


def test_the_sharpest_weighting_that_meets_the_guard_serves() -> None:
    rng = np.random.default_rng(0)
    v = rng.normal(size=(6, 30)).cumsum(0)
    for target in (8.5, 10.0, 12.0, 20.0, 200.0):
        served = guarded(Exponential(), UNEVEN, target, gram(v))
        assert np.abs(served.weights).sum() <= GUARD + 1e-9
        each = [np.abs(Exponential(recencies=(r,)).weights(UNEVEN, target, gram(v))).sum() for r in (0.15, 0.4, 0.7, 1)]
        allowed = [Exponential(recencies=(r,)) for r, size in zip((0.15, 0.4, 0.7, 1), each, strict=True) if size <= 4]
        if allowed:
            assert served.weights == pytest.approx(allowed[0].weights(UNEVEN, target, gram(v)))
        else:
            assert served.fallbacks and served.rule == "linear1"
    assert np.abs(Exponential().weights(UNEVEN, 200.0, gram(v))).sum() > GUARD  # control: far out, the guard acts


@pytest.mark.parametrize("kind", ["zero", "constant", "repeated", "one jump", "not a number"])
def test_degenerate_windows_are_served_by_finite_weights(kind: str) -> None:
    rng = np.random.default_rng(0)
    v = {
        "zero": np.zeros((6, 8)),
        "constant": np.ones((6, 8)) * rng.normal(size=8),
        "repeated": np.repeat(rng.normal(size=(3, 8)), 2, axis=0),
        "one jump": np.array([[0.0] * 8] * 5 + [[1.0] * 8]),
        "not a number": np.full((6, 8), np.nan),
    }[kind]
    served = guarded(Exponential(), UNEVEN, 9.0, gram(v))
    assert np.isfinite(served.weights).all() and served.weights.sum() == pytest.approx(1)


def test_two_snapshots_are_a_line() -> None:
    with pytest.raises(Unfit, match="2 of 3"):
        Exponential().weights(UNEVEN[:2], 2.0, np.eye(2))
    served = guarded(Exponential(), UNEVEN[:2], 1.5, np.eye(2))
    assert served.rule == "linear1" and "2 of 3" in served.fallbacks[0]
    for wrong in ((), (0.0,), (1.5,)):
        with pytest.raises(ValueError, match="recencies"):
            Exponential(recencies=wrong)


# --- with evidence ----------------------------------------------------------------------------------------------------
MASK = (1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1)


def replay(rule: Rule, path: np.ndarray) -> tuple[float, list[str]]:
    """Mean error of the skipped steps of a mask, relative to the motion of the path, and who served them."""
    known: list[int] = []
    errors, rules = [], []
    for t, compute in enumerate(MASK):
        if compute:
            known = [*known, t][-6:]
            continue
        served = guarded(rule, np.array(known, dtype=float), float(t), gram(path[known]))
        errors.append(np.linalg.norm(served.weights @ path[known] - path[t]))
        rules.append(served.rule)
    return float(np.mean(errors) / np.linalg.norm(path - path.mean(0), axis=1).mean()), rules


def test_auto_finds_out_whether_the_exponential_rule_serves_better() -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 64))
    t = np.arange(28.0)[:, None]
    lines = Linear(1), Linear(2)
    chosen, plain = Auto((*lines, Exponential())), Exponential()
    decay = a + 0.95**t * b + 0.8**t * c
    (with_evidence, rules), (without, _) = replay(chosen, decay), replay(plain, decay)
    assert with_evidence < 1.5 * without and rules[1:] == ["exponential"] * 12  # the first one had no evidence yet
    assert replay(Auto(lines), decay)[0] > 1.5 * without  # control: without it
    for period, gain in ((18, 0.9), (28, 0.85)):  # an oscillation: no real exponential follows it
        wave = a + np.cos(2 * np.pi * t / period) * b + np.sin(2 * np.pi * t / period) * c
        assert replay(chosen, wave)[0] < gain * replay(plain, wave)[0]
    line = a + t * b
    error, rules = replay(chosen, line)
    assert error < 1e-6 and rules[1:] == ["exponential"] * 12, "a line that its guard holds back is not exact on one"
