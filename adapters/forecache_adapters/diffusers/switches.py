"""What a transformer's arguments do not show: adapters and their strengths, which may change within a run."""

from __future__ import annotations

from typing import Any

import torch

from ..others import counters
from .network import original

LAYER = ("active_adapters", "merged_adapters", "disable_adapters", "scaling")  # of a layer with LoRA (PEFT)


class Switches:
    """The switches of a network: PEFT's layers, and attention processors with what they hold (IP-Adapter's scale).

    The few modules that have some are looked up once, and again where adapters were loaded or taken away.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.adapters: tuple[str, ...] | None = None
        self.layers: list[Any] = []
        self.attentions: list[Any] = []
        self.counters: list[Any] = []  #: Chipmunk's
        self.look_up(network)

    def look_up(self, network: torch.nn.Module) -> None:
        """Which modules have switches."""
        self.adapters = _adapters(network)
        modules = list(original(network).modules())
        self.layers = [each for each in modules if hasattr(each, "active_adapters") and hasattr(each, "scaling")]
        self.attentions = [each for each in modules if hasattr(each, "processor")]
        self.counters = counters(modules)

    def state(self, network: torch.nn.Module) -> tuple[Any, ...]:
        """How they stand, to be compared with ``==``."""
        if _adapters(network) != self.adapters:
            self.look_up(network)
        return (
            self.adapters,
            tuple(_frozen(getattr(layer, name, None)) for layer in self.layers for name in LAYER),
            tuple((each.processor, _frozen(getattr(each.processor, "scale", None))) for each in self.attentions),
        )


def _adapters(network: torch.nn.Module) -> tuple[str, ...]:
    return tuple(getattr(original(network), "peft_config", None) or ())


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, _frozen(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    return (id(value), value._version) if isinstance(value, torch.Tensor) and not value.is_inference() else value
