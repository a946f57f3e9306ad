"""What ``forecache calibrate`` needs of a sampler: ``run(seed, cache)`` and the times, in one function.

``forecache calibrate docs/examples/calibrate_plan.py:problem --calls 9 --calls 11 --out out/plans``
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

MEANS = 2 * torch.randn(3, 16, generator=torch.Generator().manual_seed(0))  # three modes of the data
SPREAD = 0.3  # of each
GRID = torch.linspace(0, 1, 25).tolist()


def model(x: Tensor, t: float) -> Tensor:
    """Exact velocity of the straight flow from noise (t = 0) to a mixture of three Gaussians (t = 1)."""
    c = (1 - t) ** 2 + t**2 * SPREAD**2
    away = x - t * MEANS
    belief = torch.softmax(-away.square().sum(-1) / (2 * c), dim=0)
    return (belief[:, None] * (MEANS + (t * SPREAD**2 - (1 - t)) / c * away)).sum(0)


def run(seed: int, cache: Any) -> Tensor:
    """One sampling run that asks ``cache`` at every step; the seed chooses noise and condition."""
    x = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    for i in range(len(GRID) - 1):
        v = cache.step(i, partial(model, x, GRID[i]), state=x)
        x = x + (GRID[i + 1] - GRID[i]) * v
    return x


def problem() -> Mapping[str, Any]:
    """Keywords of ``forecache.Calibration``; ``made_for`` is compared when a plan is used."""
    return {"run": run, "times": GRID, "made_for": {"model": "three Gaussians"}}
