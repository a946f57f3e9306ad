"""A plan at work: its columns under the guard, on the snapshots that they were made for, whatever things are named."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch

import device_standin
from device_standin import put, waits
from forecache import Forecaster, Group, Guided, Plan, Weights, tree
from forecache.plan import GroupWeights
from forecache.rules import Linear, Reuse

STEPS = 6
TIMES = tuple(map(float, range(STEPS + 1)))
COMPUTED = (0, 1, 3, 5)
HALF, WIDE = torch.float16, torch.float32


def plan(weights: dict[int, Weights], **others: Any) -> Plan:
    return Plan(TIMES, COMPUTED, weights, **others)


def value(i: int, dtype: torch.dtype = WIDE, size: float = 1.0, items: int = 1) -> torch.Tensor:
    a, b = torch.rand(2, items, 4, generator=torch.Generator().manual_seed(3)) / 2 + 0.5
    return (size * (a + 0.01 * i * b)).to(dtype)


def run(cache: Forecaster, compute: Any = value, state: Any = None) -> list[Any]:
    return [cache.step(i, lambda i=i: compute(i), state(i) if callable(state) else state) for i in range(STEPS)]


def reasons(cache: Forecaster, step: int, stream: str = "v") -> list[str]:
    return next(each for each in cache.trace.steps if each.index == step).fallbacks.get(stream, [])


def finite(served: list[Any]) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for each in served for leaf in tree.flatten(each)[0].values())


# --- the guard --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (Weights((-1.0, 2.0), 8.1), "plan: |h state| = 8.1 > 8"),
        (Weights((-1.0, 2.0), 1e39), "plan: |h state| = 1e+39 > 8"),
        (Weights((-1.0, 2.0), 0.0, (-4.0, 5.0)), "plan: |difference|_1 = 9 > 8"),
        (Weights((-4.0, 5.0), 0.1), "plan: |w|_1 = 9 > 4"),
        (Weights((-1.0, 2.0), 7.9, (-3.0, 4.0)), ""),
    ],
)
def test_columns_beyond_the_guard_are_not_served(weights: Weights, reason: str) -> None:
    def both(i: int) -> Guided:
        return Guided(value(i), 0.5 * value(i))

    cache, rule = (Forecaster("linear", times=TIMES, plan=plan(w)) for w in ({2: weights}, {}))
    found, without = (run(each, both, value(0)) for each in (cache, rule))
    assert reasons(cache, 2, "uncond")[:1] == ([reason] if reason else [])
    assert torch.equal(found[2].uncond, without[2].uncond) == bool(reason), "the rule serves instead"
    bold = Forecaster("linear", times=TIMES, plan=plan({2: weights}), guard=math.inf)
    run(bold, both, value(0))
    assert bold.trace.steps[2].rules["cond"] == ("reuse" if weights.state > 1e38 else "plan")


def test_a_step_is_part_of_the_size_of_the_state() -> None:
    """What the sampler adds is ``h state x``."""
    fine = tuple(t / 100 for t in TIMES)
    cache = Forecaster("linear", times=fine, plan=Plan(fine, COMPUTED, {2: Weights((1.0,), 700.0)}))
    run(cache, state=value(0))
    assert not reasons(cache, 2) and cache.trace.steps[2].rules == {"v": "plan"}
    close = Forecaster("linear", times=fine, plan=Plan(fine, COMPUTED, {2: Weights((1.0,), 700.0)}), guard=6.0)
    run(close, state=value(0))
    assert reasons(close, 2)[0] == "plan: |h state| = 7 > 6"


# --- sums that are not finite -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [2, 5])
@pytest.mark.parametrize(
    ("dtype", "size", "state", "weight"),
    [
        (HALF, 6e4, 6e4, 1.0),
        (HALF, 1.0, 1.0, 1e5),
        (torch.bfloat16, 1.0, 3e38, 7.0),
        (WIDE, 1.0, 2.0, 3e38),
        (WIDE, 1.0, 1.0, 1e39),
        (torch.float64, 1.0, 1e300, 1e300),
        (WIDE, 1.0, math.nan, 0.5),
        (WIDE, 1.0, math.inf, 0.5),
    ],
)
def test_a_sum_that_is_not_finite_is_replaced(
    at: int, dtype: torch.dtype, size: float, state: float, weight: float
) -> None:
    """At a skipped step by the newest snapshot; at the last computed one, by what the network gave."""
    weights = plan({at: Weights((-0.5, 1.5), weight)})
    cache = Forecaster("linear", times=TIMES, plan=weights, guard=math.inf)
    x = torch.full((1, 4), state, dtype=dtype)
    served = run(cache, lambda i: value(i, dtype, size), x)
    assert finite(served) and reasons(cache, at) == ["plan: not finite"]
    assert cache.trace.steps[at].rules == {"v": "reuse"}
    assert torch.equal(served[at], value(1 if at == 2 else at, dtype, size))
    calm = Forecaster("linear", times=TIMES, plan=plan({at: Weights((-0.5, 1.5), 0.01)}))
    run(calm, lambda i: value(i, dtype), value(0, dtype))
    assert not reasons(calm, at) and calm.trace.steps[at].rules == {"v": "plan"}, "control"


def test_a_difference_that_overflows_is_replaced() -> None:
    cache = Forecaster("linear", times=TIMES, plan=plan({2: Weights((1.0,), 0.0, (-1.0, 2.0))}))
    served = run(cache, lambda i: Guided(value(i, HALF, 6e4), -value(i, HALF, 6e4)))
    assert finite(served) and reasons(cache, 2, "uncond") == ["plan: not finite"] and not reasons(cache, 2, "cond")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_an_item_that_is_not_finite_does_not_touch_another(axis: int) -> None:
    """A batch of two equals two runs, where one overflows: by a column of the plan, or by the sum of snapshots."""

    def served(k: int | None, columns: bool) -> tuple[list[torch.Tensor], Forecaster]:
        def at(i: int) -> torch.Tensor:
            large = torch.full((1, 4), 5e4 if i or columns else 1e4, dtype=HALF)
            two = torch.cat((large, value(i, HALF))).movedim(0, axis)
            return two if k is None else two.narrow(axis, k, 1)

        weights = {2: Weights((-0.5, 1.5), 2.0) if columns else Weights((-1.5, 2.5))}
        cache = Forecaster("linear", times=TIMES, plan=plan(weights), batch_dim=axis)
        return run(cache, at, at(0)), cache

    for columns in (True, False):
        both, cache = served(None, columns)
        one, two = (served(k, columns) for k in (0, 1))
        assert torch.equal(both[2], torch.cat((one[0][2], two[0][2]), axis)), columns
        assert cache.trace.steps[2].rules == {"v": "reuse/plan"} and two[1].trace.steps[2].rules == {"v": "plan"}


def test_on_a_device_nothing_waits_and_the_trace_hears_of_it_with_the_next_value() -> None:
    wrong = plan({2: Weights((1.0,), 0.5), 4: Weights((1.0,), 0.5)})
    cache, waited = Forecaster("linear", times=TIMES, plan=wrong), []
    with device_standin.device() as counter:
        for i in range(5):
            with waits(counter, waited):
                got = cache.step(i, lambda i=i: put(value(i)), put(torch.full((1, 4), math.nan)))
            if i == 2:
                assert torch.equal(got.hidden, value(1)), "it is served well at once"
                assert not reasons(cache, 2) and cache.trace.steps[2].rules == {"v": "plan"}
            if i == 3:
                assert reasons(cache, 2) == ["plan: not finite"] and cache.trace.steps[2].rules == {"v": "reuse"}
        assert waited == [1, 1, 0, 1, 0] and not reasons(cache, 4)
        cache.close()
    assert reasons(cache, 4) == ["plan: not finite"], "a run that is broken off hears of it when it is closed"


def test_close_works_where_the_device_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Forecaster("linear", times=TIMES, plan=plan({2: Weights((1.0,), 0.5)}))
    with device_standin.device():
        for i in range(3):
            cache.step(i, lambda i=i: put(value(i)), put(value(0)))
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (_ for _ in ()).throw(RuntimeError("device lost")))
        cache.close()
    assert cache.nbytes == 0


# --- the snapshots that the weights are for ---------------------------------------------------------------------------
def test_weights_serve_no_other_snapshots_than_those_they_were_made_for() -> None:
    """A run that begins late has another window until its computed steps are the plan's again."""
    weights = {i: Weights((-0.25, 1.25)) for i in (2, 4, 6, 8)}
    ten = tuple(map(float, range(11)))
    made = Plan(ten, (0, 1, 3, 5, 7, 9), {**weights, 9: Weights((0.1, 0.1, 0.8))})
    cache, rule = Forecaster("linear", times=ten, plan=made), Forecaster("linear", times=ten, computed=made.computed)
    late, named = ([each.step(i, lambda i=i: value(i)) for i in range(2, 10)] for each in (cache, rule))
    assert reasons(cache, 2) == reasons(cache, 6) == reasons(cache, 8) == []
    assert reasons(cache, 4) == ["plan: other snapshots than the plan's"]  # 2 and 3, not 1 and 3
    assert torch.equal(late[2], named[2]) and not torch.equal(late[4], named[4])
    assert torch.allclose(late[4], -0.25 * value(3) + 1.25 * value(5))
    begins = Forecaster("linear", times=ten, plan=made)
    last = [begins.step(i, lambda i=i: value(i)) for i in (6, 7, 8, 9)][-1]
    assert reasons(begins, 9) == ["plan: other snapshots than the plan's"] and torch.equal(last, value(9))


