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
from typing import Any

from ..attach import functions
from ..families.flow_euler import Accelerator, Guidance
from ..families.staged import Adapter

__all__ = ["Accelerator", "disable", "enable", "enabled", "key"]


def guidance(keywords: Mapping[str, Any]) -> Guidance | None:
    """``g c + (1 - g) u`` where ``guidance_interval`` holds the time; strength 1, the texture's default, is none."""
    if keywords.get("neg_cond") is None or keywords.get("guidance_strength", 1) == 1:
        return None
    interval = tuple(keywords.get("guidance_interval", (0.0, 1.0)))
    return Guidance(float(keywords["guidance_strength"]), interval, keywords.get("guidance_rescale", 0.0))


_adapter = Adapter("trellis2", ("sparse_structure", "shape_slat", "tex_slat"), guidance)
enable, enabled, disable = functions(_adapter.make_handle)
key = _adapter.key
