"""Which steps call the network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hicache_pp.hermite import hicache_decide, hicache_init
from hypothesis import given, settings
from hypothesis import strategies as st

from forecache import schedule
from forecache.schedule import effective_steps, even, fixed_interval, ramp


def published(steps: int, interval: int, warmup: int, end: int | None) -> list[int]:
    state = hicache_init(steps, interval=interval, first_enhance=warmup, end_enhance=end)
    for i in range(steps):
        state["step"] = i
        if hicache_decide(state) == "full":
            state["derivatives"] = {0: None}
    return list(state["activated_steps"])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 10), st.none() | st.integers(0, 60))
def test_fixed_interval_is_the_published_schedule_and_the_last_step(
    n: int, interval: int, warmup: int, end: int | None
) -> None:
    theirs = published(n, interval, warmup, end)
    assert list(fixed_interval(range(n), interval, warmup, end)) == sorted({*theirs, n - 1})


def test_fixed_interval_control() -> None:
    assert (
        published(10, 4, 2, None)[-1] == 9 and published(11, 4, 2, None)[-1] == 9
    )  # theirs leaves step 10 to a forecast
    assert fixed_interval(range(11), 4, 2)[-2:] == (9, 10)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.data())
def test_even_is_an_exact_budget(n: int, data: st.DataObject) -> None:
    calls = data.draw(st.integers(1, n))
    effective = [2 * i + 1 for i in range(n)]
    chosen = even(effective, calls)
    assert len(chosen) == len(set(chosen)) == calls and set(chosen) <= set(effective)
    assert chosen[0] == effective[0]
    if calls > 1:
        assert chosen[-1] == effective[-1]
        gaps = [b - a for a, b in pairwise(effective.index(c) for c in chosen)]
        assert max(gaps) - min(gaps) <= 1
        truncated = [effective[k * (n - 1) // max(calls, 1)] for k in range(calls)]  # control: misses the last step
        assert calls == n == 1 or truncated[-1] != effective[-1] or n == 1


def test_even_takes_every_number_of_calls() -> None:
    assert even(range(50), 50) == tuple(range(50))
    assert even(range(50), 1) == (0,)
    for calls in (0, 51):
        with pytest.raises(ValueError, match=r"calls must be 1\.\.50"):
            even(range(50), calls)


def test_ramp_is_spectrums() -> None:
    assert ramp(range(50)) == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46, 49)
    assert len(ramp(range(50), growth=3.0)) == 10 + (ramp(range(50), growth=3.0)[-2] != 49)
    assert ramp(range(50), growth=0.0)[5:8] == (6, 8, 10)
    assert ramp(range(1)) == (0,) and ramp(()) == ()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5]), min_size=1, max_size=30), st.booleans())
def test_steps_that_do_not_move_are_in_no_schedule(moves: list[float], falling: bool) -> None:
    times = [0.0]
    for move in moves:
        times.append(times[-1] + (-move if falling else move))
    effective = effective_steps(times)
    assert effective == tuple(i for i, move in enumerate(moves) if move)
    schedules = [fixed_interval(effective, 3, 2), ramp(effective)]
    schedules += [even(effective, k) for k in range(1, len(effective) + 1)]
    for chosen in schedules:
        assert all(moves[i] for i in chosen)
        assert not effective or chosen[0] == effective[0]
        assert len(chosen) <= 1 or chosen[-1] == effective[-1]
    if 0.0 in moves:  # control: all steps
        assert not all(moves[i] for i in fixed_interval(range(len(moves)), 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_interval(range(5), 0), "interval must be >= 1, got 0"),
        (lambda: fixed_interval(range(5), 2, -1), "warmup must be >= 0, got -1"),
        (lambda: ramp(range(5), warmup=0), "warmup >= 1"),
        (lambda: ramp(range(5), start=0.5), "start >= 1"),
        (lambda: ramp(range(5), growth=-1), "growth >= 0"),
        (lambda: effective_steps([1.0]), "N \\+ 1 >= 2"),
        (lambda: effective_steps([0.0, float("nan"), 1.0]), "finite"),
        (lambda: effective_steps([0.0, float("inf")]), "finite"),
        (lambda: effective_steps([0.0, 1.0, 0.5]), "rise or fall"),
        (lambda: schedule.check([0, 2, 2], range(5)), "strictly increasing"),
        (lambda: schedule.check([2, 0], range(5)), "strictly increasing"),
        (lambda: schedule.check([1, 2], range(5)), "first effective step"),
        (lambda: schedule.check([], range(5)), "first effective step"),
        (lambda: schedule.check([0, 4], (0, 1, 2, 3)), r"\[4\]"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_a_given_schedule_passes() -> None:
    assert schedule.check([1, 3], (1, 2, 3)) == (1, 3)


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 49, 50])
def test_cosine_keeps_the_budget_and_both_ends(steps: int) -> None:
    for calls in range(1, steps + 1):
        found = schedule.cosine(range(steps), calls)
        assert len(found) == calls and list(found) == sorted(set(found)) and found[0] == 0
        assert calls == 1 or found[-1] == steps - 1
    assert set(np.diff(schedule.cosine(range(50), 9, mix=0))) <= {6, 7}, "no mix: even"
    if steps == 50:
        gaps = np.diff(schedule.cosine(range(50), 11))
        assert gaps[0] < gaps[len(gaps) // 2] > gaps[-1], "dense at both ends"
    for wrong in ({"power": 0.5}, {"mix": 1.5}):
        with pytest.raises(ValueError, match="cosine needs"):
            schedule.cosine(range(10), 4, **wrong)


def test_auto_is_denser_at_both_ends() -> None:
    assert schedule.choose(range(25), True, calls=15) == schedule.cosine(range(25), 15)
    assert schedule.choose(range(25), True, interval=2) == schedule.cosine(range(25), 14)
    assert schedule.choose(range(25), False, calls=15) == schedule.even(range(25), 15)