def test_differences_are_of_snapshots_of_both_branches() -> None:
    """Where guidance was off at an anchor, the history of ``uncond`` is shorter than that of ``cond``."""
    cache = Forecaster("linear", times=TIMES, plan=plan({4: Weights((-0.5, 1.5), 0.0, (-0.5, 1.5))}))
    served = run(cache, lambda i: Guided(value(i), None if i == 1 else 0.5 * value(i)))
    assert reasons(cache, 4, "uncond")[0] == "plan: 1 of 2 snapshots" and not reasons(cache, 4, "cond")
    assert torch.equal(served[4].uncond, 0.5 * value(3)) and cache.trace.steps[4].rules["cond"] == "plan"


def test_an_edge_shortens_the_window_that_a_plan_expects() -> None:
    made = plan({4: Weights((1.0,), 0.1)}, edges=(3,))
    cache = Forecaster("linear", times=TIMES, plan=made)
    served = run(cache, state=value(0))
    assert not reasons(cache, 4) and torch.allclose(served[4], value(3) + 0.1 * value(0))


# --- names ------------------------------------------------------------------------------------------------------------
class Impostor(Linear):
    """A rule that calls itself as the trace calls a plan."""

    name = "plan"  # type: ignore[assignment]


@pytest.mark.parametrize("weights", [{}, {4: Weights((1.0,), 0.5)}, {5: Weights((1.0,), 0.5)}])
def test_a_rule_may_be_called_plan(weights: dict[int, Weights]) -> None:
    caches = [Forecaster(rule, times=TIMES, plan=plan(weights)) for rule in (Impostor(1), Linear(1))]
    mine, theirs = (run(cache, state=value(0)) for cache in caches)
    assert all(map(torch.equal, mine, theirs)) and caches[0].trace.steps[2].rules == {"v": "plan"}
    assert all(map(torch.equal, run(Forecaster(Impostor(1), times=TIMES, computed=COMPUTED)),
                   run(Forecaster(Linear(1), times=TIMES, computed=COMPUTED))))  # fmt: skip


