"""Hunyuan3D-2's patched pipeline as mini runs it: around a small random network, or with its weights on a GPU."""

from __future__ import annotations

from typing import ClassVar

from forecache_adapters import hunyuan2 as adapter

from .hunyuan import HunyuanShape
from .reference import hunyuan2


class Hunyuan2Mini(HunyuanShape):
    """See :class:`.generated.Generator`."""

    name = "Hunyuan3D-2 mini"
    network = "small random network"
    octree = 32  # the upstream's own decoder, cross-attention at every grid point, takes most of a run
    extra = "hunyuan2mini-weights"
    adapter = adapter
    reference = hunyuan2
    from_pretrained: ClassVar = {"subfolder": "hunyuan3d-dit-v2-mini"}
