"""Dynamic mode decomposition needs even gaps: on the step index every schedule of an interval has them, on any grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from core_helpers import mixture_velocity
from forecache import Forecaster
from forecache.rules import DMD

Velocity = Callable[[torch.Tensor, float], torch.Tensor]


def karras(steps: int) -> list[float]:
    return [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)] + [0.0]


def shifted(steps: int) -> list[float]:
    return [3 * t / (1 + 2 * t) for t in np.linspace(1, 0, steps + 1).tolist()]


def of_sigma(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """``(x - D(x)) / sigma`` of a Gaussian mixture's best denoiser D."""
    means = 2.0 * torch.randn(3, x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide, away = sigma**2 + 0.3**2, x[:, None] - means
    belief = torch.softmax(-(away**2).sum(-1) / (2 * wide), dim=1)
    denoised = (belief[..., None] * (means + 0.3**2 / wide * away)).sum(1)
    return (x - denoised) / sigma


def of_time(x: torch.Tensor, t: float) -> torch.Tensor:
    return -mixture_velocity(dim=x.shape[1])(x, 1 - t)


GRIDS: dict[str, tuple[Callable[[int], list[float]], Velocity, float]] = {
    "karras": (karras, of_sigma, 80.0),
    "shifted": (shifted, of_time, 1.0),
}


def skipped(grid: str, steps: int, interval: int, basis: Any, guard: float | None) -> list[tuple[str, list[str]]]:
    """What served each skipped step behind four anchors and more, and why better rules were passed over."""
    make, velocity, scale = GRIDS[grid]
    times = make(steps)
    cache = Forecaster(basis, times=times, interval=interval, warmup=1, guard=guard)
    x = scale * torch.randn(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i in range(steps):
        x = x + (times[i + 1] - times[i]) * cache.step(i, lambda i=i, x=x: velocity(x, times[i]))
    fourth = cache.computed[3]
    found = [step for step in cache.trace.steps if step.kind == "forecast" and step.index > fourth]
    return [(step.rules["v"], step.fallbacks.get("v", [])) for step in found]


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("steps", [12, 25, 50])
@pytest.mark.parametrize("grid", GRIDS)
def test_dmd_serves_on_bent_grids(grid: str, steps: int, interval: int) -> None:
    class OnTime(DMD):
        clock = "time"

    free = skipped(grid, steps, interval, "dmd", math.inf)
    assert free and all(rule == "dmd" for rule, _ in free), "there is a fit for every window"
    kept = skipped(grid, steps, interval, "dmd", None)
    for rule, why in kept:  # only the guard stands in its way, never the form of the window
        assert rule == "dmd" or why[0].startswith("dmd: |w|_1 =")
    by_time = skipped(grid, steps, interval, OnTime(), math.inf)  # control
    assert any("no evenly spaced tail" in reason for _, why in by_time for reason in why)


def test_the_guard_leaves_dmd_most_of_its_steps() -> None:
    cells = [skipped(g, n, k, "dmd", None) for g in GRIDS for n in (12, 25, 50) for k in (2, 3)]
    served = [rule == "dmd" for cell in cells for rule, _ in cell]
    assert len(served) == 138 and np.mean(served) > 0.75
