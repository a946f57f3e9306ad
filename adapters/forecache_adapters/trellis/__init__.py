"""TRELLIS, image and text to 3D. Needs the patch: ``forecache patch apply trellis CHECKOUT``.

::

    from forecache_adapters import trellis

    handle = trellis.enable(pipeline, basis="dmd", interval=2, stages={"slat": {"interval": 3}})
    outputs = pipeline.run(image)  # or run_multi_image, run_variant: unchanged
    print(handle.traces["slat"].calls)  # network calls by branch
    trellis.disable(pipeline)

Stages: ``sparse_structure`` and ``slat``. The branches are forecast below guidance, so nothing is extrapolated across
the edge of its interval: ``cond`` goes on over it, ``uncond`` ends there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..flow_euler import Accelerator, Guidance, attach, attached, detach, key_of

__all__ = ["Accelerator", "disable", "enable", "enabled", "key"]

SAMPLERS = {"sparse_structure": "sparse_structure_sampler", "slat": "slat_sampler"}


def guidance(keywords: Mapping[str, Any]) -> Guidance | None:
    """``(1 + w) c - w u`` where ``cfg_interval`` holds the time: g = 1 + w."""
    if keywords.get("neg_cond") is None:
        return None
    return Guidance(1.0 + keywords["cfg_strength"], tuple(keywords.get("cfg_interval", (0.0, 1.0))))


def enable(pipeline: Any, *, stages: Mapping[str, Any] | None = None, plan: Any = None, **settings: Any) -> Accelerator:
    """Attach the cache to the samplers of a pipeline from a patched checkout.

    Args:
        pipeline: ``TrellisImageTo3DPipeline`` or ``TrellisTextTo3DPipeline``.
        stages: settings of single stages, on top of the others; ``None`` for a stage: off.
        plan: a plan, its file, or a list of them: each serves the stage that it was made for, the others are off.
        settings: of every stage; see :class:`forecache_adapters.settings.Settings`.

    Raises:
        RuntimeError: the samplers' class is not patched.
        ValueError, TypeError: a stage that does not exist, a setting out of its range.
    """
    return attach(pipeline, "trellis", SAMPLERS, guidance, stages, plan, settings)


def disable(pipeline: Any) -> None:
    """Detach the cache; nothing happens if there is none."""
    detach(pipeline, SAMPLERS)


def enabled(pipeline: Any, **settings: Any) -> AbstractContextManager[Accelerator]:
    """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
    return attached(pipeline, SAMPLERS, partial(enable, pipeline, **settings))


def key(pipeline: Any, stage: str, **sampler_params: Any) -> dict[str, Any]:
    """What a plan for a stage is made for (``made_for``), at the pipeline's sampler parameters or those given."""
    return key_of(pipeline, "trellis", SAMPLERS, guidance, stage, sampler_params)
