"""The object that a sampler holds for one run: the correctness rules of the core."""

from __future__ import annotations

import gc
import itertools
import json
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from core_helpers import NAMES, mixture_velocity
from forecache import Forecaster, Group, Guided, Plan, Weights, streams
from forecache.rules import Auto, Chebyshev, Linear, Rule, dmd

GRID = [1 - (i / 20) ** 1.3 for i in range(21)]  # uneven, falling
Tensor = torch.Tensor


def smooth(t: float, seed: int = 0, shape: tuple[int, ...] = (2, 40), dtype: torch.dtype = torch.float64) -> Tensor:
    """A smooth velocity of time alone, different for every item."""
    a, b, c = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (a + b * np.exp(-1.3 * t) + c * np.cos(2 * t)).to(dtype)


def run(
    cache: Forecaster | None, velocity: Callable[[Tensor, float], Any], x: Tensor, grid: Sequence[float] = GRID
) -> tuple[Tensor, list[int]]:
    """Euler over ``grid``; the final sample and the steps at which the network ran."""
    calls = []

    def compute(i: int) -> Any:
        calls.append(i)
        return velocity(x, grid[i])

    for i in range(len(grid) - 1):
        v = compute(i) if cache is None else cache.step(i, lambda i=i: compute(i))
        x = x + (grid[i + 1] - grid[i]) * v
    return x, calls


def values(cache: Forecaster, velocity: Callable[[float], Any]) -> list[Any]:
    """What each step hands to the sampler, open loop."""
    return [cache.step(i, lambda i=i: velocity(cache.times[i])) for i in range(len(cache.times) - 1)]


def flow(x: Tensor, t: float) -> Tensor:
    return mixture_velocity(dim=x.shape[1])(x, 1 - t)


