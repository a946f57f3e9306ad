"""Adaptive guidance: when may the unconditional call be dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from forecache import AdaptiveGuidance
from forecache.rules import Linear
from forecache.streams import Stream

Tensor = torch.Tensor
GRID = [i / 20 for i in range(21)]


def c_of(t: float) -> Tensor:
    a, b = torch.randn(2, 2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a + t * b


def run(guidance: AdaptiveGuidance, d: Callable[[float], Tensor]) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Steps with both branches, the served and the true unconditional values."""
    full, served, truth = [], [], []
    for i in range(20):
        t = GRID[i]
        c = c_of(t)
        u = c - d(t)
        truth.append(u)
        if guidance.needs_uncond(i):
            full.append(i)
            guidance.observe(i, c, u)
            served.append(u)
        else:
            served.append(guidance.uncond(i, c))
    return full, served, truth


def small(t: float) -> Tensor:
    return 0.001 * torch.ones(2, 30, dtype=torch.float64) * (1 + t)


def restless(t: float) -> Tensor:
    return torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(int(1000 * t))) * 2


def test_calls_are_saved_where_branches_agree() -> None:
    guidance = AdaptiveGuidance(times=GRID, scale=2.0, refresh=4)
    full, served, truth = run(guidance, small)
    assert full == [0, 1, 5, 9, 13, 17, 19]
    assert guidance.saved == 13
    for a, b in zip(served, truth, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


def test_none_where_they_do_not() -> None:
    guidance = AdaptiveGuidance(times=GRID, scale=2.0)
    assert run(guidance, restless)[0] == list(range(20)) and guidance.saved == 0
    blind = AdaptiveGuidance(times=GRID, scale=2.0, tolerance=1e9)  # control: a test that cannot fail
    assert run(blind, restless)[1:] and blind.saved > 0


def test_the_scale_counts() -> None:
    """The same difference, dropped at scale 0.01 and kept at 30."""
    saved = []
    for scale in (0.01, 30.0):
        guidance = AdaptiveGuidance(times=GRID, scale=scale)
        run(guidance, lambda t: 0.2 * restless(t))
        saved.append(guidance.saved)
    assert saved[0] > 0 and saved[1] == 0


def test_the_error_is_that_of_the_guided_velocity() -> None:
    guidance = AdaptiveGuidance(times=GRID, scale=3.0, tolerance=1e-9)
    run(guidance, restless)
    for i in (2, 7):
        a, b, d = (restless(GRID[j]) for j in (i - 2, i - 1, i))
        missed = 3.0 * (d - (2 * b - a)).norm(dim=1) / (c_of(GRID[i]) + 3.0 * d).norm(dim=1)
        assert dict(guidance.errors)[i] == pytest.approx(float(missed.max()), rel=1e-6)


@pytest.mark.parametrize("warmup", [2, 3, 6])
@pytest.mark.parametrize("refresh", [1, 2, 5])
def test_warmup_refresh_and_last_step(warmup: int, refresh: int) -> None:
    full, _, _ = run(AdaptiveGuidance(times=GRID, scale=1.0, warmup=warmup, refresh=refresh), small)
    assert full[:warmup] == list(range(warmup)) and full[-1] == 19
    assert full == sorted({*range(warmup), *range(warmup - 1, 20, refresh), 19})


def test_the_last_step_that_moves() -> None:
    guidance = AdaptiveGuidance(times=[*GRID[:20], GRID[19]], scale=1.0, refresh=100)
    full = [
        i
        for i in range(19)
        if guidance.needs_uncond(i) and (guidance.observe(i, c_of(GRID[i]), c_of(GRID[i]) - small(0)) is None)
    ]
    assert full == [0, 1, 18]


def test_one_item_that_disagrees_keeps_the_call() -> None:
    def half(t: float) -> Tensor:
        return torch.cat((small(t)[:1], restless(t)[1:]))

    assert run(AdaptiveGuidance(times=GRID, scale=2.0), half)[0] == list(range(20))
    alone = AdaptiveGuidance(times=GRID, scale=2.0)  # control: the first item by itself
    for i in range(20):
        if alone.needs_uncond(i):
            alone.observe(i, c_of(GRID[i])[:1], c_of(GRID[i])[:1] - half(GRID[i])[:1])
        else:
            alone.uncond(i, c_of(GRID[i])[:1])
    assert alone.saved > 0


def test_cosine_is_the_published_test() -> None:
    c = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for angle, expected in ((0.1, False), (0.5, True)):  # cos .995 and .88
        u = torch.tensor(
            [[1.0, 0.0], [torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))]], dtype=torch.float64
        )
        guidance = AdaptiveGuidance(times=GRID, scale=100.0, cosine=0.94)
        for i in (0, 1):
            assert guidance.needs_uncond(i)
            guidance.observe(i, c, u * (1 + i))
        assert guidance.needs_uncond(2) is expected
        by_error = AdaptiveGuidance(times=GRID, scale=100.0)  # control: the error test sees the scale
        for i in (0, 1):
            by_error.observe(i, c, u * (1 + i))
        assert by_error.needs_uncond(2)


