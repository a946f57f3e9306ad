"""What is integrated: a network on a grid, with its guidance, and what a fine solution of it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from forecache import Guided

from .forms import Form
from .grids import Grid

Seeds = Sequence[int]
Value = Any  # torch.Tensor, or Guided(cond, uncond)
EDGE = 1e-9  # a guidance edge that falls on a grid point belongs to the guided side, whatever the round-off


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal numbers of one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise(seeds: Seeds, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers ``[B, *shape]``, each item from a seed of its own."""
    return torch.stack([normal(seed, *shape, dtype=dtype) for seed in seeds])


def combine(value: Value, scale: float) -> torch.Tensor:
    """``u + g (c - u)`` of two branches; a tensor is combined already, and ``Guided(c, None)`` is c."""
    if isinstance(value, Guided):
        if value.uncond is None:
            return value.cond  # type: ignore[no-any-return]
        return value.uncond + scale * (value.cond - value.uncond)  # type: ignore[no-any-return]
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Problem:
    """A network on a kind of grid. A seed names one condition and its noise.

    Attributes:
        key: its name.
        form: what the network puts out.
        grid: the grid of so many steps.
        steps: N of the uncached run.
        budgets: network calls to measure at.
        noise: ``[B, ...]`` of the seeds.
        network: ``(x, alpha, sigma, seeds, guided)`` to the output, or to ``Guided(cond, uncond)`` where both branches
            were computed.
        interval: noise levels ``sigma / (alpha + sigma)`` between which guidance is on, ends included; ``None``: it
            never switches.
        group: for the table of the zoo.
        slow: its network takes long: half the seeds and half the fine steps, a quarter of the seeds that choose.
        strength: g of ``u + g (c - u)``, where there is guidance.
        title: line for the table of the frontier.
        parts: steps of the fine solution within each of the sampler's; ``None``: as many as the zoo takes.
        exact: ``(seeds, times) -> [T, B, ...]``, the solution in closed form, where there is one.
        decode: mesh of one latent.
    """

    key: str
    form: Form
    grid: Callable[[int], Grid]
    steps: int
    budgets: tuple[int, ...]
    noise: Callable[[Seeds], torch.Tensor]
    network: Callable[[torch.Tensor, float, float, Seeds, bool], Value]
    interval: tuple[float, float] | None = None
    group: str = "closed form"
    slow: bool = False
    strength: float = 1.0
    title: str = ""
    parts: int | None = None
    exact: Callable[[Seeds, Sequence[float]], torch.Tensor] | None = None
    decode: Callable[[torch.Tensor], Any] | None = None

    @cached_property
    def own_grid(self) -> Grid:
        """The grid of the uncached run."""
        return self.grid(self.steps)

    @property
    def times(self) -> tuple[float, ...]:
        """What the sampler counts its own N + 1 points by."""
        return self.own_grid.times

    def guided(self, alpha: float, sigma: float) -> bool:
        """Whether guidance is on at this level."""
        low, high = self.interval or (0.0, 1.0)
        return low - EDGE <= sigma / (alpha + sigma) <= high + EDGE

    def edges(self, grid: Grid) -> list[int]:
        """First steps after guidance switches."""
        on = [self.guided(*each) for each in grid.levels[:-1]]
        return [i for i in range(1, len(on)) if on[i] != on[i - 1]]

    def start(self, seeds: Seeds, grid: Grid) -> torch.Tensor:
        """Noise at the grid's first level."""
        return self.noise(seeds) * math.hypot(*grid.levels[0])