def start(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# --- off is off -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("basis", NAMES)
@pytest.mark.parametrize("how", [{"interval": 1}, {"calls": 20}, {"computed": range(20)}], ids=str)
def test_full_schedule_is_bit_identical(basis: str, how: dict[str, Any]) -> None:
    cache = Forecaster(basis, times=GRID, **how)
    plain, every = run(None, flow, start())
    cached, calls = run(cache, flow, start())
    assert torch.equal(cached, plain) and calls == every == list(range(20))
    assert cache.trace.computed == 20 and cache.trace.forecast == 0
    skipping, fewer = run(Forecaster(basis, times=GRID, calls=19), flow, start())  # control
    assert not torch.equal(skipping, plain) and len(fewer) == 19


def test_a_computed_value_is_handed_back_untouched() -> None:
    value = torch.randn(2, 3, requires_grad=True)
    assert Forecaster(steps=3).step(0, lambda: value) is value


@pytest.mark.parametrize("basis", NAMES)
@pytest.mark.parametrize("still", [[19], [7], [18, 19], [7, 8]])
def test_a_step_that_does_not_move_is_never_computed_and_exact(basis: str, still: list[int]) -> None:
    grid = list(np.linspace(1, 0, 21 - len(still)))
    for i in still:
        grid.insert(i, grid[min(i, len(grid) - 1)])
    assert len(grid) == 21
    held = {i for i in range(20) if grid[i] == grid[i + 1]}
    assert len(held) == len(still)
    plain, _ = run(None, flow, start(), grid)
    cache = Forecaster(basis, times=grid, interval=1)
    cached, calls = run(cache, flow, start(), grid)
    assert len(calls) == 20 - len(still) and set(calls).isdisjoint(held)
    assert torch.equal(cached, plain)
    assert [s.index for s in cache.trace.steps if s.kind == "still"] == sorted(held)
    got = values(Forecaster(basis, times=grid, interval=1), smooth)
    for i in held:
        assert torch.equal(got[i], smooth(grid[max(j for j in range(i) if j not in held)]))  # the newest snapshot


def test_a_grid_that_begins_by_standing_still() -> None:
    """Something must be computed first; the step after it starts from the same state and time, so it is that value."""
    grid = [1.0, 1.0, 0.5, 0.0]
    plain, _ = run(None, flow, start(), grid)
    cache = Forecaster("reuse", times=grid, interval=1)
    cached, calls = run(cache, flow, start(), grid)
    assert torch.equal(cached, plain) and calls == [0, 2]


def test_still_times_all_along() -> None:
    cache = Forecaster(times=[0.3, 0.3, 0.3])
    assert run(cache, flow, start(), [0.3] * 3)[1] == [0] and cache.trace.computed == 1


@pytest.mark.filterwarnings("ignore:forecache. auto with")
def test_the_last_effective_step_is_computed() -> None:
    for basis, how in itertools.product(NAMES, ({"interval": 7}, {"calls": 5}, {"interval": 4, "warmup": 4})):
        grid = [*np.linspace(0, 1, 20), 1.0]
        assert Forecaster(basis, times=grid, **how).computed[-1] == 18


# --- independent items and branches -----------------------------------------------------------------------------------
def both(t: float) -> Tensor:
    """Two items on different clocks: what suits one does not suit the other."""
    return torch.stack((smooth(t, 1, (40,)), smooth(3 * t, 2, (40,)) * 50))


@pytest.mark.parametrize("basis", [*NAMES, Linear(3)])
@pytest.mark.parametrize("grid", [GRID, list(np.linspace(0, 1, 21))], ids=["uneven", "even"])
def test_a_batch_equals_its_items_run_alone(basis: Any, grid: list[float]) -> None:
    how: dict[str, Any] = {"times": grid, "interval": 3, "warmup": 4}
    together = values(Forecaster(basis, **how), both)
    alone = [values(Forecaster(basis, **how), lambda t, k=k: both(t)[k : k + 1]) for k in (0, 1)]
    for v, a, b in zip(together, *alone, strict=True):
        for item, single in ((v[:1], a), (v[1:], b)):
            assert (item - single).norm() <= 1e-6 * single.norm()


def test_batch_control() -> None:
    """A Gram matrix summed over the items couples them."""
    how: dict[str, Any] = {"times": list(np.linspace(0, 1, 21)), "interval": 3, "warmup": 4}
    one = values(Forecaster("dmd", batch_dim=None, **how), both)
    alone = values(Forecaster("dmd", **how), lambda t: both(t)[:1])
    assert max(float((v[:1] - a).norm() / a.norm()) for v, a in zip(one, alone, strict=True)) > 1e-5


def test_batch_in_a_closed_loop() -> None:
    how: dict[str, Any] = {"times": GRID, "interval": 3, "warmup": 4}
    together, _ = run(Forecaster("dmd", **how), flow, start(2))
    for k in (0, 1):
        single, _ = run(Forecaster("dmd", **how), flow, start(2)[k : k + 1])
        assert torch.allclose(together[k : k + 1], single, rtol=1e-6)


@pytest.mark.parametrize("batch_dim", [1, -1])
def test_items_along_another_axis(batch_dim: int) -> None:
    how: dict[str, Any] = {"times": list(np.linspace(0, 1, 21)), "interval": 3, "warmup": 4}
    rows = values(Forecaster("dmd", **how), both)
    columns = values(Forecaster("dmd", batch_dim=batch_dim, **how), lambda t: both(t).T.contiguous())
    for r, c in zip(rows, columns, strict=True):
        assert c.shape == (40, 2) and torch.allclose(r, c.T, rtol=1e-7)


def test_guided_branches_have_their_own_histories() -> None:
    how: dict[str, Any] = {"times": list(np.linspace(0, 1, 21)), "interval": 3, "warmup": 4, "batch_dim": None}

    def cond(t: float) -> Tensor:
        return both(t)[0]

    def uncond(t: float) -> Tensor:
        return both(t)[1]

    cache = Forecaster("dmd", **how)
    got = values(cache, lambda t: Guided(cond(t), uncond(t)))
    c, u = values(Forecaster("dmd", **how), cond), values(Forecaster("dmd", **how), uncond)
    for g, a, b in zip(got, c, u, strict=True):
        assert isinstance(g, Guided) and torch.equal(g.cond, a) and torch.equal(g.uncond, b)
    assert set(cache.trace.steps[4].rules) == {"cond", "uncond"}
    mixed = values(Forecaster("dmd", **how), lambda t: torch.cat((cond(t), uncond(t))))  # control: one history for both
    assert max(float((m[:40] - a).norm()) for m, a in zip(mixed, c, strict=True)) > 1e-6


def test_equal_weights_make_splitting_the_same_as_combining() -> None:
    how: dict[str, Any] = {"times": GRID, "interval": 3, "warmup": 3}
    apart = values(Forecaster("linear", **how), lambda t: Guided(both(t)[:1], both(t)[1:]))
    combined = values(Forecaster("linear", **how), lambda t: 4 * both(t)[:1] - 3 * both(t)[1:])
    for g, v in zip(apart, combined, strict=True):
        assert torch.allclose(4 * g.cond - 3 * g.uncond, v, rtol=1e-9)


# --- state lives in one run -------------------------------------------------------------------------------------------
def sampler(cache: Forecaster, x: Tensor) -> Iterator[Tensor]:
    for i in range(len(cache.times) - 1):
        v = cache.step(i, lambda i=i, x=x: flow(x, cache.times[i]))
        x = x + (cache.times[i + 1] - cache.times[i]) * v
        yield x


def test_interleaved_runs_do_not_meet() -> None:
    how: dict[str, Any] = {"times": GRID, "interval": 4, "warmup": 4}
    alone = [list(sampler(Forecaster("dmd", **how), x))[-1] for x in (start(2), 2 * start(3))]
    first, second = sampler(Forecaster("dmd", **how), start(2)), sampler(Forecaster("dmd", **how), 2 * start(3))
    *_, last = zip(first, second, strict=True)
    assert torch.equal(last[0], alone[0]) and torch.equal(last[1], alone[1])


def test_reset_forgets_everything() -> None:
    cache = Forecaster("dmd", times=GRID, interval=4, warmup=4)
    fresh, _ = run(Forecaster("dmd", times=GRID, interval=4, warmup=4), flow, start())
    for i in range(9):  # a cancelled run of another shape and dtype
        cache.step(i, lambda: torch.randn(7))
    old = cache.trace
    cache.reset()
    again, calls = run(cache, flow, start())
    assert torch.equal(again, fresh) and calls == list(cache.computed)
    assert cache.trace is not old and len(old.steps) == 9
    with pytest.raises(ValueError, match="out of order"):  # control: without it the run goes on where it was
        cache.step(0, lambda: start())


def test_close_frees_every_snapshot() -> None:
    cache = Forecaster("linear", times=GRID, interval=3)

    def value() -> dict[str, Tensor]:
        return {"a": torch.randn(2, 100), "b": torch.randn(50, dtype=torch.float64)}

    kept = weakref.ref(cache.step(0, value)["a"])
    cache.step(1, value)
    buffers = [weakref.ref(stream.snapshots._buffer) for stream in cache.history.streams.values()]
    assert cache.nbytes > 0 and all(ref() is not None for ref in buffers)
    cache.close()
    gc.collect()
    assert cache.nbytes == 0 and kept() is None and all(ref() is None for ref in buffers)
    assert cache.trace.computed == 2
    with Forecaster("linear", times=GRID) as inside:
        inside.step(0, lambda: torch.randn(3))
        assert inside.nbytes > 0
    assert inside.nbytes == 0


def test_a_failing_network_leaves_the_run_usable() -> None:
    cache = Forecaster("linear", times=GRID, interval=3)

    def fail() -> Tensor:
        raise RuntimeError("out of memory")

    for i in range(20):
        if cache.needs_compute(i):
            with pytest.raises(RuntimeError, match="out of memory"):
                cache.step(i, fail)
        cache.step(i, lambda i=i: smooth(GRID[i]))
    untroubled = Forecaster("linear", times=GRID, interval=3)
    values(untroubled, smooth)
    assert cache.trace.to_dict() == untroubled.trace.to_dict()


def test_steps_come_in_order() -> None:
    cache = Forecaster("linear", times=GRID, interval=3)
    for i in (0, 1):
        cache.step(i, lambda: torch.ones(3))
    for i in (0, 1):
        with pytest.raises(ValueError, match=f"out of order: step {i} after step 1"):
            cache.step(i, lambda: torch.ones(3))
    for i in (-1, 20):
        with pytest.raises(ValueError, match=r"0\.\.19"):
            cache.needs_compute(i)
    cache.step(2, lambda: torch.ones(3))


def test_a_step_may_be_left_out_unless_there_is_a_plan() -> None:
    """A branch that takes turns with others is not called at every step: its history knows which, so nothing shifts."""
    cache = Forecaster("linear", times=GRID, interval=1)
    for i in (0, 4):
        cache.observe(i, torch.full((3,), 1.0 + i))
    assert torch.allclose(cache.forecast(6), torch.full((3,), 7.0))
    plan = Plan(tuple(GRID), (0, 4, 19), {}, (), {}, {})
    planned = Forecaster("linear", times=GRID, plan=plan)
    planned.observe(0, torch.ones(3))
    with pytest.raises(ValueError, match="step 2 after step 0; a plan is asked at every step"):
        planned.forecast(2)


def test_a_run_may_start_late() -> None:
    """Image-to-image: the sampler enters its grid in the middle; the first step asked for is computed."""
    cache = Forecaster("linear", times=GRID, interval=5)
    assert 7 not in cache.computed and cache.needs_compute(7)
    cache.step(7, lambda: torch.ones(3))
    assert not cache.needs_compute(8)


def test_forecast_before_any_snapshot() -> None:
    with pytest.raises(RuntimeError, match=r"forecast of step 0 before any snapshot: observe\(\) a computed"):
        Forecaster(times=GRID).forecast(0)


def test_three_calls_are_step() -> None:
    cache, other = Forecaster("dmd", times=GRID, interval=4), Forecaster("dmd", times=GRID, interval=4)
    for i, expected in enumerate(values(other, smooth)):
        if cache.needs_compute(i):
            got = smooth(GRID[i])
            cache.observe(i, got)
        else:
            got = cache.forecast(i)
        assert torch.equal(got, expected)
    assert cache.trace.to_dict() == other.trace.to_dict()


def test_no_randomness() -> None:
    before = torch.get_rng_state()
    for basis in NAMES:
        values(Forecaster(basis, times=GRID, interval=3, warmup=4), smooth)
    assert torch.equal(torch.get_rng_state(), before)


# --- refused values ---------------------------------------------------------------------------------------------------
def test_a_rule_that_raises_leaves_every_history_as_it_was() -> None:
    class Moody:
        def __init__(self) -> None:
            self.fails = False

        def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
            if self.fails and gram[0, 0] > 2:  # the second leaf only
                raise RuntimeError("no")
            return np.eye(len(times))[-1]

    basis = Moody()
    cache = Forecaster(basis, times=GRID, calls=20)
    value = {"a": torch.ones(2), "b": torch.ones(3)}
    cache.observe(0, value)
    basis.fails = True
    with pytest.raises(RuntimeError):
        cache.observe(1, value)
    assert [len(s.snapshots) for s in cache.history.streams.values()] == [1, 1]
    basis.fails = False
    cache.observe(1, value)
    assert [len(s.snapshots) for s in cache.history.streams.values()] == [2, 2]


def test_a_value_without_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match="tensor"):
        Forecaster(times=GRID).step(0, lambda: {"a": None})


