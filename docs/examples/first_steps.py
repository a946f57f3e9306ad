"""The lines that a sampler needs, around a flow with a known velocity: no network, no weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from forecache import Forecaster

SPREAD = torch.linspace(0.05, 2, 64)  # of the data, in each of 64 dimensions
GRID = torch.linspace(1, 0, 51).tolist()  # the 51 times that a sampler of 50 steps visits


def model(x: Tensor, t: float) -> Tensor:
    """Velocity of the straight flow from data (t = 0) to noise (t = 1), for Gaussian data."""
    return x * (t - (1 - t) * SPREAD**2) / (t**2 + (1 - t) ** 2 * SPREAD**2)


def sample(noise: Tensor, cache: Forecaster) -> Tensor:
    """Euler's method."""
    x = noise
    for i in range(len(GRID) - 1):
        # calls the model, or forecasts what it would say
        v = cache.step(i, partial(model, x, GRID[i]))
        x = x + (GRID[i + 1] - GRID[i]) * v
    return x


def main() -> dict[str, tuple[int, float]]:
    """Calls and drift, ``||x - x_uncached|| / ||x_uncached||``, of some rules."""
    noise = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    reference = sample(noise, Forecaster(times=GRID, interval=1))  # every step computed
    rows: dict[str, tuple[int, float]] = {}
    for basis in ("reuse", "taylor", "hermite", "dmd", "auto"):
        cache = Forecaster(basis, times=GRID, interval=5, warmup=4)
        x = sample(noise, cache)
        rows[basis] = cache.trace.computed, float((x - reference).norm() / reference.norm())
    return rows


if __name__ == "__main__":
    for name, (calls, drift) in main().items():
        print(f"{name:10}{calls:4} of 50 calls   drift {drift:.4f}")
