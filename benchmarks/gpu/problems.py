"""A sampler around a network, and where it runs: what every case is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """The device, the size ("full" or "tiny"), and checkouts of upstreams by name, patched or not."""

    device: torch.device
    size: str = "full"
    checkouts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A sampler around a network: ``x_{i+1} = x_i + (t_{i+1} - t_i) velocity(value_i)``.

    Attributes:
        network: name of the class that runs.
        stand_in: why that is not the model's own class; "" where it is.
        left_out: what is missing of the production size; "" where nothing is.
        value: shape and dtype of what a network call gives the cache.
        call: ``call(x, t) -> value``, the network call that a skipped step saves.
        velocity: turns a value into the velocity of the state.
        items: axis of a value along which its items are independent; ``None``: it is one item.
    """

    name: str
    network: str
    stand_in: str
    left_out: str
    parameters: int
    value: str
    times: tuple[float, ...]
    noise: Callable[[], torch.Tensor]
    call: Callable[[torch.Tensor, float], Any]
    velocity: Callable[[Any], torch.Tensor]
    items: int | None = 0

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def advance(self, x: torch.Tensor, value: Any, i: int) -> torch.Tensor:
        """One Euler step."""
        return x + (self.times[i + 1] - self.times[i]) * self.velocity(value).to(x.dtype)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def grid(steps: int) -> tuple[float, ...]:
    return tuple(i / steps for i in range(steps + 1))


def noise(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """The same at every call."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return made.clone
