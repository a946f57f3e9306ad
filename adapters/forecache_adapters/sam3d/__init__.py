"""SAM 3D Objects. No patch needed; ``forecache patch apply sam3d CHECKOUT`` adds the methods of HiCache++.

::

    from forecache_adapters import sam3d

    handle = sam3d.enable(pipeline, basis="dmd", interval=3, stages={"slat": {"interval": 4}})
    output = inference(image, mask)  # unchanged; `pipeline` is `inference._pipeline`
    print(handle.traces["ss"].calls)  # network calls by branch
    sam3d.disable(pipeline)

Stages: ``ss`` (structure and pose) and ``slat``; a generator may be given alone. The branches are forecast below
guidance, so nothing is extrapolated across the edge of its interval, where the velocity after guidance jumps. The
distilled mode of four steps leaves nothing to forecast: the cache stays off, and says so.
"""

from __future__ import annotations

from typing import Any

from ..generators import Adapter
from ..ode_solver import Accelerator

__all__ = ["Accelerator", "change", "disable", "enable", "enabled", "key"]


def stage_of(generator: Any) -> str:
    """The stage of a generator, by the class of its network."""
    return "slat" if type(generator.reverse_fn.backbone).__name__.startswith("SLat") else "ss"


_fast = "use forecache_adapters.fastsam3d for Fast-SAM3D, or the upstream's own class"
_adapter = Adapter(
    "sam3d",
    {"ss": "ss_generator", "slat": "slat_generator"},
    stage_of,
    {"_faster": _fast, "_taylorseer": _fast},
)
enable, disable, enabled, key = _adapter.enable, _adapter.disable, _adapter.enabled, _adapter.key
change = _adapter.change
