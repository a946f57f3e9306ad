"""SAM 3D Objects. No patch needed; ``forecache patch apply sam3d CHECKOUT`` adds the methods of HiCache++.

::

    from forecache_adapters import sam3d

    handle = sam3d.enable(pipeline, basis="dmd", interval=3, stages={"slat": {"interval": 4}})
    output = inference(image, mask)  # unchanged; `pipeline` is `inference._pipeline`
    print(handle.traces["ss"].calls)  # network calls by branch
    sam3d.disable(pipeline)

Stages: ``ss`` (structure and pose) and ``slat``; a generator may be given alone. The branches are forecast below
guidance, so nothing is extrapolated across the edge of its interval, where the velocity after guidance jumps. The
pose leaves are forecast together, apart from the shape: ``groups={"pose": Group((...), basis="linear")}`` gives them a
rule of their own. The distilled mode of four steps leaves nothing to forecast: the cache stays off, and says so.
"""

from __future__ import annotations

from typing import Any

from ..attach import functions
from ..families.generators import Adapter
from ..families.ode_hooks import Accelerator

__all__ = ["GROUPS", "Accelerator", "change", "disable", "enable", "enabled", "key"]


#: What is forecast together: one fit over the numbers of shape and pose would see the shape alone
GROUPS = {"pose": ("6drotation_normalized", "scale", "translation", "translation_scale")}


def stage_of(generator: Any) -> str:
    """The stage of a generator, by the class of its network."""
    return "slat" if type(getattr(generator.reverse_fn, "backbone", None)).__name__.startswith("SLat") else "ss"


def groups_of(generator: Any) -> dict[str, tuple[str, ...]]:
    """:data:`GROUPS`, as far as the network has their leaves."""
    leaves = getattr(getattr(generator.reverse_fn, "backbone", None), "latent_mapping", ())
    found = {name: tuple(leaf for leaf in group if leaf in leaves) for name, group in GROUPS.items()}
    return {name: group for name, group in found.items() if group}


_fast = "use forecache_adapters.fastsam3d for Fast-SAM3D, or the upstream's own class"
_adapter = Adapter(
    "sam3d",
    {"ss": "ss_generator", "slat": "slat_generator"},
    stage_of,
    groups_of,
    {"_faster": _fast, "_taylorseer": _fast},
)
enable, enabled, disable = functions(_adapter.make_handle, _adapter.hooks_on)
key = _adapter.key
change = _adapter.change
