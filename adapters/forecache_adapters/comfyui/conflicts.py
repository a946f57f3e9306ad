"""What else in a model would be forecast from, or from what is forecast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Words in the options and functions of other nodes that leave out or replace the network's work.
CACHES = (
    "easycache", "lazycache", "teacache", "magcache", "fbcache", "first_block_cache", "wavespeed", "dbcache",
    "cache_dit", "taylorseer", "rel_l1_thresh",
)  # fmt: skip


def conflict(model_options: Mapping[str, Any]) -> str | None:
    """Why nothing is forecast with what else a model has; ``None``: nothing stands against it."""
    for name in _names(model_options):
        if any(word in name.lower() for word in CACHES):
            return f"the model has another cache too ({name}); use one of them"
    if model_options.get("context_handler") is not None:
        return "context windows, which are not the same from step to step"
    if model_options.get("multigpu_clones"):
        return "the model's work is split over several GPUs"
    return None


def _names(model_options: Mapping[str, Any]) -> Iterator[str]:
    options = model_options.get("transformer_options", {})
    yield from (name for name in options if isinstance(name, str))
    yield from _of(model_options.get("model_function_wrapper"))
    for by_key in options.get("wrappers", {}).values():
        for key, functions in by_key.items():
            yield str(key)
            for function in functions:
                yield from _of(function)


def _of(function: Any) -> Iterator[str]:
    """Where a function comes from, or the class of an object that is called as one."""
    if function is not None:
        owner = function if hasattr(function, "__qualname__") else type(function)
        yield f"{owner.__module__}.{owner.__qualname__}"
