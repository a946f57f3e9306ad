"""Generators as the drift measurement sees them: one class per upstream, the same three members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import trimesh

from forecache import Trace


@dataclass
class Sample:
    """One run.

    Attributes:
        latent: final latent on the CPU. mesh: what it decodes to. calls: network calls counted at the network itself.
        denoise, total: seconds of the sampling loop, and with decoding; the device is synchronised.
    """

    latent: torch.Tensor
    mesh: trimesh.Trimesh
    calls: int
    denoise: float
    total: float
    trace: Trace = field(default_factory=Trace)


class Subject(Protocol):
    """What :mod:`forecache_lab.drift` measures."""

    title: str
    steps: int
    conditions: str  #: one line for the table: network, device, dtype, guidance, resolution

    def sample(self, seed: int, settings: Mapping[str, Any] | None) -> Sample:
        """Run with the noise and condition of ``seed``; ``settings`` for the adapter, ``None``: uncached."""
        ...

    def plain(self, seed: int, calls: int) -> Sample:
        """The sampler without forecasting, on a grid of exactly ``calls`` network calls."""
        ...
