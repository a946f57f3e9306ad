"""Data whose denoiser is known in closed form: Gaussian mixtures; one mode is the anisotropic Gaussian.

With ``x = alpha y + sigma z``, ``y ~ sum_m N(mu_m, diag(s^2)) / M`` and ``c = alpha^2 s^2 + sigma^2`` per dimension,
``E[y | x] = g x + (1 - alpha g) sum_m p_m mu_m`` where ``g = alpha s^2 / c`` and ``p`` is the softmax over m of
``-sum (x - alpha mu_m)^2 / (2 c)``. Both the modes and their spread fall off with the dimension as ``k^-power``, as
latents of shapes and pictures do, and the data have mean square 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..flows.problems import Seeds, normal

MODES_OF = 77_000  # seeds of the modes, apart from those of the noise


@dataclass(frozen=True)
class Mixture:
    """``modes`` modes in ``dimensions`` dimensions; ``classes`` groups of modes are what guidance is told."""

    modes: int
    dimensions: int
    power: float = 1.0
    spread: float = 0.2
    classes: int = 1
    seed: int = 0

    @cached_property
    def scale(self) -> torch.Tensor:
        """Root mean square of the data per dimension."""
        fall = torch.arange(1, self.dimensions + 1, dtype=torch.float64) ** -self.power
        return fall * (self.dimensions / fall.square().sum()).sqrt()

    @cached_property
    def centres(self) -> torch.Tensor:
        """``[modes, dimensions]``."""
        return normal(MODES_OF + self.seed, self.modes, self.dimensions) * self.scale

    def data(self, x: torch.Tensor, alpha: float, sigma: float, modes: torch.Tensor | None = None) -> torch.Tensor:
        """``E[y | x]`` at ``x [B, dimensions]``; ``modes``: indices of those that the data may come from."""
        mu = self.centres if modes is None else self.centres[modes]
        own = (self.spread * self.scale).square()
        c = alpha**2 * own + sigma**2
        gain = alpha * own / c
        near = torch.cdist(x / c.sqrt(), alpha * mu / c.sqrt(), compute_mode="donot_use_mm_for_euclid_dist")
        centre = torch.softmax(-near.square() / 2, 1) @ mu
        return gain * x + (1 - alpha * gain) * centre

    def guided(self, x: torch.Tensor, alpha: float, sigma: float, seeds: Seeds, strength: float) -> torch.Tensor:
        """``u + g (c - u)`` of the data's expectation; the class of a seed is the seed itself, modulo the classes.

        Every output of the network is an affine function of it with the same offset, so this is the guidance of all.
        """
        cond = torch.empty_like(x)
        for name in range(self.classes):
            rows = [k for k, seed in enumerate(seeds) if seed % self.classes == name]
            if rows:
                cond[rows] = self.data(x[rows], alpha, sigma, torch.arange(name, self.modes, self.classes))
        return cond if strength == 1 else torch.lerp(self.data(x, alpha, sigma), cond, strength)