# --- structured values ------------------------------------------------------------------------------------------------
class Sparse:
    """Feature rows at coordinates, as the 3D generators have them."""

    def __init__(self, rows: Tensor, coordinates: Tensor) -> None:
        self.rows, self.coordinates = rows, coordinates


_pytree.register_pytree_node(
    Sparse,
    lambda s: ([s.rows], s.coordinates),
    lambda leaves, context: Sparse(*leaves, context),
    flatten_with_keys_fn=lambda s: ([(_pytree.GetAttrKey("rows"), s.rows)], s.coordinates),
)


@pytest.mark.parametrize("basis", NAMES)
def test_trees_equal_their_leaves(basis: str) -> None:
    how: dict[str, Any] = {"times": GRID, "interval": 3, "warmup": 4, "batch_dim": None}

    def leaf(k: int) -> Callable[[float], Tensor]:
        return lambda t: smooth((k + 1) * t, k, (5, 4))

    got = values(Forecaster(basis, **how), lambda t: {"x": (leaf(0)(t), None, 7), "y": [leaf(1)(t)]})
    for v, a, b in zip(
        got, values(Forecaster(basis, **how), leaf(0)), values(Forecaster(basis, **how), leaf(1)), strict=True
    ):
        assert v["x"][1:] == (None, 7)
        assert torch.equal(v["x"][0], a) and torch.equal(v["y"][0], b)


