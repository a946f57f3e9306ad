"""Which transformers the cache can be attached to."""

from __future__ import annotations

from typing import Any

import torch


def transformers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The denoising transformers of a pipeline by name: ``transformer``, ``transformer_2``.

    Raises:
        TypeError: no transformer, or one that :func:`check` refuses.
    """
    if getattr(pipe, "unet", None) is not None:
        check(pipe.unet)
    found = {
        name: each
        for name, each in getattr(pipe, "components", {}).items()
        if name.startswith("transformer") and isinstance(each, torch.nn.Module)
    }
    if not found or not hasattr(pipe, "scheduler"):
        raise TypeError(f"pipe_or_transformer: {type(pipe).__name__} has no transformer and scheduler")
    for each in found.values():
        check(each)
    return found


def check(network: torch.nn.Module) -> None:
    """Raises ``TypeError`` where the cache cannot be attached, and says why."""
    name = type(original(network)).__name__
    if "UNet" in name:
        raise TypeError(
            f"pipe_or_transformer: {name} is a UNet. Rules and defaults are checked on transformers only; caches that"
            " reuse what stands behind a UNet's skip connections (DeepCache) fit it better"
        )
    if getattr(network, "is_cache_enabled", False):
        raise TypeError(f"pipe_or_transformer: {name} has a cache of diffusers' own; call its disable_cache() first")
    if original(network)._compiled_call_impl is not None:
        raise TypeError(
            f"pipe_or_transformer: {name} is compiled in place, hooks and all; use compile_repeated_blocks(), or"
            " torch.compile(transformer), which leaves them outside"
        )


def original(network: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    inner: torch.nn.Module = getattr(network, "_orig_mod", network)
    return inner
