"""The corrector: a closed gap is integrated again, by interpolation, and the difference goes into the computed step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from forecache import Corrector, Forecaster, Group, Guided, Plan, corrector, schedule
from forecache.rules import Auto, Linear
from forecache.snapshots import Snapshots

GRID = [1 - (i / 20) ** 1.3 for i in range(21)]  # uneven, falling
STEPS = (0, 1, 4, 7, 8, 12, 16, 19)
PLAIN = Auto((Linear(1), Linear(2)))  # undamped: what is left of a forecast's error is the corrector's
Tensor = torch.Tensor
A, B, C, D = torch.randn(4, 2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def quadratic(i: float) -> Tensor:
    return A + 0.3 * i * B - 0.02 * i * i * C


def wavy(i: float) -> Tensor:
    return A + np.exp(-0.1 * i) * B + math.cos(0.3 * i) * C


def values(cache: Forecaster, velocity: Callable[[int], Any]) -> list[Any]:
    """What each step hands to the sampler, open loop."""
    return [cache.step(i, lambda i=i: velocity(i)) for i in range(len(cache.times) - 1)]


def ratios(grid: Sequence[float], k: int) -> tuple[float, float]:
    """h_k and f of the class's formula."""
    h = grid[k + 1] - grid[k]
    return h, h / (grid[-1] - grid[k])


# --- what is added ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("basis", ["auto", "linear", "reuse", "hermite"])
def test_a_corrected_gap_is_integrated_exactly_where_the_velocity_is_a_parabola(
    basis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrector, "STIFF", 0.0)
    how: dict[str, Any] = {"times": GRID, "computed": STEPS}
    got, plain = (values(Forecaster(basis, corrector=on, **how), quadratic) for on in (True, False))
    h = np.diff(GRID)
    for a, k in itertools.pairwise(STEPS):  # from the third anchor on there is a parabola to interpolate
        gap = range(a + 1, k + 1)
        truth = sum(h[i] * quadratic(i) for i in gap)
        assert (sum(h[i] * got[i] for i in gap) - truth).norm() < 1e-12 * truth.norm()
        off = (sum(h[i] * plain[i] for i in gap) - truth).norm() / truth.norm()
        assert off > 1e-3 or len(gap) == 1 or basis == "auto"  # control
    assert not all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


def test_what_is_used_and_what_is_kept() -> None:
    """Both formulas on the first gap of three: reuse, a line through both ends, a share for the velocity's answer."""
    cache = Forecaster("reuse", times=GRID, computed=(0, 3, 19), corrector=True)
    got = [cache.step(i, lambda i=i: wavy(i)) for i in range(4)]
    h, f = ratios(GRID, 3)
    interpolated = [wavy(0) + i / 3 * (wavy(3) - wavy(0)) for i in (1, 2)]
    r = sum((GRID[i + 1] - GRID[i]) / h * (v - wavy(0)) for i, v in zip((1, 2), interpolated, strict=True))
    assert torch.allclose(got[3], wavy(3) + (1 - corrector.STIFF * f) * r, rtol=1e-12)
    assert torch.allclose(cache.history.streams["v"].reuse(), wavy(3) - corrector.STIFF * f * r, rtol=1e-12)
    told = cache.trace.steps[3].corrected["v"]
    assert told == pytest.approx(float(((got[3] - wavy(3)).norm(dim=1) / wavy(3).norm(dim=1)).max()), rel=1e-9)
    assert told > 0.1 and [s.index for s in cache.trace.steps if s.corrected] == [3]
    assert not torch.allclose(got[3], wavy(3) + r, rtol=1e-3)  # control: without the answer


