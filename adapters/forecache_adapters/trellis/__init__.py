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
from typing import Any

from ..attach import functions
from ..families.flow_euler import Accelerator, Guidance
from ..families.staged import Adapter

__all__ = ["Accelerator", "disable", "enable", "enabled", "key"]


def guidance(keywords: Mapping[str, Any]) -> Guidance | None:
    """``(1 + w) c - w u`` where ``cfg_interval`` holds the time: g = 1 + w."""
    if keywords.get("neg_cond") is None or "cfg_strength" not in keywords:
        return None
    return Guidance(1.0 + keywords["cfg_strength"], tuple(keywords.get("cfg_interval", (0.0, 1.0))))


_adapter = Adapter("trellis", ("sparse_structure", "slat"), guidance)
enable, enabled, disable = functions(_adapter.make_handle)
key = _adapter.key