def test_a_registered_container() -> None:
    where = torch.randint(0, 9, (5, 3))
    cache = Forecaster("linear", times=GRID, interval=3, batch_dim=None)
    got = values(cache, lambda t: Sparse(smooth(t, shape=(5, 4)), where.clone()))
    plain = values(Forecaster("linear", times=GRID, interval=3, batch_dim=None), lambda t: smooth(t, shape=(5, 4)))
    for s, v in zip(got, plain, strict=True):
        assert isinstance(s, Sparse) and torch.equal(s.rows, v) and torch.equal(s.coordinates, where)
    cache.reset()
    cache.observe(0, Sparse(torch.ones(5, 4), where))
    cache.observe(1, Sparse(torch.ones(5, 4), where.flip(0) + 1))  # rows at other places are other rows
    assert "step 1: a new history begins" in cache.trace.notes[0]


# --- what is served ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("basis", NAMES)
@pytest.mark.parametrize(
    "grid", [GRID, list(np.linspace(0, 1, 21)), [i**2 / 400 for i in range(21)]], ids=["uneven", "even", "square"]
)
def test_the_guard_is_always_met_and_falling_back_is_named(
    basis: str, grid: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from forecache.snapshots import Snapshots

    served: list[np.ndarray] = []
    combine = Snapshots.combine
    monkeypatch.setattr(Snapshots, "combine", lambda self, w: served.append(np.atleast_2d(w)) or combine(self, w))
    cache = Forecaster(basis, times=grid, interval=6, warmup=4, corrector=False)
    values(cache, lambda t: smooth(t) + 0.2 * torch.randn(2, 40, dtype=torch.float64))
    assert len(served) == cache.trace.forecast
    for w in served:
        assert (np.abs(w).sum(1) <= (8 if basis == "auto" else 4) + 1e-9).all() and np.abs(w.sum(1) - 1).max() < 1e-9
    for step in cache.trace.steps:
        if step.kind == "forecast":
            rule = cache.rule
            names = [each.name for each in (rule.candidates if isinstance(rule, Auto) else (rule,))]
            assert set(step.rules["v"].split("/")) <= set(names) or step.fallbacks["v"]
    if basis in ("linear", "taylor"):
        free = Forecaster(basis, times=grid, interval=6, warmup=4, guard=float("inf"))
        served.clear()
        values(free, smooth)
        assert max(np.abs(w).sum() for w in served) > 4  # control


def test_half_precision_overflow_falls_back_to_reuse() -> None:
    cache = Forecaster("linear", steps=4, computed=[0, 1, 3])
    near = [torch.full((2, 3), v, dtype=torch.float16) for v in (30000.0, 60000.0)]
    for i in (0, 1):
        cache.step(i, lambda i=i: near[i])
    out = cache.step(2, lambda: None)
    assert torch.equal(out, near[1])
    step = cache.trace.steps[-1]
    assert step.rules == {"v": "reuse"} and "overflows torch.float16" in step.fallbacks["v"][0]
    safe = Forecaster(
        "linear", steps=4, computed=[0, 1, 3]
    )  # control: below the largest half number it is extrapolated
    for i in (0, 1):
        safe.step(i, lambda i=i: near[i] / 4)
    assert torch.equal(safe.step(2, lambda: None), torch.full((2, 3), 22500.0, dtype=torch.float16))
    assert not safe.trace.fallbacks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("basis", NAMES)
def test_dtype_in_dtype_out(basis: str, dtype: torch.dtype) -> None:
    how: dict[str, Any] = {"times": GRID, "interval": 3, "warmup": 4, "corrector": False}
    got = values(Forecaster(basis, **how), lambda t: smooth(t, dtype=dtype))
    exact = values(Forecaster(basis, **how), lambda t: smooth(t, dtype=dtype).double())
    eps = torch.finfo(dtype).eps
    for v, e in zip(got, exact, strict=True):
        assert v.dtype == dtype
        assert (v.double() - e).norm() <= 2 * eps * e.norm()


@pytest.mark.parametrize("basis", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30])
def test_constant_velocities_come_back(basis: str, value: float) -> None:
    v = torch.full((2, 5), value)
    cache = Forecaster(basis, times=GRID, interval=3, warmup=4)
    for got in values(cache, lambda _: v):
        assert torch.allclose(got, v, rtol=1e-6)
    assert all(np.isfinite([*s.forward_error.values(), *s.skill.values()]).all() for s in cache.trace.steps)
    assert max(s.skill.get("v", 0) for s in cache.trace.steps) < 10  # round-off is not an error


def test_finite_trace_of_a_velocity_that_starts_or_ends_at_zero() -> None:
    for order in (1, -1):
        seen = [torch.zeros(2, 5), torch.ones(2, 5), torch.ones(2, 5), torch.zeros(2, 5)][::order]
        cache = Forecaster("linear", steps=4, calls=4)
        with np.errstate(all="raise"):
            for i in range(4):
                cache.step(i, lambda i=i, seen=seen: seen[i])
        json.loads(cache.trace.to_json(), parse_constant=pytest.fail)  # neither NaN nor Infinity


# --- user-defined rules -----------------------------------------------------------------------------------------------
class HalfSlope:
    """A rule of one's own: half the slope of the last gap."""

    def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
        w = np.eye(len(times))[-1]
        if len(times) > 1:
            g = (target - times[-1]) / (times[-1] - times[-2])
            w[-2:] += (-g / 2, g / 2)
        return w


