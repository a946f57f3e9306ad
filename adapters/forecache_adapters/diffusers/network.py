"""Which transformers the cache can be attached to."""

from __future__ import annotations

from typing import Any

import torch

from ..attach import attached
from ..others import CACHE_DIT, DIFFUSERS, native


def transformers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The denoising transformers of a pipeline by name: ``transformer``, ``transformer_2``.

    Raises:
        TypeError: no transformer, or one that :func:`check` refuses.
    """
    if getattr(pipe, "unet", None) is not None:
        check(pipe.unet)
    found = present(pipe)
    if not found or not hasattr(pipe, "scheduler"):
        raise TypeError(f"pipe_or_transformer: {type(pipe).__name__} has no transformer and scheduler")
    for each in found.values():
        check(each)
    return found


def present(pipe: Any, role: str = "transformer") -> dict[str, torch.nn.Module]:
    """The networks of a pipeline that have a role: ``transformer``, ``controlnet``."""
    return {
        name: each
        for name, each in getattr(pipe, "components", {}).items()
        if name.startswith(role) and isinstance(each, torch.nn.Module)
    }


def check(network: torch.nn.Module) -> None:
    """Raises ``TypeError`` where the cache cannot be attached, and says why."""
    name = type(original(network)).__name__
    if "UNet" in name:
        raise TypeError(
            f"pipe_or_transformer: {name} is a UNet. Rules and defaults are checked on transformers only; caches that"
            " reuse what stands behind a UNet's skip connections (DeepCache) fit it better"
        )
    if (reason := other_cache(network)) is not None:
        raise TypeError(f"pipe_or_transformer: {reason}")


def other_cache(network: torch.nn.Module) -> str | None:
    """Why another cache is in the way; ``None``: none is."""
    name, found, handle = type(original(network)).__name__, native(original(network)), attached(network)
    if found is None and handle is not None and not getattr(handle, "of_diffusers", False):
        found = f"{type(handle).__module__}.{type(handle).__name__}"
    if found is None:
        return None
    how = {DIFFUSERS: "call its disable_cache() first", CACHE_DIT: "call cache_dit.disable_cache first"}
    return f"{name} has another cache, {found}; {how.get(found, 'disable that one first')}"


def original(network: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    inner: torch.nn.Module = getattr(network, "_orig_mod", network)
    return inner