def test_uncond_is_exact_on_differences_linear_in_the_step() -> None:
    grid = [0.0, 0.1, 0.25, 0.3, 0.7, 0.8, 1.0]
    guidance, timed = AdaptiveGuidance(times=grid, scale=2.0), AdaptiveGuidance(times=grid, scale=2.0)
    a, b = torch.randn(2, 2, 30, dtype=torch.float64)
    for i in (0, 2):
        guidance.observe(i, c_of(grid[i]), c_of(grid[i]) - a - i * b)
        timed.observe(i, c_of(grid[i]), c_of(grid[i]) - a - grid[i] * b)
    got = guidance.uncond(5, c_of(grid[5]))  # 1.5 gaps ahead, where the guard begins to act
    truth = c_of(grid[5]) - a - 5 * b
    assert torch.allclose(got, truth, rtol=1e-12)
    frozen = c_of(grid[5]) - a - 2 * b  # controls: the difference reused; one that is linear in time
    assert not torch.allclose(frozen, truth, rtol=1e-3)
    assert not torch.allclose(timed.uncond(5, c_of(grid[5])), c_of(grid[5]) - a - grid[5] * b, rtol=1e-3)


def test_another_rule_and_a_longer_history() -> None:
    """A parabola through three differences is exact on one; the line through two, the default, is not."""
    missed = {}
    for name, options in {"parabola": {"rule": Linear(2, guard=8.0), "history": 3}, "line": {}}.items():
        guidance = AdaptiveGuidance(times=GRID, scale=2.0, **options)
        for i in (0, 1, 2):
            guidance.observe(i, c_of(GRID[i]), c_of(GRID[i]) - GRID[i] ** 2)
        missed[name] = float((guidance.uncond(3, c_of(GRID[3])) - (c_of(GRID[3]) - GRID[3] ** 2)).norm())
    assert missed["parabola"] < 1e-12 < 1e-3 < missed["line"]


def test_structures_and_errors() -> None:
    guidance = AdaptiveGuidance(times=GRID, scale=2.0, batch_dim=None)
    for i in (0, 1):
        guidance.observe(i, {"x": torch.ones(3) * 2, "n": None}, {"x": torch.ones(3), "n": None})
    out = guidance.uncond(2, {"x": torch.ones(3) * 5, "n": None})
    assert torch.equal(out["x"], torch.ones(3) * 4) and out["n"] is None
    with pytest.raises(ValueError, match="differ in structure"):
        guidance.observe(2, {"x": torch.ones(3)}, torch.ones(3))
    with pytest.raises(RuntimeError, match="before two full steps"):
        AdaptiveGuidance(times=GRID, scale=2.0).uncond(0, torch.ones(3))
    arguments: list[dict[str, Any]] = [{"tolerance": 0}, {"cosine": 1.5}, {"warmup": 1}, {"refresh": 0}]
    for bad in arguments:
        with pytest.raises(ValueError):
            AdaptiveGuidance(times=GRID, scale=2.0, **bad)


def ahead(guidance: AdaptiveGuidance, change: Callable[[int, Tensor], Tensor]) -> tuple[list[int], list[Tensor]]:
    """A run whose values ``change`` at a step; full steps and unconditional values."""
    full, served = [], []
    for i in range(20):
        c = change(i, c_of(GRID[i]))
        u = c - change(i, small(GRID[i]))
        if guidance.needs_uncond(i, c):
            full.append(i)
            guidance.observe(i, c, u)
        else:
            u = guidance.uncond(i, c)
        served.append(u)
    return full, served