class Own(NamedTuple):
    """A velocity whose fields are called as the branches of guidance are, and are none."""

    cond: torch.Tensor
    uncond: torch.Tensor


@pytest.mark.parametrize("name", ["plain", "uncond_scale", "unconditional", "cond_scale", "uncond", "cond"])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_a_name_makes_no_branch(name: str, group: bool, guided: bool) -> None:
    """Leaves and groups of any name have the column of the state that others have."""
    key = "leaf" if group else name
    groups = {name: Group(("leaf",), Reuse())} if group else None
    w = Weights((-0.5, 1.5), 0.5)
    made = plan({2: w}, groups={name: GroupWeights(("leaf",), {2: w})} if group else {})

    def at(i: int) -> Any:
        leaves = {"shape": value(i), key: 2 * value(i)}
        return Guided(leaves, {k: 3 * v for k, v in leaves.items()}) if guided else leaves

    x = {"shape": value(7), key: value(9)}
    cache = Forecaster("linear", times=TIMES, plan=made, groups=groups)
    served = run(cache, at, x)[2]
    cond = served.cond if guided else served
    assert torch.allclose(cond["shape"], -0.5 * value(0) + 1.5 * value(1) + 0.5 * value(7))
    assert torch.allclose(cond[key], -value(0) + 3 * value(1) + 0.5 * value(9))
    if guided:
        assert torch.allclose(served.uncond[key], 3 * (-value(0) + 3 * value(1)) + 0.5 * value(9)), "both branches"
    assert set(cache.trace.steps[2].rules.values()) == {"plan"} and not cache.trace.steps[2].fallbacks


