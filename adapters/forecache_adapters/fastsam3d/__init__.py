"""Fast-SAM3D. Needs the patch for the classes with a cache of their own: ``forecache patch apply fastsam3d CHECKOUT``.

::

    from forecache_adapters import fastsam3d

    handle = fastsam3d.enable(pipeline, basis="dmd")
    output = inference(image, mask)  # unchanged; `pipeline` is `inference._pipeline`
    print(handle.traces["ss"].full, handle.traces["slat"].carved)
    fastsam3d.disable(pipeline)

Stages: ``ss`` (structure and pose) and ``slat``; a generator may be given alone. Every leaf of a velocity has a
history of its own; ``groups=`` puts leaves together.

- ``ShortCut_faster``, ``FlowMatching_faster``: ``basis`` (or, in the first, a ``plan`` that computes the same steps)
  takes the place of the forecast rule. Their own schedule goes on deciding which steps compute (the last one need not
  be among them), and their carving which tokens; so ``interval``, ``warmup``, ``end`` and ``calls`` are refused.
  Adaptive guidance is too.
- ``ShortCut``, ``FlowMatching``: as :mod:`forecache_adapters.sam3d`, schedule and all; no patch needed.
"""

from __future__ import annotations

from typing import Any

from ..attach import functions
from ..families.generators import Adapter
from ..families.ode_hooks import Accelerator, Hook
from ..sam3d import stage_of
from .cached import CachedHook, CachedTrace, loop_of

__all__ = ["Accelerator", "CachedTrace", "change", "disable", "enable", "enabled", "key"]

PUBLISHED = {"hermite": {"interval": 4, "warmup": 2}, "dmd": {"interval": 5, "warmup": 4}}


def hook_of(generator: Any) -> type[Hook]:
    """What is attached to a generator, by its class."""
    return Hook if loop_of(generator) is None else CachedHook


_adapter = Adapter("fastsam3d", {"ss": "ss_generator", "slat": "slat_generator"}, stage_of, hook_of=hook_of)
enable, enabled, disable = functions(_adapter.make_handle, _adapter.hooks_on)
key = _adapter.key


def change(generator: Any, **settings: Any) -> Accelerator:
    """Attach the cache to one generator with settings on top of those that it has.

    Interval and warm-up that are not given are those published for the basis; with a generator that has a schedule of
    its own they stay out.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`enable`.
    """
    if loop_of(generator) is not None:
        return _adapter.change(generator, **{"interval": None, **settings})
    published = PUBLISHED.get(settings.get("basis", ""), {})
    missing = {name: value for name, value in published.items() if settings.get(name) is None}
    return _adapter.change(generator, **{**settings, **missing})