def test_positions_say_what_a_sampler_adds() -> None:
    """A sampler whose grid is not its clock: shares of the step, and the end of the way, are those of the positions."""
    places = [t**2 for t in GRID]
    how: dict[str, Any] = {"times": GRID, "computed": (0, 3, 19)}
    by_place, by_time = (Forecaster("reuse", corrector=c, **how) for c in (Corrector(tuple(places)), True))
    squared = Forecaster("reuse", times=places, computed=(0, 3, 19), corrector=True)
    got, other, same = (values(cache, wavy)[3] for cache in (by_place, by_time, squared))
    assert torch.equal(got, same) and not torch.allclose(got, other, rtol=1e-3)
    far = Forecaster("reuse", corrector=Corrector(tuple(GRID), end=-1e12), **how)  # an end so far that f is nothing
    values(far, wavy)
    kept = Forecaster("reuse", corrector=Corrector(tuple(GRID)), **how)
    for cache, equal in ((far, True), (kept, False)):
        cache.reset()
        for i in range(4):
            cache.step(i, lambda i=i: wavy(i))
        assert torch.allclose(cache.history.streams["v"].reuse(), wavy(3), rtol=1e-9) is equal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_is_added_where_the_forecasts_were_right(dtype: torch.dtype) -> None:
    """On a line, from the first two anchors on, round-off is no correction: what was computed is handed back itself."""
    line = [(A + i * B).to(dtype) for i in range(20)]
    cache = Forecaster(PLAIN, times=GRID, computed=(0, 1, 3, 5, 7, 9, 12, 15, 18, 19))
    for i, got in enumerate(values(cache, lambda i: line[i])):
        assert got is line[i] or i not in cache.computed
    assert not any(step.corrected for step in cache.trace.steps)
    bent = Forecaster(PLAIN, times=GRID, computed=cache.computed)  # control
    values(bent, lambda i: line[i] + 1e-3 * i * i * C.to(dtype))
    assert [s.index for s in bent.trace.steps if s.corrected][:3] == [3, 5, 7]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30])
def test_a_constant_stays_what_it_is(value: float) -> None:
    v = torch.full((2, 5), value)
    for got in values(Forecaster("hermite", times=GRID, interval=3, warmup=4, corrector=True), lambda _: v):
        assert torch.allclose(got, v, rtol=1e-6)


def test_a_run_that_computes_every_step_is_untouched() -> None:
    given = [wavy(i) for i in range(20)]
    for how in ({"interval": 1}, {"computed": range(20)}):
        cache = Forecaster("auto", times=GRID, **how)
        assert all(got is v for got, v in zip(values(cache, lambda i: given[i]), given, strict=True))
        assert cache.corrector is not None and not any(step.corrected for step in cache.trace.steps)
    skipping = Forecaster("auto", times=GRID, calls=19)  # control
    values(skipping, wavy)
    assert any(step.corrected for step in skipping.trace.steps)


# --- whose it is ------------------------------------------------------------------------------------------------------
def apart(i: float) -> Tensor:
    return torch.stack((wavy(i)[0], 50 * wavy(3 * i)[1]))


@pytest.mark.parametrize("basis", ["auto", "dmd", "linear"])
def test_items_are_corrected_each_by_itself(basis: str) -> None:
    how: dict[str, Any] = {"times": GRID, "computed": STEPS, "corrector": True}
    together = values(Forecaster(basis, **how), apart)
    alone = [values(Forecaster(basis, **how), lambda i, k=k: apart(i)[k : k + 1]) for k in (0, 1)]
    for v, a, b in zip(together, *alone, strict=True):
        assert torch.allclose(v, torch.cat((a, b)), rtol=1e-9, atol=1e-9)
    one = values(Forecaster(basis, batch_dim=None, **how), apart)  # control: one item
    off = max(float((v[0] - a[0]).norm() / a.norm()) for v, a in zip(one, alone[0], strict=True))
    assert off > 1e-6 or basis == "linear"  # a line does not look at the values


