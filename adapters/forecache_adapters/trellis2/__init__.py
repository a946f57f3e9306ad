"""TRELLIS.2, image to 3D and texturing. Needs the patch: ``forecache patch apply trellis2 CHECKOUT``.

::

    from forecache_adapters import trellis2

    handle = trellis2.enable(pipeline, basis="dmd", interval=2, stages={"shape_slat_1024": {"interval": 3}})
    mesh = pipeline.run(image)[0]
    print(handle.traces["shape_slat_1024"].calls)  # network calls by branch
    trellis2.disable(pipeline)

Stages: ``sparse_structure``, ``shape_slat``, ``tex_slat``, or one network of the latter two by its resolution
(``shape_slat_512`` and ``shape_slat_1024`` are the halves of a cascade). The branches are forecast below guidance: its
rescale, which looks at the sampler's state, stays exact, and nothing is extrapolated across the edge of its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..flow_euler import Accelerator, Guidance, attach, attached, detach, key_of

__all__ = ["Accelerator", "disable", "enable", "enabled", "key"]

SAMPLERS = {stage: f"{stage}_sampler" for stage in ("sparse_structure", "shape_slat", "tex_slat")}


def guidance(keywords: Mapping[str, Any]) -> Guidance | None:
    """``g c + (1 - g) u`` where ``guidance_interval`` holds the time; strength 1, the texture's default, is none."""
    if keywords.get("neg_cond") is None or keywords["guidance_strength"] == 1:
        return None
    interval = tuple(keywords.get("guidance_interval", (0.0, 1.0)))
    return Guidance(float(keywords["guidance_strength"]), interval, keywords.get("guidance_rescale", 0.0))


def enable(pipeline: Any, *, stages: Mapping[str, Any] | None = None, plan: Any = None, **settings: Any) -> Accelerator:
    """Attach the cache to the samplers of a pipeline from a patched checkout.

    Args:
        pipeline: ``Trellis2ImageTo3DPipeline`` or ``Trellis2TexturingPipeline``.
        stages: settings of single stages, on top of the others; ``None`` for a stage: off.
        plan: a plan, its file, or a list of them: each serves the stage that it was made for, the others are off.
        settings: of every stage; see :class:`forecache_adapters.settings.Settings`.

    Raises:
        RuntimeError: the samplers' class is not patched.
        ValueError, TypeError: a stage that does not exist, a setting out of its range.
    """
    return attach(pipeline, "trellis2", SAMPLERS, guidance, stages, plan, settings)


def disable(pipeline: Any) -> None:
    """Detach the cache; nothing happens if there is none."""
    detach(pipeline, SAMPLERS)


def enabled(pipeline: Any, **settings: Any) -> AbstractContextManager[Accelerator]:
    """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
    return attached(pipeline, SAMPLERS, partial(enable, pipeline, **settings))


def key(pipeline: Any, stage: str, **sampler_params: Any) -> dict[str, Any]:
    """What a plan for a stage is made for (``made_for``), at the pipeline's sampler parameters or those given."""
    return key_of(pipeline, "trellis2", SAMPLERS, guidance, stage, sampler_params)
