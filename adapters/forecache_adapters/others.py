"""What else is on an object: caches of others, and counters within a network that must see every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .attach import attached

CACHE_DIT, DIFFUSERS = "cache-dit", "diffusers' own"  #: caches that have another way to be taken off than ours


def cache_on(target: Any, but: Any = None) -> str | None:
    """The name of a cache on a pipeline, on one of its networks, or on a network; ``None``: there is none.

    ``but``: a handle of ours that does not count.
    """
    networks = [] if isinstance(target, torch.nn.Module) else list(getattr(target, "__dict__", {}).values())
    for each in (target, *(part for part in networks if isinstance(part, torch.nn.Module))):
        handle = attached(each)
        if handle is not None and handle is but:
            continue
        name = native(each) if handle is None else type(handle).__module__.rpartition(".")[0]
        if name is not None:
            return name
    return None


def native(part: Any) -> str | None:
    """The name of a cache that is not one of ours on this object itself; ``None``: there is none."""
    own = getattr(part, "__dict__", {})
    if own.get("_context_manager") is not None or own.get("_is_cached"):
        return CACHE_DIT
    return DIFFUSERS if getattr(part, "is_cache_enabled", False) is True else None


def counters(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Chipmunk's ``LayerCounter`` of a network's modules, known by what it can do: in a list that is mostly empty.

    Its sparse layers count their own calls, and tell from that which step it is and whether they compute all of it.
    """
    found: dict[int, Any] = {}
    for module in modules:
        for value in vars(module).values():
            counter = getattr(value, "layer_counter", None)
            if callable(getattr(counter, "increment", None)) and hasattr(counter, "num_submodules_per_layer"):
                found[id(counter)] = counter
    return list(found.values())


def count_skipped(found: Iterable[Any]) -> None:
    """Count a call of the network that is left out, as its layers would have: ``found`` by :func:`counters`."""
    for counter in found:
        for _ in range(counter.num_layers * counter.num_submodules_per_layer):
            counter.increment()