def test_streams_are_corrected_each_by_itself() -> None:
    how: dict[str, Any] = {"times": GRID, "computed": STEPS}
    one, two = values(Forecaster(**how), wavy), values(Forecaster(**how), lambda i: 50 * wavy(3 * i))
    guided = values(Forecaster(**how), lambda i: Guided(wavy(i), 50 * wavy(3 * i)))
    mapped = values(Forecaster(**how), lambda i: {"b": 50 * wavy(3 * i), "a": wavy(i)})
    sparse = values(Forecaster(**how), lambda i: (wavy(i), "coordinates", 50 * wavy(3 * i)))
    for k, (a, b) in enumerate(zip(one, two, strict=True)):
        assert isinstance(guided[k], Guided) and torch.equal(guided[k].cond, a) and torch.equal(guided[k].uncond, b)
        assert list(mapped[k]) == ["b", "a"] and torch.equal(mapped[k]["a"], a) and torch.equal(mapped[k]["b"], b)
        assert torch.equal(sparse[k][0], a) and sparse[k][1] == "coordinates" and torch.equal(sparse[k][2], b)
    cache = Forecaster(**how)
    steady = values(cache, lambda i: {"moves": wavy(i), "rests": A})
    assert all(set(step.corrected) <= {"['moves']"} for step in cache.trace.steps)
    assert all(torch.equal(v["moves"], a) for v, a in zip(steady, one, strict=True))
    assert all(torch.equal(steady[k]["rests"], A) for k in STEPS)


def test_a_group_is_corrected_with_its_own_rule() -> None:
    groups = {"pose": Group(("a", "b"), basis="linear")}
    cache = Forecaster("reuse", times=GRID, computed=STEPS, corrector=True, groups=groups)
    got = values(cache, lambda i: {"a": wavy(i)[:, :7], "b": wavy(i)[:, 7:], "c": wavy(i)})
    pose, other = (values(Forecaster(b, times=GRID, computed=STEPS, corrector=True), wavy) for b in ("linear", "reuse"))
    for v, p, o in zip(got, pose, other, strict=True):
        assert torch.allclose(torch.cat((v["a"], v["b"]), 1), p, rtol=1e-12) and torch.allclose(v["c"], o, rtol=1e-12)
    assert set(cache.trace.steps[4].corrected) == {"pose", "['c']"}
    assert not torch.allclose(pose[7], other[7], rtol=1e-3)  # control