def test_a_rule_of_ones_own() -> None:
    cache = Forecaster(HalfSlope(), steps=6, computed=[0, 2, 5], batch_dim=None)
    got = values(cache, lambda t: torch.tensor([t, 2 * t], dtype=torch.float64))
    assert torch.allclose(got[3], torch.tensor([2.5, 5.0], dtype=torch.float64))
    assert cache.trace.steps[3].rules == {"v": "HalfSlope"} and not cache.trace.fallbacks

    class Damped(Rule):
        name, window, uses_gram = "damped", 2, False

        def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
            return HalfSlope().weights(times, target, gram)

    assert torch.equal(values(Forecaster(Damped(), steps=6, computed=[0, 2, 5]), lambda t: torch.tensor([t, 2 * t]))[3],
                       torch.tensor([2.5, 5.0]))  # fmt: skip


def test_a_rule_whose_weights_are_not_finite_falls_back() -> None:
    class Broken:
        def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
            return np.full(len(times), np.nan)

    cache = Forecaster(Broken(), steps=6, computed=[0, 2, 5])
    got = values(cache, lambda t: torch.tensor([[t]], dtype=torch.float64))
    assert float(got[3]) == pytest.approx(3.0) and float(got[4]) == pytest.approx(4.0)  # the line below it
    assert cache.trace.fallbacks == 3
    assert cache.trace.steps[3].rules == {"v": "linear1"}
    assert cache.trace.steps[3].fallbacks == {"v": ["Broken: weights are not finite"]}


# --- forecasting is a multistep method --------------------------------------------------------------------------------
def anchors_of(cache: Forecaster) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*cache.computed, len(cache.times) - 1]))


def test_reuse_is_euler_on_the_anchors() -> None:
    cache = Forecaster("reuse", times=GRID, interval=4)
    cached, _ = run(cache, flow, start())
    x = start()
    for a, b in anchors_of(cache):
        x = x + (GRID[b] - GRID[a]) * flow(x, GRID[a])
    assert torch.allclose(cached, x, rtol=1e-12, atol=1e-13)
    every, _ = run(None, flow, start())
    assert not torch.allclose(cached, every, rtol=1e-4)  # control


def test_linear_equals_its_multistep_coefficients() -> None:
    """``x_B = x_A + b_n v_n + b_{n-1} v_{n-1}``, the Riemann sum of AB2, on an even grid and gaps of 3."""
    grid = [i / 21 for i in range(22)]
    cache = Forecaster("linear", times=grid, computed=range(0, 21, 3), guard=float("inf"))
    cached, _ = run(cache, flow, start(), grid)
    x, before = start(), None
    for a, b in anchors_of(cache):
        v = flow(x, grid[a])
        h, m = 1 / 21, b - a
        slope = 0 if before is None else sum(k / 3 for k in range(m))  # sum of g over the gap
        x = x + h * (m * v + (slope * (v - before) if before is not None else 0))
        before = v
    assert torch.allclose(cached, x, rtol=1e-12)
    ab2 = 1.5 - sum(k / 3 for k in range(3)) / 3 - 1  # the exact integral of the slope is 1/2 a gap, the sum is 1/3
    assert ab2 == pytest.approx(1 / 6)


