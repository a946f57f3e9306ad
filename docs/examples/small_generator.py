"""A generator as you may have it: a network, guidance, an Euler loop. It knows nothing of forecasts."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class SmallGenerator:
    """A small random network; ``generate`` calls it twice a step, with the condition and without."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(2 * width + 1, 64), nn.Tanh(), nn.Linear(64, width))

    def times(self, steps: int) -> list[float]:
        """The grid that ``generate`` visits, from noise (t = 1) to the sample (t = 0)."""
        return torch.linspace(1, 0, steps + 1).tolist()

    def velocity(self, x: Tensor, t: float, cond: Tensor | None) -> Tensor:
        """One call of the network."""
        known = torch.zeros_like(x) if cond is None else cond
        v: Tensor = self.network(torch.cat([x, known, torch.full_like(x[:, :1], t)], dim=1))
        return v

    @torch.no_grad()
    def generate(self, x: Tensor, cond: Tensor, steps: int = 24, guidance: float = 3.0) -> Tensor:
        """A sample from the noise ``x``."""
        times = self.times(steps)
        for t, after in pairwise(times):
            v, u = self.velocity(x, t, cond), self.velocity(x, t, None)
            x = x + (after - t) * (u + guidance * (v - u))
        return x
