"""Leaf groups: one history, one rule and one set of weights for the leaves of a pose, others for the shape."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from forecache import Calibration, Forecaster, Group, Guided, Plan, calibrate, tree
from forecache.calibration.tapes import record
from forecache.groups import WHOLE, Groups, combine, parts, relative
from forecache.rules import Linear, Reuse, Rule

POSE = {"pose": ("rotation", "scale")}


class Field(NamedTuple):
    pose: torch.Tensor
    rest: dict[str, torch.Tensor]


def value(batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    sizes = {"shape": (batch, 5, 8), "rotation": (batch, 1, 6), "scale": (batch, 1, 3)}
    return {name: torch.randn(*size, generator=made) for name, size in sizes.items()}


# --- packing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, 1, None])
def test_packing_is_undone(axis):
    leaves, _ = tree.flatten({name: leaf.movedim(0, axis or 0) for name, leaf in value().items()})
    groups = Groups(POSE, axis)
    packed = groups.pack(leaves)
    assert list(packed) == ["pose", "['shape']"] or list(packed) == ["['shape']", "pose"]
    back = groups.unpack(packed, {name: leaf.shape for name, leaf in leaves.items()})
    assert back.keys() == leaves.keys() and all(torch.equal(back[name], leaves[name]) for name in leaves)
    assert packed["pose"].shape == {0: (2, 9), 1: (9, 2), None: (18,)}[axis]


def test_no_groups_pack_nothing():
    leaves = tree.flatten(value())[0]
    assert all(a is b for a, b in zip(Groups({}, 0).pack(leaves).values(), leaves.values(), strict=True))


def test_a_leaf_is_found_by_the_last_key_of_its_path():
    nested = Guided({"layout": {"scale": torch.ones(1, 3)}, "shape": torch.ones(1, 5)}, None)
    leaves = tree.flatten(nested)[0]
    assert list(Groups({"pose": ["scale"]}, 0).pack(leaves)) == ["cond.pose", "cond['shape']"]
    assert [tree.key(name) for name in ("v", "[0]", "a.b", "x['6d.r']", "cond['a']['b']")] == [
        "v",
        "0",
        "b",
        "6d.r",
        "b",
    ]
    assert [tree.branch(name) for name in ("cond", "uncond['a']", "condition", "['cond']")] == [
        "cond",
        "uncond",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("groups", "axis", "message"),
    [
        ({"pose": ()}, 0, "a group needs an identifier and leaves, got 'pose'"),
        ({"": ("scale",)}, 0, "a group needs an identifier and leaves, got ''"),
        ({"pose.left": ("scale",)}, 0, "a group needs an identifier and leaves, got 'pose.left'"),
        ({"a": ("scale",), "b": ("scale",)}, 0, "leaf 'scale' is in 'a' and in 'b'"),
        (POSE, 2, "batch_dim must be 0, 1 or None with groups, got 2"),
    ],
)
def test_groups_are_checked(groups, axis, message):
    with pytest.raises(ValueError, match=message):
        Forecaster(steps=4, calls=3, groups=groups, batch_dim=axis)


def test_leaves_of_a_group_must_exist_and_agree():
    cache = Forecaster(steps=4, calls=3, groups=POSE)
    given = value()
    with pytest.raises(ValueError, match="no leaf rotation in the value"):
        cache.observe(0, {"shape": given["shape"], "scale": given["scale"]})
    with pytest.raises(ValueError, match=r"leaves of 'pose' must agree in dtype, device and items.*float64"):
        cache.observe(0, {**given, "scale": given["scale"].double()})
    with pytest.raises(ValueError, match=r"must agree.*\(3, 1, 3\)"):
        cache.observe(0, {**given, "scale": value(3)["scale"]})
    assert not cache.trace.steps, "nothing was taken"


def test_a_leaf_outside_of_a_group_must_not_bear_its_name():
    """As a field of a named tuple it would be taken for the stream of the group."""
    velocity = Field(torch.ones(1, 5), {"scale": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="'pose' is also the name of a leaf outside of it, 'pose'"):
        Forecaster(steps=4, calls=3, groups={"pose": ("scale",)}).observe(0, velocity)


# --- forecasting ------------------------------------------------------------------------------------------------------
def moving(t: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """A shape that is quadratic in t, a pose that is linear."""
    a, b, c = (value(2, seed + k) for k in range(3))
    bend = {"shape": 1.0, "rotation": 0.0, "scale": 0.0}
    return {name: a[name] + t * b[name] + bend[name] * t * t * c[name] for name in a}


def test_a_group_has_a_rule_of_its_own():
    cache = Forecaster(Linear(2), steps=8, computed=(0, 2, 4, 7), groups={"pose": Group(POSE["pose"], Reuse())})
    found = [cache.step(i, lambda i=i: moving(float(i))) for i in range(8)]
    assert torch.allclose(found[5]["shape"], moving(5.0)["shape"], rtol=1e-4, atol=1e-3)
    assert torch.allclose(found[5]["scale"], moving(4.0)["scale"]), "reused"
    assert cache.trace.steps[5].rules == {"['shape']": "linear2", "pose": "reuse"}
    assert cache.trace.steps[7].forward_error.keys() == {"['shape']", "pose"}


class ByGram(Rule):
    """Weights that depend on the snapshots themselves."""

    name, window, uses_gram = "by gram", 2, True

    def weights(self, times, target, gram):
        ratio = gram[-1, -2] / gram[-1, -1] / 2 if len(times) > 1 else 0.0
        return np.array([-ratio, 1 + ratio])[-len(times) :]


def test_the_groups_of_one_item_do_not_touch_another():
    """Control: as one item, they do."""

    def at(rate: float, axis: int | None) -> torch.Tensor:
        cache = Forecaster(ByGram(), steps=6, computed=(0, 1, 5), groups=POSE, batch_dim=axis)
        size = torch.tensor([2.0, rate]).view(2, 1, 1)
        return [cache.step(i, lambda i=i: {k: v * size**i for k, v in value().items()}) for i in range(4)][-1]["scale"]

    assert torch.equal(at(0.5, 0)[0], at(3.0, 0)[0]) and not torch.equal(at(0.5, 0)[1], at(3.0, 0)[1])
    assert not torch.equal(at(0.5, None)[0], at(3.0, None)[0])


def test_packing_or_not_is_one_forecast_for_a_rule_without_a_gram_matrix():
    caches = [Forecaster("linear", steps=8, calls=4, groups=groups) for groups in ({}, POSE)]
    plain, packed = ([c.step(i, lambda i=i: moving(float(i))) for i in range(8)] for c in caches)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for a, b in zip(plain, packed, strict=True) for k in a)


# --- plans ------------------------------------------------------------------------------------------------------------
STEPS = 20
GRID = np.linspace(0, 1, STEPS + 1)
MIX = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) / 6


def velocity(x: dict[str, torch.Tensor], t: float) -> dict[str, torch.Tensor]:
    """The shape turns slowly; the small pose turns fast and otherwise."""
    shape = x["shape"].flatten(1)
    pull = torch.tanh(shape @ MIX).view_as(x["shape"]) * (2 - t)
    spin = shape.mean(-1).view(-1, 1, 1)
    return {
        "shape": pull - x["shape"] * np.cos(3 * t),
        "rotation": (x["rotation"].roll(1, -1) * 3 * np.cos(9 * t) + spin) * 0.02,
        "scale": (x["scale"].roll(1, -1) * 3 * np.sin(8 * t) - spin) * 0.02,
    }


def run(seed, cache):
    x = {name: leaf * (0.02 if name in POSE["pose"] else 1) for name, leaf in value(1, seed).items()}
    for i in range(STEPS):
        v = cache.step(i, lambda i=i, x=x: velocity(x, GRID[i]), state=x)
        x = {name: leaf + float(GRID[i + 1] - GRID[i]) * v[name] for name, leaf in x.items()}
    return x


def test_parts_find_the_leaves_of_a_group():
    given = value()
    where = parts(given, POSE)
    vector = torch.cat([leaf.flatten() for leaf in tree.flatten(given)[0].values()])
    pose = torch.cat([given[name].flatten() for name in given if name in POSE["pose"]])
    assert where.keys() == {"pose", ""} and torch.equal(vector[where["pose"]].sort()[0], pose.sort()[0])
    assert parts(given, {}) == WHOLE
    sizes = {group: float(vector[at].norm()) for group, at in where.items()}
    scaled = relative(vector, sizes, where)
    assert np.allclose([float(scaled[at].norm()) for at in where.values()], 0.5**0.5)
    both = combine({"pose": np.array([1.0, 1.0]), "": np.array([2.0, 0.0])}, torch.stack([vector, vector]), where)
    assert torch.allclose(both, 2 * vector)


def drift(plan, seeds, leaves):
    found = []
    for seed in seeds:
        exact, cached = run(seed, Forecaster(steps=STEPS, interval=1)), run(seed, Forecaster(times=GRID, plan=plan))
        off, size = (
            torch.cat([d[k].flatten() for k in leaves]) for d in ({k: cached[k] - exact[k] for k in exact}, exact)
        )
        found.append(float(off.norm() / size.norm()))
    return float(np.median(found))


def test_a_plan_with_groups_fits_the_small_leaves_too(tmp_path):
    """Control: one set of weights for all leaves sees the shape alone."""
    made = {g: calibrate(run, times=GRID, calls=7, seeds=range(6), groups=POSE if g else None) for g in (True, False)}
    own, shared = (drift(plan, range(50, 58), POSE["pose"]) for plan in made.values())
    assert own < 0.6 * shared, (own, shared)
    assert drift(made[True], range(50, 58), ["shape"]) < 3 * drift(made[False], range(50, 58), ["shape"])
    made[True].save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == made[True] and again.groups["pose"].leaves == POSE["pose"]
    assert again.weights.keys() == again.groups["pose"].weights.keys() != set()


def test_the_loop_that_fits_is_the_run_that_the_plan_makes():
    made = Calibration(run, times=GRID, seeds=range(3), groups=POSE, refine=1)
    plan = made.plan(6)
    expected = plan.statistics["distance_to_target"][0]
    found = []
    for seed in range(3):
        sample = torch.cat(
            [leaf.flatten() for leaf in tree.flatten(run(seed, Forecaster(times=GRID, plan=plan)))[0].values()]
        )
        condition = made.conditions[seed]
        start = condition.recording.start
        found.append(float(condition.recording.relative(sample - start - condition.target[-1]).norm()))
    assert np.isclose(np.median(found), expected, rtol=1e-2)


def test_a_sample_without_a_group_is_refused():
    with pytest.raises(ValueError, match="every leaf of the sample for groups: 49 numbers, got 40"):
        calibrate(lambda s, c: run(s, c)["shape"], times=GRID, calls=6, seeds=[0], groups=POSE)


def test_a_recording_keeps_its_groups(tmp_path):
    first = Calibration(run, times=GRID, seeds=range(2), groups=POSE, folder=tmp_path)
    plan = first.plan(6)
    again = Calibration(run, times=GRID, seeds=range(2), groups=POSE, folder=tmp_path)
    assert again.plan(6).groups == plan.groups
    with pytest.raises(ValueError, match="another calibration"):
        Calibration(run, times=GRID, seeds=range(2), folder=tmp_path)
    assert set(record(run, GRID, 0, None, POSE).final) == {"", "pose"}


def test_a_plan_keeps_its_groups_or_says_so():
    plan = calibrate(run, times=GRID, calls=6, seeds=range(2), groups=POSE)
    with pytest.raises(ValueError, match="groups must be the plan's"):
        Forecaster(times=GRID, plan=plan, groups={"pose": ("scale",)})
    Forecaster(times=GRID, plan=plan, groups=POSE)
    uneven = plan.groups["pose"]._replace(weights={})
    with pytest.raises(ValueError, match="groups must have weights for the same steps"):
        Plan(plan.times, plan.computed, plan.weights, groups={"pose": uneven})
    elsewhere = Forecaster(times=GRID, plan=Plan(plan.times, plan.computed, groups=plan.groups))
    run(0, elsewhere)
    assert elsewhere.trace.fallbacks, "the shape has no weights in this plan, and the trace says so"
