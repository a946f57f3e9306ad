"""On a GPU the host waits for the device once a computed step, and on skipped steps not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import device_standin
from core_helpers import NAMES
from device_standin import put, waits
from forecache import AdaptiveGuidance, Forecaster, Guided, Plan, Weights, snapshots
from forecache.rules import Linear

STEPS, COMPUTED = 14, (0, 1, 2, 3, 5, 8, 11, 13)
TIMES = tuple(float(t) for t in range(STEPS + 1))
SKIPPED = [i for i in range(STEPS) if i not in COMPUTED]


def smooth(i: int, dtype: torch.dtype = torch.float32, items: int = 2) -> torch.Tensor:
    """A constant and two exponentials."""
    a, b, c = torch.randn(3, items, 40, generator=torch.Generator().manual_seed(7))
    return (a + np.exp(-0.1 * i) * b + np.exp(-0.3 * i) * c).to(dtype)


def run(cache: Forecaster, value: Callable[[int], Any], state: Any = None) -> tuple[list[int], list[int], list[Any]]:
    """Waits of each computed and of each skipped step of a run on the pretended device, and what was handed out."""
    computed: list[int] = []
    skipped: list[int] = []
    served = []
    with device_standin.device() as counter:
        for i in range(STEPS):
            wanted = cache.needs_compute(i)
            with waits(counter, computed if wanted else skipped):
                served.append(cache.observe(i, value(i), state) if wanted else cache.forecast(i, state))
    assert [len(computed), len(skipped)] == [len(COMPUTED), len(SKIPPED)]
    return computed, skipped, served


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_rule_reads_a_row_when_it_computes_and_nothing_when_it_skips(name: str, dtype: torch.dtype) -> None:
    cache = Forecaster(name, times=TIMES, computed=COMPUTED)
    computed, skipped, served = run(cache, lambda i: put(smooth(i, dtype)))
    assert computed == [1] * len(COMPUTED) and skipped == [0] * len(SKIPPED)
    plain = Forecaster(name, times=TIMES, computed=COMPUTED)
    for i, value in enumerate(served):  # the pretended device computes what the CPU does
        assert torch.equal(value.hidden, plain.step(i, lambda: smooth(i, dtype)))  # noqa: B023


def test_branches_leaves_and_groups_are_read_at_once() -> None:
    def value(i: int) -> Guided:
        leaves = {"shape": put(smooth(i)), "scale": put(smooth(i)[:, :3]), "turn": put(smooth(i)[:, 3:7])}
        return Guided(leaves, {name: put(2 * leaf.hidden) for name, leaf in leaves.items()})

    cache = Forecaster("dmd", times=TIMES, computed=COMPUTED, groups={"pose": ("scale", "turn")})
    computed, skipped, _ = run(cache, value)
    assert computed == [1] * len(COMPUTED) and skipped == [0] * len(SKIPPED)


def test_leaves_on_two_devices_are_read_apart() -> None:
    cache = Forecaster("dmd", times=TIMES, computed=COMPUTED)
    computed, skipped, served = run(cache, lambda i: (put(smooth(i)), 3 * smooth(i)))
    assert computed == [1] * len(COMPUTED) and skipped == [0] * len(SKIPPED)
    for there, here in served:
        assert torch.allclose(3 * there.hidden, here, rtol=1e-5)


def test_a_plan_reads_nothing_when_it_skips() -> None:
    weights = {i: Weights((-0.5, 1.5), state=0.01, difference=(1.0,)) for i in (*SKIPPED, COMPUTED[-1])}
    plan = Plan(TIMES, COMPUTED, weights)
    cache = Forecaster(times=TIMES, plan=plan)
    computed, skipped, _ = run(cache, lambda i: Guided(put(smooth(i)), put(2 * smooth(i))), put(smooth(3)))
    assert computed == [1] * (len(COMPUTED) - 1) + [2], (
        "whether the correction was finite is asked at the end of the run"
    )
    assert skipped == [0] * len(SKIPPED)
    assert all("plan" in str(step.rules) for step in cache.trace.steps if step.kind == "forecast")


def test_adaptive_guidance_waits_for_nothing_where_it_drops_a_call() -> None:
    guidance = AdaptiveGuidance(times=TIMES, scale=3.0, refresh=6)
    dropped: list[int] = []
    with device_standin.device() as counter:
        for i in range(STEPS):
            cond = put(smooth(i))
            if guidance.needs_uncond(i):
                guidance.observe(i, cond, put(smooth(i) * (1 - 0.1 * i)))
            else:
                with waits(counter, dropped):
                    guidance.uncond(i, cond)
    assert dropped and not any(dropped)


def test_the_only_read_of_a_skipped_step_is_of_a_sum_that_may_overflow() -> None:
    """The bound ``||w||_1 max ||v||`` fails only beyond the dtype's range; then the sum itself is looked at."""
    cache = Forecaster("linear", times=TIMES, computed=COMPUTED)
    large = run(cache, lambda i: put((smooth(i, torch.float16).double() * 9000).half()))[1]
    assert set(large) == {1}
    assert set(run(Forecaster("linear", times=TIMES, computed=COMPUTED), lambda i: put(smooth(i).half()))[1]) == {0}


# --- controls: what would wait is counted -----------------------------------------------------------------------------
def test_weights_from_pageable_memory_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        snapshots, "sent", lambda numbers, dtype, device: torch.tensor(numbers, dtype=dtype, device=device)
    )
    assert run(Forecaster("dmd", times=TIMES, computed=COMPUTED), lambda i: put(smooth(i)))[1] == [1] * len(SKIPPED)


def test_weights_that_are_not_copied_asynchronously_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        snapshots, "sent", lambda numbers, dtype, device: torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device)
    )
    assert run(Forecaster("dmd", times=TIMES, computed=COMPUTED), lambda i: put(smooth(i)))[1] == [1] * len(SKIPPED)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.equal(x, x),
        lambda x: x[x > 0],
        lambda x: torch.empty(2, 40).copy_(x),
        lambda x: x.copy_(torch.zeros(2, 40)),
        lambda x: torch.as_tensor([1.0], device=x.device),
        lambda x: torch.zeros(2).to(x.device, non_blocking=True),  # not pinned
    ],
    ids=lambda each: None,
)
def test_a_rule_that_waits_is_caught(read: Callable[[torch.Tensor], Any]) -> None:
    given = put(smooth(0))

    class Waits(Linear):
        def weights(self, times: Any, target: float, gram: Any) -> Any:
            read(given)
            return super().weights(times, target, gram)

    with device_standin.device() as counter:
        cache = Forecaster(Waits(1), times=TIMES, computed=COMPUTED)
        for i in range(4):
            cache.observe(i, put(smooth(i)))
        before = counter.waits
        cache.forecast(4)
        assert counter.waits == before + 1


def test_what_no_device_could_do_is_refused() -> None:
    with device_standin.device():
        given = put(smooth(0))
        with pytest.raises(RuntimeError, match="expected all tensors on"):
            given + torch.ones(2, 40)
        with pytest.raises(RuntimeError, match="numpy"):
            given.numpy()