# --- cost -------------------------------------------------------------------------------------------------------------
class Large(TorchDispatchMode):
    """Counts new storages of at least ``least`` elements."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.seen, self.count = least, set[int](), 0
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in _pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().nbytes() >= self.least * t.element_size():
                where = t.untyped_storage().data_ptr()
                if where not in given and where not in self.seen:
                    self.count += 1
                    self.seen.add(where)
                    self.kept.append(t)  # so that an address is not used again
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("basis", ["linear", "dmd"])
def test_a_forecast_allocates_one_tensor(basis: str, batch: int, dtype: torch.dtype) -> None:
    d = 1_000_000
    cache = Forecaster(basis, steps=12, computed=[*range(6), 11])
    for i in range(6):
        cache.observe(i, smooth(i / 12, shape=(batch, d), dtype=dtype))
    with Large(d * batch) as large:
        cache.forecast(6)
    assert large.count == 1
    with Large(d * batch) as control:
        torch.ones(batch, d) * 2 + 1
    assert control.count == 3
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        cache.forecast(7)
    value = batch * d * torch.empty(0, dtype=dtype).element_size()
    most = max((e.self_cpu_memory_usage for e in record.events()), default=0)
    assert most <= value + 1024
    assert cache.nbytes <= 7 * value


@pytest.mark.parametrize("basis", NAMES)
@pytest.mark.parametrize("history", [4, 6, 8])
def test_state_is_at_most_the_history(basis: str, history: int) -> None:
    cache = Forecaster(basis, times=GRID, interval=3, warmup=4, history=history)
    values(cache, lambda t: smooth(t, shape=(2, 1000)))
    assert cache.nbytes <= history * 2 * 1000 * 8


def many(t: float) -> Tensor:
    """A hundred items in two branches of one tensor: smooth ones and scattered ones by turns."""
    scatter = torch.randn(100, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(round(1e4 * t)))
    return smooth(t, shape=(100, 8)) + 0.3 * scatter * (torch.arange(100) % 2)[:, None]


def test_a_large_batch_is_fitted_once_between_computed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = dmd.propagator
    monkeypatch.setattr(dmd, "propagator", lambda gram, *rest: fits.append(len(gram)) or fit(gram, *rest))

    def counts(both: bool) -> list[int]:
        fits.clear()
        each = []
        cache = Forecaster("dmd", steps=24, computed=[*range(7), 14, 23], guard=math.inf)
        for i in range(10):
            cache.step(i, lambda i=i: Guided(many(0.1 * i), many(9 - 0.1 * i)) if both else many(0.2 * i))
            each.append(len(fits))
        return each

    for both in (False, True):
        computed, first, *others = counts(both)[6:]
        assert first - computed == (200 if both else 100) and set(others) == {first}
    monkeypatch.setattr(dmd, "plain_fit", dmd.plain_fit.__wrapped__)  # control: nothing is remembered
    monkeypatch.setattr(dmd, "difference_fit", dmd.difference_fit.__wrapped__)
    computed, first, *others = counts(False)[6:]
    assert others == [first + 100, first + 200]


def test_items_with_the_same_choice_are_served_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Rule] = []
    serve = streams.guarded
    monkeypatch.setattr(streams, "guarded", lambda rule, *rest: asked.append(rule) or serve(rule, *rest))
    cache, alone = (Forecaster("auto", steps=24, computed=[*range(7), 14, 23]) for _ in range(2))
    for i in range(7):
        cache.observe(i, many(0.1 * i))
        alone.observe(i, many(0.1 * i)[:2])
    asked.clear()
    together = cache.forecast(7)
    choices = {rule.name for rule in asked}
    assert len(choices) == len(asked) > 1
    assert torch.equal(together[:2], alone.forecast(7))
    assert len(cache.trace.steps[-1].rules["v"].split("/")) == len(choices), "control"


# --- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give either times \(N \+ 1 grid times\) or steps \(N\), not both"),
        ({"times": GRID, "steps": 20}, "not both and not neither"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"times": GRID, "interval": 0}, "interval must be >= 1"),
        ({"times": GRID, "interval": 3, "calls": 5}, "one of interval, calls, computed, plan; got interval and calls"),
        ({"times": GRID, "computed": [0, 5], "calls": 5}, "got calls and computed"),
        ({"times": GRID, "calls": 5, "warmup": 3}, "warmup and end belong to interval"),
        ({"times": GRID, "calls": 21}, r"calls must be 1\.\.20 \(the steps that move the state\), got 21"),
        ({"times": [*GRID, GRID[-1]], "calls": 21}, r"calls must be 1\.\.20"),  # the last has dt = 0
        ({"times": GRID, "computed": [1, 5]}, "first effective step"),
        ({"times": GRID, "history": 0}, r"history must be 1\.\.8"),
        ({"times": GRID, "history": 9}, r"history must be 1\.\.8"),
        ({"times": GRID, "history": 3, "basis": "dmd"}, "history must be >= 4 for basis 'dmd'"),
        ({"times": GRID, "history": 2, "basis": "taylor", "order": 2}, "history must be >= 3 for basis 'taylor2'"),
        ({"times": GRID, "guard": 0.5}, "guard must be >= 1"),
        ({"times": GRID, "guard": float("nan")}, "guard"),
        ({"times": GRID, "basis": "newton"}, r"basis must be one of .* or an object with weights\(\), got 'newton'"),
        ({"times": [1.0, 0.0, 0.5]}, "rise or fall"),
        ({"times": [1.0]}, "N \\+ 1"),
        ({"times": GRID, "basis": "reuse", "order": 2}, "order=2 belongs to basis"),
        ({"times": GRID, "basis": "linear", "sigma": 0.5}, "sigma=0.5 belongs to basis"),
        ({"times": GRID, "basis": "linear", "order": 8}, "order must be"),
        ({"times": GRID, "basis": "hermite", "sigma": 1.5}, "sigma must lie"),
    ],
)
def test_argument_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecaster(**given)


def test_auto_recommends_fewer_steps_where_euler_does_as_well() -> None:
    with pytest.warns(UserWarning, match="auto with 5 of 20 calls.*fewer steps, or a plan"):
        cache = Forecaster(times=GRID, calls=5)
    assert "fewer steps" in cache.trace.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for silent in ({"calls": 6}, {"computed": [0, 9, 19]}, {"basis": "linear", "calls": 5}):  # controls
            assert not Forecaster(**{"times": GRID, **silent}).trace.notes
        assert not Forecaster(steps=5, interval=1).trace.notes


@pytest.mark.filterwarnings("ignore:forecache. auto with")
def test_number_of_calls() -> None:
    assert Forecaster("dmd", steps=50, interval=5, warmup=4).computed == (0, 1, 2, 3, *range(8, 49, 5), 49)
    for calls in range(1, 51):
        cache = Forecaster(steps=50, calls=calls)
        values(cache, lambda t: torch.ones(1, 2))
        assert cache.trace.computed == calls
    published = Forecaster("linear", steps=50, interval=5)
    assert len(Forecaster("auto", steps=50, interval=5).computed) == len(published.computed)


# --- plans ------------------------------------------------------------------------------------------------------------
def plan(**changes: Any) -> Plan:
    body: dict[str, Any] = {
        "times": tuple(float(t) for t in range(11)),
        "computed": (0, 2, 4, 7, 9),
        "weights": {3: Weights((0.25, 0.75)), 5: Weights((0.5, -1.5, 2.0)), 6: Weights((1.0,))},
        "made_for": {"model": "abc", "guidance": 3.0, "shape": (16, 64)},
    }
    return Plan(**{**body, **changes})


def made_for(**changes: Any) -> dict[str, Any]:
    return {"model": "abc", "guidance": 3.0, "shape": (16, 64), **changes}


def test_plan_schedule_and_weights_are_served_exactly() -> None:
    cache = Forecaster("linear", steps=10, plan=plan(), made_for=made_for())
    assert cache.computed == (0, 2, 4, 7, 9)
    v = {i: torch.randn(2, 5, dtype=torch.float64) for i in range(10)}
    got = [cache.step(i, lambda i=i: v[i]) for i in range(10)]
    assert torch.allclose(got[3], 0.25 * v[0] + 0.75 * v[2], rtol=1e-14)
    assert torch.allclose(got[5], 0.5 * v[0] - 1.5 * v[2] + 2 * v[4], rtol=1e-14)
    assert torch.equal(got[6], v[4])
    assert torch.allclose(got[8], v[7] + (v[7] - v[4]) / 3, rtol=1e-14)  # no weights: the rule
    steps = {s.index: s for s in cache.trace.steps}
    assert steps[3].rules == {"v": "plan"} and not steps[3].fallbacks
    assert steps[8].rules == {"v": "linear1"} and steps[8].fallbacks == {"v": ["plan: no weights for this step"]}


def test_a_plan_of_a_schedule_alone_is_the_rule() -> None:
    v = {i: torch.randn(2, 5, dtype=torch.float64) for i in range(10)}
    planned = Forecaster("linear", steps=10, plan=plan(weights={}), made_for=made_for())
    named = Forecaster("linear", steps=10, computed=(0, 2, 4, 7, 9))
    for i in range(10):
        assert torch.equal(planned.step(i, lambda i=i: v[i]), named.step(i, lambda i=i: v[i]))
    assert planned.trace.to_dict() == named.trace.to_dict()


@pytest.mark.parametrize("basis", NAMES)
def test_every_rule_serves_what_a_plan_leaves_open(basis: str) -> None:
    """On the clock of that rule, whatever the plan's is."""
    grid = [t / 40 for t in range(11)]
    open_ = Forecaster(
        basis, times=grid, plan=plan(times=tuple(grid), weights={1: Weights((1.0,))}), made_for=made_for()
    )
    named = Forecaster(basis, times=grid, computed=(0, 2, 4, 7, 9), corrector=False)
    for i in range(10):
        a, b = (c.step(i, lambda i=i: smooth(10 * grid[i])) for c in (open_, named))
        assert i == 1 or torch.allclose(a, b, rtol=1e-12)