PLAIN = [0, 1, 5, 9, 13, 17, 19]


@pytest.mark.parametrize("at", [0, 1, 5, 7, 19])
@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda v: v[:1], r"step \d+: begins anew, since cond has another form"),
        (lambda v: v[:, :20], r"another form"),
        (lambda v: v.float(), r"another form.*float32"),
        (lambda v: torch.cat((v, v)), r"another form"),
    ],
    ids=["smaller batch", "shape", "dtype", "larger batch"],
)
def test_another_kind_of_call_begins_anew(at: int, change: Callable[[Tensor], Tensor], note: str) -> None:
    """Both branches are called until two differences of the new kind are there; control: without the change."""
    guidance = AdaptiveGuidance(times=GRID, scale=2.0, refresh=4)
    full, served = ahead(guidance, lambda i, v: v if i < at else change(v))
    expected = [i for i in PLAIN if i < at] + [
        i for i in range(at, 20) if i < at + 2 or (i - at - 1) % 4 == 0 or i == 19
    ]
    assert full == expected and all(torch.isfinite(u).all() for u in served)
    assert len(guidance.notes) == (at > 0) and (not at or re.search(note, guidance.notes[0]))
    plain = AdaptiveGuidance(times=GRID, scale=2.0, refresh=4)
    assert ahead(plain, lambda i, v: v)[0] == PLAIN and not plain.notes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_a_value_that_is_not_finite_begins_anew(bad: float, branch: str) -> None:
    """As without a cache, the run goes on with what the network gave."""
    guidance = AdaptiveGuidance(times=GRID, scale=2.0, refresh=4)
    full = []
    for i in range(20):
        c, u = c_of(GRID[i]), c_of(GRID[i]) - small(GRID[i])
        if i == 5:
            (c if branch == "cond" else u)[0, 3] = bad
        if guidance.needs_uncond(i, c):
            full.append(i)
            guidance.observe(i, c, u)
        else:
            assert torch.isfinite(guidance.uncond(i, c)).all()
    assert full == [0, 1, 5, 6, 7, 11, 15, 19] and guidance.saved == 12
    assert guidance.notes == ["step 5: begins anew, since v holds NaN or infinity"]
    guidance.reset()
    assert not guidance.notes and not guidance.fits()


def test_other_leaves_kinds_and_orders_begin_anew_too() -> None:
    guidance, one = AdaptiveGuidance(times=[0.0, 0.1, 0.1, 0.3, 0.4, 0.5], scale=2.0, batch_dim=None), torch.ones(3)
    pair, mixed, whole = {"a": one, "b": one}, {"a": one.double(), "b": one}, torch.ones(3, dtype=torch.int64)
    steps: list[tuple[int, Any, Any]] = [
        (0, one, one), (1, pair, pair), (2, pair, pair), (3, pair, mixed), (1, pair, mixed), (3, whole, whole),
        (4, one, one),
    ]  # fmt: skip
    for step in steps:
        guidance.observe(*step)
    reasons = ["another form", "float64", "after step 3", "another form", "int64"]
    assert len(guidance.notes) == len(reasons)
    assert all(reason in note for reason, note in zip(reasons, guidance.notes, strict=True))
    assert [i for i, _ in guidance.errors] == [0, 1, 3, 1, 4], (
        "step 2 does not move, and step 3 the second time is none"
    )
    assert not guidance.fits(one) and guidance.needs_uncond(3)


def test_a_wrong_axis_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="batch_dim must be an axis"):
        AdaptiveGuidance(times=GRID, scale=2.0, batch_dim=5).observe(0, torch.ones(2, 3), torch.ones(2, 3))


def test_a_failure_half_way_forgets_and_reset_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    guidance = AdaptiveGuidance(times=GRID, scale=2.0, batch_dim=None)
    pair = {"a": torch.ones(3), "b": torch.ones(3)}
    guidance.observe(0, pair, pair)
    guidance.observe(1, pair, pair)
    assert guidance.fits(pair)
    with monkeypatch.context() as patched:
        patched.setattr(Stream, "push", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            guidance.observe(2, pair, pair)
    assert not guidance.fits(pair) and guidance.needs_uncond(3)
    guidance.reset()
    assert guidance.needs_uncond(2) and guidance.saved == 0 and not guidance.errors
    guidance.observe(0, torch.ones(7), torch.ones(7))
