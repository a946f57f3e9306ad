"""Flows whose velocity is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from forecache_lab import demo

from .problems import Problem, Seeds, shifted

DIMENSIONS = 256
BUDGETS = (7, 9, 11, 13, 15, 20, 25)


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(steps: int = 50, power: float = 1.0, dtype: torch.dtype = torch.float32) -> Problem:
    """Anisotropic Gaussian data, ``y ~ N(mu, diag(s^2))`` with ``s_k = k^-power`` and a mean per seed.

    With ``c = t^2 s^2 + (1 - t)^2`` the exact velocity is ``E[y - z | x] = mu + (t s^2 - (1 - t)) / c (x - t mu)`` and,
    because ``d sqrt(c) / dt = (t s^2 - (1 - t)) / sqrt(c)``, the solution from ``x_0 = z`` is ``t mu + sqrt(c) z``.
    """
    s = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -power

    def mean(seeds: Seeds) -> torch.Tensor:
        return torch.stack([_normal(seed, 2, DIMENSIONS)[1] * s for seed in seeds])

    def start(seeds: Seeds) -> torch.Tensor:
        return torch.stack([_normal(seed, 2, DIMENSIONS)[0] for seed in seeds]).to(dtype)

    def velocity(x: torch.Tensor, t: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        mu = mean(seeds)
        slope = (t * s**2 - (1 - t)) / (t * t * s**2 + (1 - t) ** 2)
        return (mu + slope * (x - t * mu)).to(dtype)

    def solution(seeds: Seeds, times: Sequence[float]) -> torch.Tensor:
        mu, z = mean(seeds), start(seeds).double()
        return torch.stack([t * mu + (t * t * s**2 + (1 - t) ** 2).sqrt() * z for t in times]).to(dtype)

    title = f"anisotropic Gaussian, {DIMENSIONS} dimensions, spectrum k^-{power:g}, {steps} steps"
    return Problem("gaussian", title, shifted(steps, 1.0), start, velocity, BUDGETS, exact=solution)


def mixture(steps: int = demo.STEPS) -> Problem:
    """The demonstration's Gaussian mixture around the latents of solids."""
    mu = demo.centres()

    def start(seeds: Seeds) -> torch.Tensor:
        return torch.stack([torch.randn(mu.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def velocity(x: torch.Tensor, t: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        return demo.velocity(x, t, mu)

    title = f"closed-form mixture of {len(mu)} solids, {steps} steps"
    return Problem("mixture", title, shifted(steps, 1.0), start, velocity, BUDGETS, decode=demo.mesh)


def straight(steps: int = 10) -> Problem:
    """``v = y``, constant: every sampler is exact on it. For tests."""
    times = tuple(np.linspace(0, 1, steps + 1).tolist())

    def constant(seeds: Seeds) -> torch.Tensor:
        return torch.stack([_normal(seed, 8) for seed in seeds]).float() * math.sqrt(2)

    return Problem(
        "straight", "straight flow", times, lambda seeds: torch.zeros(len(seeds), 8),
        lambda x, t, seeds, guided: constant(seeds), (3,),
        exact=lambda seeds, at: torch.stack([t * constant(seeds) for t in at]),
    )  # fmt: skip