def test_planned_weights_meet_the_guard() -> None:
    cache = Forecaster("linear", steps=10, plan=plan(weights={3: Weights((-4.0, 5.0))}), made_for=made_for())
    values(cache, lambda t: torch.ones(2) * t)
    assert "plan: |w|_1 = 9 > 4" in cache.trace.steps[3].fallbacks["v"][0]


def test_a_plan_corrects_a_computed_step() -> None:
    """The weights of step 9 are of the snapshots of 4, 7 and 9 itself."""
    ends = plan(weights={9: Weights((0.25, -0.75, 1.5), state=2.0)})
    cache = Forecaster("linear", steps=10, plan=ends, made_for=made_for())
    x = torch.ones(2, 40, dtype=torch.float64)
    found = [cache.step(i, lambda i=i: smooth(i), state=x) for i in range(10)]
    assert torch.equal(found[7], smooth(7)), "no other computed step"
    assert torch.allclose(found[9], 0.25 * smooth(4) - 0.75 * smooth(7) + 1.5 * smooth(9) + 2 * x)
    assert cache.trace.steps[9].kind == "computed" and cache.trace.steps[9].rules == {"v": "plan"}
    assert not cache.trace.steps[7].rules
    plain = Forecaster("linear", steps=10, computed=ends.computed)
    values(plain, smooth)
    audits = [each.trace.steps[9].forward_error["v"] for each in (plain, cache)]
    assert np.isclose(*audits, rtol=1e-9), "the audit is of the forecast, not of the correction"
    with pytest.raises(ValueError, match="state must be given at step 9"):
        values(Forecaster("linear", steps=10, plan=ends, made_for=made_for()), smooth)


@pytest.mark.parametrize(
    ("weights", "reason"), [((0.0,) * 4 + (1.0,), "4 of 5 snapshots"), ((-4.0, 5.0), "|w|_1 = 9 > 4")]
)
def test_a_correction_that_is_not_possible_is_named(weights: tuple[float, ...], reason: str) -> None:
    cache = Forecaster("linear", steps=10, plan=plan(weights={9: Weights(weights)}), made_for=made_for())
    if len(weights) == 5:  # a run that is joined late has fewer snapshots
        values_ = [cache.step(i, lambda i=i: smooth(i)) for i in range(3, 10)]
    else:
        values_ = values(cache, smooth)
    assert torch.equal(values_[-1], smooth(9))
    assert reason in cache.trace.steps[-1].fallbacks["v"][0]


def test_plan_longer_than_the_history() -> None:
    with pytest.raises(ValueError, match="history must be >= 3"):
        Forecaster("linear", steps=10, plan=plan(), made_for=made_for(), history=2)