def test_fields_called_as_branches_are_none() -> None:
    cache = Forecaster("linear", times=TIMES, plan=plan({2: Weights((1.0,), 0.5)}))
    served = run(cache, lambda i: Own(value(i), 2 * value(i)), Own(value(7), value(9)))
    assert torch.allclose(served[2].uncond, 2 * value(1) + 0.5 * value(9))
    assert set(cache.trace.steps[2].rules) == {".cond", ".uncond"}


def test_a_group_that_falls_back_leaves_the_columns_of_the_others() -> None:
    """Weights without the column of the state, which they were fitted with, would be neither the plan nor a rule."""
    made = plan(
        {2: Weights((-0.5, 1.5), 0.5)}, groups={"pose": GroupWeights(("scale",), {2: Weights((-4.0, 5.0), 0.5)})}
    )
    cache = Forecaster("reuse", times=TIMES, plan=made)
    served = run(cache, lambda i: {"shape": value(i), "scale": value(i)}, {"shape": value(7), "scale": value(9)})
    assert torch.allclose(served[2]["shape"], -0.5 * value(0) + 1.5 * value(1) + 0.5 * value(7))
    assert torch.equal(served[2]["scale"], value(1)) and reasons(cache, 2, "pose") == ["plan: |w|_1 = 9 > 4"]


class Key:
    def __repr__(self) -> str:
        return "key"


def test_keys_that_are_written_alike_are_two_leaves() -> None:
    one, two, three = Key(), Key(), Key()
    given = {one: torch.ones(2), two: torch.zeros(2), three: 5, "key": torch.ones(1)}
    leaves, structure = tree.flatten(given)
    assert list(leaves) == ["[key]", "[key]#2", "['key']"] and [tree.key(name) for name in leaves] == ["key"] * 3
    again = tree.unflatten(leaves, structure)
    assert all(again[key] is given[key] for key in given)
    cache = Forecaster("linear", times=TIMES, computed=COMPUTED)
    served = run(cache, lambda i: {one: value(i), two: -value(i)})
    assert all(torch.equal(each[two], -each[one]) for each in served)
    assert len(tree.flatten(Guided({one: given[one], two: given[two]}, None))[0]) == 2


# --- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:forecache. plan not used")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("made_for", [{}, {"model": "other"}])
@pytest.mark.parametrize(
    "other", [{"calls": 3}, {"interval": 2}, {"computed": [0, 3]}, {"warmup": 2}, {"end": 4}, {"edges": [3]}]
)
def test_a_plan_and_another_schedule_are_refused_at_once(other: Any, made_for: Any, strict: bool) -> None:
    if not strict and made_for and "edges" in other:
        pytest.skip("they are the caller's where the plan is not used")
    with pytest.raises(ValueError, match=r"plan|belong to interval"):
        Forecaster("linear", times=TIMES, plan=plan({}), made_for=made_for, strict=strict, **other)
