"""One call of a transformer, as far as it says which step of which request it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

TIMESTEP = ("timestep", "timesteps", "t")  # names of a transformer's timestep argument


@dataclass
class Call:
    """``context`` is the cache context that is entered, if any. ``state``: the latents that the call is for."""

    arguments: Mapping[str, Any]
    context: str | None = None
    state: Any = None

    @cached_property
    def given(self) -> Any:
        """The timestep as it came; ``None``: there is none."""
        return next((self.arguments[name] for name in TIMESTEP if self.arguments.get(name) is not None), None)

    @cached_property
    def timestep(self) -> float | None:
        """The largest one: where there is one a token, those of known frames are 0. On a GPU this waits for it."""
        return None if self.given is None else float(torch.as_tensor(self.given).max())

    @property
    def waits(self) -> bool:
        """Whether reading the timestep waits for a device."""
        return isinstance(self.given, torch.Tensor) and self.given.device.type != "cpu"

    @property
    def rounding(self) -> float:
        """By how much the timestep may be off, in the dtype that it was handed over in."""
        exact = not (isinstance(self.given, torch.Tensor) and self.given.is_floating_point())
        return 0.0 if exact else abs(self.timestep or 0.0) * torch.finfo(self.given.dtype).eps


def distance(a: Any, b: Any) -> float | None:
    """``||a - b|| / ||b||``; ``None`` for what cannot be compared: no tensors, or of different forms."""
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return None
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return None
    a, b = a.detach().float(), b.detach().float()
    size = float(b.norm())
    apart = float((a - b).norm())
    return apart / size if size > 0 else apart