@pytest.mark.parametrize(
    ("how", "key", "message"),
    [
        ({"steps": 11}, {}, "steps: plan 10, run 11"),
        ({"times": [t**1.1 for t in range(11)]}, {}, "times: another grid"),
        ({"times": list(range(10, -1, -1))}, {}, "times: another grid"),
        ({"steps": 10}, {"model": "xyz"}, "model: plan 'abc', run 'xyz'"),
        ({"steps": 10}, {"guidance": 3.5}, r"guidance: plan 3\.0, run 3\.5"),
        ({"steps": 10}, {"stage": 1}, "stage: plan None, run 1"),
    ],
)
def test_a_plan_of_something_else_is_refused(how: dict[str, Any], key: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecaster(plan=plan(), made_for=made_for(**key), **how)
    Forecaster(plan=plan(), made_for=made_for(), steps=10)  # control


def test_every_difference_is_named() -> None:
    with pytest.raises(ValueError, match=r"guidance: .*; model: "):
        Forecaster(plan=plan(), steps=10, made_for=made_for(model="x", guidance=1))
    with pytest.raises(ValueError, match=r"guidance: plan 3\.0, run None"):
        Forecaster(plan=plan(), steps=10)
    with pytest.raises(ValueError, match="calls and plan"):
        Forecaster(plan=plan(), steps=10, made_for=made_for(), calls=3)


def test_plan_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    original = plan(times=tuple(0.1 * t for t in range(11)), statistics={"drift": 1 / 3})
    original.save(path)
    again = Plan.load(path)
    assert (again.times, again.computed, again.weights) == (original.times, original.computed, original.weights)
    assert again.statistics == original.statistics
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    Forecaster(plan=path, times=original.times, made_for=made_for())  # the key still matches, tuples and all
    with pytest.raises(ValueError, match="shape"):
        Forecaster(plan=str(path), times=original.times, made_for=made_for(shape=(16, 65)))


def test_a_plan_that_cannot_be_saved_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    before = path.read_text()
    with pytest.raises(TypeError):
        plan(statistics={"x": object()}).save(path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"forecache_plan": 99}', '{"forecache_plan": 1}', "\x00", "null",
                                  '{"forecache_plan": 1, "times": 3, "computed": [], "weights": {}}'])  # fmt: skip
def test_files_that_are_no_plans(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a plan"):
        Plan.load(path)
    with pytest.raises(OSError):
        Plan.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": (1.0,)}, "two finite"),
        ({"times": (0.0, float("nan"))}, "two finite"),
        ({"computed": ()}, "strictly increasing"),
        ({"computed": (0, 4, 2)}, "strictly increasing"),
        ({"computed": (0, 10)}, r"0\.\.9"),
        ({"weights": {0: Weights((1.0,))}}, "no snapshot before it"),
        ({"weights": {10: Weights((1.0,))}}, "no snapshot before it"),
        ({"weights": {3: Weights((0.0, 0.0))}}, "sum to 1"),
        ({"weights": {3: Weights(())}}, "sum to 1"),
        ({"weights": {3: Weights((float("nan"), 1.0))}}, "must be finite"),
        ({"weights": {3: Weights((0.5, 0.25, 0.25))}}, "more weights than"),
        ({"weights": {3: Weights((1.0,), difference=(1.0, 2.0, 3.0))}}, "more weights than"),
        ({"weights": {3: Weights((1.0,), state=float("inf"))}}, "must be finite"),
        ({"edges": (3,)}, "edges must be computed steps"),
    ],
)
def test_impossible_plans(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


# --- the trace --------------------------------------------------------------------------------------------------------
def test_forward_errors_are_those_of_the_forecasts() -> None:
    cache = Forecaster("linear", times=GRID, computed=(0, 1, 3, 4, 7, 9, 14, 15, 19))
    seen: list[tuple[int, Tensor]] = []
    for i in range(20):
        cache.step(i, lambda i=i: smooth(GRID[i]))
        if i not in cache.computed:
            continue
        if len(seen) >= 2:
            (s, a), (t, b) = seen[-2:]
            g = min((i - t) / (t - s), 1.5)
            truth = smooth(GRID[i])
            error = (truth - b - g * (b - a)).norm(dim=1)
            step = cache.trace.steps[-1]
            assert step.forward_error["v"] == pytest.approx(float((error / truth.norm(dim=1)).max()), rel=1e-6)
            assert step.skill["v"] == pytest.approx(float((error / (truth - b).norm(dim=1)).max()), rel=1e-6)
        seen.append((i, smooth(GRID[i])))


def test_a_rule_reads_the_clock_that_it_asks_for() -> None:
    class OnTime(Linear):
        clock = "time"

    for rule, clock in ((Linear(1), range(21)), (OnTime(1), GRID)):
        cache = Forecaster(rule, times=GRID, computed=(0, 4, 19))
        for i in (0, 4):
            cache.observe(i, torch.full((3,), 1.0 + clock[i], dtype=torch.float64))
        assert torch.allclose(cache.forecast(6), torch.full((3,), 1.0 + clock[6], dtype=torch.float64), rtol=1e-12)


def test_the_span_of_a_basis_is_that_of_its_clock() -> None:
    """Chebyshev's argument runs over -1 .. 1 while the run does; an instance says itself what its range is."""
    named, own, wrong = (
        Forecaster(basis, times=GRID, interval=3, warmup=4)
        for basis in ("chebyshev", Chebyshev(span=(0.0, 20.0)), Chebyshev(span=(GRID[0], GRID[-1])))
    )
    for i in range(20):
        a, b, c = (cache.step(i, lambda i=i: smooth(GRID[i])) for cache in (named, own, wrong))
        assert torch.equal(a, b)
    assert named.trace.to_dict() == own.trace.to_dict()
    assert wrong.trace.to_dict() != named.trace.to_dict(), c  # control
    grouped = Forecaster("reuse", times=GRID, interval=3, groups={"both": Group(("a", "b"), basis="chebyshev")})
    grouped.observe(0, {"a": smooth(0.0), "b": smooth(0.0)})
    assert grouped.history.streams["both"].rule == Chebyshev(span=(0.0, 20.0))


def test_trace_to_json() -> None:
    cache = Forecaster("dmd", times=[*GRID, GRID[-1]], interval=3, warmup=4)
    values(cache, smooth)
    body = json.loads(cache.trace.to_json())
    assert body["computed"] == cache.trace.computed == len(cache.computed)
    assert [s["kind"] for s in body["steps"]].count("still") == 1
    assert body["computed"] + body["forecast"] + 1 == len(body["steps"]) == 21
    assert [s["index"] for s in body["steps"]] == list(range(21))