# --- when it is due ---------------------------------------------------------------------------------------------------
def test_nothing_is_corrected_across_an_edge() -> None:
    cache = Forecaster("auto", times=GRID, computed=(0, 1, 4, 8, 9, 12, 19), edges=[8])
    given = [wavy(i) if i < 8 else 7 * wavy(-i) for i in range(20)]
    got = values(cache, lambda i: given[i])
    assert got[8] is given[8] and not cache.trace.steps[8].corrected
    fresh = Forecaster("auto", times=GRID[8:], computed=(0, 1, 4, 11))
    for a, b in zip(got[8:], values(fresh, lambda i: given[8 + i]), strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    through = Forecaster("auto", times=GRID, computed=(0, 1, 4, 8, 9, 12, 19))  # control
    assert not torch.allclose(values(through, lambda i: given[i])[8], given[8], rtol=1e-3)


def test_what_comes_before_a_break_is_left_alone() -> None:
    def run(breaks: Sequence[int]) -> Tensor:
        c = Corrector(tuple(GRID), breaks=breaks)
        cache = Forecaster("reuse", times=GRID, computed=(0, 5, 19), corrector=c)
        return values(cache, wavy)[5] - wavy(5)

    h, f = ratios(GRID, 5)
    each = {
        i: (1 - corrector.STIFF * f) * (GRID[i + 1] - GRID[i]) / h * i / 5 * (wavy(5) - wavy(0)) for i in range(1, 5)
    }
    assert torch.allclose(run([]), sum(each.values()), rtol=1e-9)  # control
    assert torch.allclose(run([3]), each[3] + each[4], rtol=1e-9)
    assert torch.allclose(run([2, 4, 9]), each[4], rtol=1e-9)
    assert torch.equal(run([5]), torch.zeros_like(A))


def test_steps_that_stand_still_add_nothing() -> None:
    """Neither in a gap nor at the end: the steps that move are corrected as if the others were not there."""
    held = [*GRID[:3], GRID[2], *GRID[3:], GRID[-1]]  # steps 2 and 21 move nothing
    at = [0, 1, 2, 2, *range(3, 20), 19]
    cache = Forecaster("reuse", times=held, computed=(0, 5, 20), corrector=True)
    got = values(cache, lambda i: wavy(at[i]))
    gap = {i: (held[i + 1] - held[i]) * i / 5 * (wavy(at[5]) - wavy(0)) for i in (1, 3, 4)}
    h, f = ratios(held, 5)
    assert torch.allclose(got[5], wavy(4) + (1 - corrector.STIFF * f) / h * sum(gap.values()), rtol=1e-9)
    assert [step.index for step in cache.trace.steps if step.corrected] == [5, 20]  # the last one that moves
    assert torch.equal(got[21], cache_value(cache, 20)) and cache.trace.steps[21].kind == "still"
    still = Forecaster("reuse", steps=4, computed=(0, 3), corrector=Corrector((1.0, 0.6, 0.3, 0.0, 0.0)))
    v = [wavy(i) for i in range(4)]
    assert values(still, lambda i: v[i])[3] is v[3]  # computed, but it moves nothing


def cache_value(cache: Forecaster, i: int) -> Tensor:
    """The snapshot of computed step ``i``, the newest."""
    stream = cache.history.streams["v"]
    assert stream.steps[-1] == i
    return stream.reuse()


class Wide(Linear):
    """A rule that asks for more snapshots than its weights use."""

    window = property(lambda self: 8)


@pytest.mark.parametrize("history", [3, 4, 6])
@pytest.mark.parametrize("basis", [Linear(0), Linear(1), Linear(2)], ids=lambda rule: rule.name)
def test_what_a_window_has_dropped_is_remembered(basis: Linear, history: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a gap are of a window that has moved on by one when they are looked at."""
    monkeypatch.setattr(corrector, "STIFF", 0.0)
    how: dict[str, Any] = {"times": GRID, "computed": STEPS, "corrector": True}
    short = values(Forecaster(basis, history=history, **how), wavy)
    longest = values(Forecaster(Wide(basis.order), history=8, **how), wavy)
    if history > basis.window:
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(short, longest, strict=True))
    got = values(Forecaster(basis, history=history, **how), quadratic)  # else it is exact on a parabola still
    h = np.diff(GRID)
    for a, k in itertools.pairwise(STEPS):
        truth = sum(h[i] * quadratic(i) for i in range(a + 1, k + 1))
        assert (sum(h[i] * got[i] for i in range(a + 1, k + 1)) - truth).norm() < 1e-9 * truth.norm()


# --- numbers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_kept_and_rounds_once(dtype: torch.dtype) -> None:
    how: dict[str, Any] = {"times": GRID, "computed": STEPS, "corrector": True}
    cache = Forecaster("linear", **how)
    got = values(cache, lambda i: wavy(i).to(dtype))
    exact = values(Forecaster("linear", **how), lambda i: wavy(i).to(dtype).double())
    for v, e in zip(got, exact, strict=True):
        assert v.dtype == dtype and torch.isfinite(v).all()
        assert (v.double() - e).norm() <= 4 * torch.finfo(dtype).eps * e.norm()
    assert max(step.corrected.get("v", 0) for step in cache.trace.steps) > 0.01  # control: there was something to add


def test_a_correction_that_overflows_is_left_out() -> None:
    def v(i: int, size: float) -> Tensor:
        return torch.full((2, 3), size if i else 0.0, dtype=torch.float16) * torch.tensor([[1.0], [1e-3]]).half()

    grid = [1.0, 0.6, 0.3, 0.25, 0.0]
    cache = Forecaster("reuse", times=grid, computed=(0, 2, 3), corrector=True)
    got = [cache.step(i, lambda i=i: v(i, 60000.0)) for i in range(3)]
    small = Forecaster("reuse", times=grid, computed=(0, 2, 3), corrector=True)
    fine = [small.step(i, lambda i=i: v(i, 6000.0)) for i in range(3)]
    assert torch.equal(got[2][0], v(2, 60000.0)[0]) and torch.equal(cache.history.streams["v"].reuse()[0], got[2][0])
    assert (got[2][1] > 1.3 * v(2, 60000.0)[1]).all()  # the other item is corrected
    assert (fine[2] > 1.3 * v(2, 6000.0)).all()  # control
    assert all(np.isfinite(each).all() for each in (cache.history.streams["v"].snapshots.gram, got[2].double().numpy()))
    line = Forecaster("linear", times=grid, computed=(0, 1, 3), corrector=True)  # a forecast that was left out itself
    value = [torch.full((2, 3), size, dtype=torch.float16) for size in (-20000.0, 40000.0, 0.0, 40000.0)]
    last = [line.step(i, lambda i=i: value[i]) for i in range(4)][3]
    assert line.trace.steps[2].rules == {"v": "reuse"}  # of 40000; the parabola says 60000, the line would 100000
    assert torch.equal(last, value[3] + (1 - corrector.STIFF) * 0.05 / 0.25 * 20000)
    huge = Forecaster("reuse", times=grid, computed=(0, 2, 3), corrector=True)  # its Gram matrix is infinite
    last = [huge.step(i, lambda i=i: torch.full((2, 3), 1e200 * (1 + i), dtype=torch.float64)) for i in range(3)][2]
    assert torch.equal(last, torch.full((2, 3), 3e200, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_rewritten_snapshot_has_the_gram_matrix_of_its_values(dtype: torch.dtype) -> None:
    snapshots = Snapshots(4)
    for i in range(6):
        snapshots.push(float(i), wavy(i).to(dtype))
    weights = np.array([[0.1, -0.3, 0.4, 0.8], [0.0, 0.2, -0.7, 1.5]])
    before = snapshots.gram.copy()
    snapshots.rewrite(weights, snapshots.combine(weights))
    rows = torch.stack([snapshots.combine(np.eye(4)[k]) for k in range(4)], 1).double()
    truth = (rows @ rows.mT).numpy()
    scale = np.abs(truth).max((1, 2), keepdims=True)
    assert (np.abs(snapshots.gram - truth) <= 2 * torch.finfo(dtype).eps * scale + 1e-13 * scale).all()
    assert (np.abs(before - truth) > 0.005 * scale).any((1, 2)).all()  # control
    assert snapshots.largest == pytest.approx(float(rows.norm(dim=2).max()), rel=0.01)
    for k in (0, 1):
        expected = weights[k] @ np.stack([wavy(i).to(dtype).double().numpy()[k] for i in range(2, 6)])
        assert np.linalg.norm(rows[k, 3].numpy() - expected) <= torch.finfo(dtype).eps * np.linalg.norm(expected)


# --- a loop that answers ----------------------------------------------------------------------------------------------
def drift(rate: Callable[[float], float], on: bool, calls: int = 9, computed: Sequence[int] = ()) -> float:
    """Of ``x' = rate(t) x`` from 1 over 50 steps: the error of the sample."""
    grid = [i / 50 for i in range(51)]
    cache = Forecaster(PLAIN, times=grid, corrector=on, computed=computed or schedule.cosine(range(50), calls))
    x, plain = torch.ones(1, 2, dtype=torch.float64), 1.0
    for i, t in enumerate(grid[:-1]):
        plain += rate(t) * plain / 50
        x = x + cache.step(i, lambda x=x, t=t: rate(t) * x) / 50
    return abs(float(x[0, 0]) - plain)


@pytest.mark.parametrize("calls", [9, 12, 15])
@pytest.mark.parametrize("rate", [-2.0, -1.0, 1.0, 2.0])
def test_a_loop_that_answers_drifts_less(rate: float, calls: int) -> None:
    corrected, plain = (drift(lambda t: rate, on, calls=calls) for on in (True, False))
    assert corrected < plain / 2


@pytest.mark.parametrize("calls", [9, 12, 15])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_flow_toward_its_data_drifts_less(share: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``v = share (y - x) / (T - t)``, y = 0: a share of 1 goes straight to y, 0 has an end point that follows x."""
    corrected, plain = (drift(lambda t: -share / (1.02 - t), on, calls=calls) for on in (True, False))
    assert corrected < plain / 1.5
    monkeypatch.setattr(corrector, "STIFF", 0.0)
    assert drift(lambda t: -share / (1.02 - t), True, calls=calls) > 1.5 * corrected  # control: it rings


def test_a_straight_flow_is_left_alone() -> None:
    assert drift(lambda t: -1 / (1.02 - t), True, calls=9) < 1e-12
    assert drift(lambda t: -0.9 / (1.02 - t), True, calls=9) > 1e-6  # control


def test_a_fast_loop_rings_less_than_without_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """|rate| times a gap of .6. Beyond 1 an extrapolation grows by itself, corrected or not."""
    computed = [*range(0, 50, 5), 49]
    answered = drift(lambda t: -6.0, True, computed=computed)
    monkeypatch.setattr(corrector, "STIFF", 0.0)
    assert answered < drift(lambda t: -6.0, True, computed=computed)
    assert drift(lambda t: -20.0, False, computed=computed) > 1  # the uncached end is 8e-12


# --- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_positions_are_finite_and_as_many_as_times(bad: float) -> None:
    with pytest.raises(ValueError, match="corrector: its positions must be finite, got"):
        Corrector((1.0, bad, 0.0))
    with pytest.raises(ValueError, match="corrector: it must have 21 positions, as many as times, got 2"):
        Forecaster(times=GRID, corrector=Corrector((1.0, 0.0)))
    assert Forecaster(times=GRID, corrector=Corrector(tuple(GRID))).corrector == Corrector(tuple(GRID))


def test_when_it_is_on() -> None:
    two = Auto((Linear(1), Linear(2)))
    for basis, how, on in (("auto", GRID, True), (two, GRID, True), ("linear", GRID, False), ("auto", None, False)):
        made = Forecaster(basis, times=how, steps=None if how else 20)
        assert (made.corrector is not None) is on
    assert Forecaster(times=GRID, corrector=False).corrector is None
    assert Forecaster("dmd", times=GRID, corrector=True).corrector == Corrector(tuple(GRID))
    asked = Forecaster(steps=20, corrector=True)
    assert asked.corrector == Corrector(tuple(map(float, range(21))))
    plan = Plan(tuple(GRID), (0, 4, 19), {}, (), {}, {})
    planned = Forecaster(times=GRID, plan=plan, corrector=True)  # its last step is corrected by itself
    assert planned.corrector is None
    given = [wavy(i) for i in range(20)]
    assert values(planned, lambda i: given[i])[4] is given[4]
    free = Forecaster(times=GRID, computed=(0, 4, 19))  # control
    assert values(free, lambda i: given[i])[4] is not given[4]


@pytest.mark.parametrize(("strength", "share"), [(0.0, 1.0), (6.0, 1.0), (7.2, 0.5), (8.4, 0.0), (50.0, 0.0)])
def test_steep_guidance_in_few_steps_is_corrected_less(strength: float, share: float) -> None:
    gap, steps = [(1, np.array([1.0])), (2, np.array([1.0]))], np.array([0.0, 3.0])
    whole = Corrector(tuple(GRID)).correction(gap, steps)
    found = Corrector(tuple(GRID), strength=strength).correction(gap, steps)
    assert whole is not None and np.abs(whole[0]).sum() > 0.1
    if share:
        assert found is not None and found[0] == pytest.approx(share * whole[0])
        assert found[1] == pytest.approx(share * whole[1])
    else:
        assert found is None
