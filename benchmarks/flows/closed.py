"""Flows whose velocity is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from forecache_lab import demo

from .grids import GRIDS
from .problems import Problem, Seeds, noise
from .sampling import FINE

DIMENSIONS = 256
BUDGETS = (7, 9, 11, 13, 15, 20, 25)


def gaussian(steps: int = 50, power: float = 1.0, dtype: torch.dtype = torch.float32) -> Problem:
    """Anisotropic Gaussian data, ``y ~ N(mu, diag(s^2))`` with ``s_k = k^-power`` and a mean per seed.

    With ``c = t^2 s^2 + (1 - t)^2`` the exact velocity is ``E[y - z | x] = mu + (t s^2 - (1 - t)) / c (x - t mu)`` and,
    because ``d sqrt(c) / dt = (t s^2 - (1 - t)) / sqrt(c)``, the solution from ``x_0 = z`` is ``t mu + sqrt(c) z``.
    """
    s = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -power

    def drawn(seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and means."""
        z, mean = noise(seeds, 2, DIMENSIONS, dtype=torch.float64).unbind(1)
        return z.to(dtype), mean * s

    def velocity(x: torch.Tensor, t: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        mu = drawn(seeds)[1]
        slope = (t * s**2 - (1 - t)) / (t * t * s**2 + (1 - t) ** 2)
        return (mu + slope * (x - t * mu)).to(dtype)

    def solution(seeds: Seeds, times: Sequence[float]) -> torch.Tensor:
        z, mu = drawn(seeds)
        return torch.stack([t * mu + (t * t * s**2 + (1 - t) ** 2).sqrt() * z.double() for t in times]).to(dtype)

    return Problem(
        "gaussian", "velocity", GRIDS["even"], steps, BUDGETS, lambda seeds: drawn(seeds)[0], velocity,
        title=f"anisotropic Gaussian, {DIMENSIONS} dimensions, spectrum k^-{power:g}, {steps} steps", exact=solution,
    )  # fmt: skip


def mixture(steps: int = demo.STEPS) -> Problem:
    """The demonstration's Gaussian mixture around the latents of solids."""
    mu = demo.centres()

    def velocity(x: torch.Tensor, t: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        return demo.velocity(x, t, mu)

    return Problem(
        "mixture", "velocity", GRIDS["even"], steps, BUDGETS, lambda seeds: noise(seeds, mu.shape[1]), velocity,
        title=f"closed-form mixture of {len(mu)} solids, {steps} steps", parts=math.ceil(FINE / steps),
        decode=demo.mesh,
    )  # fmt: skip


def straight(steps: int = 10) -> Problem:
    """``v = y``, constant: every sampler is exact on it. For tests."""

    def constant(seeds: Seeds) -> torch.Tensor:
        return noise(seeds, 8, dtype=torch.float64).float() * math.sqrt(2)

    return Problem(
        "straight", "velocity", GRIDS["even"], steps, (3,), lambda seeds: torch.zeros(len(seeds), 8),
        lambda x, t, sigma, seeds, guided: constant(seeds), title="straight flow",
        exact=lambda seeds, at: torch.stack([t * constant(seeds) for t in at]),
    )  # fmt: skip
