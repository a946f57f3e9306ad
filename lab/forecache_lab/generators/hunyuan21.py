"""Hunyuan3D-2.1's patched pipeline: around the trained reference network, or with its own weights on a GPU."""

from __future__ import annotations

from forecache_adapters import hunyuan21 as adapter

from .hunyuan import HunyuanShape
from .reference import hunyuan21


class Hunyuan21(HunyuanShape):
    """See :class:`.generated.Generator`."""

    name = "Hunyuan3D-2.1"
    network = "small trained reference network"
    extra = "hunyuan21-weights"
    weights_need = (*HunyuanShape.weights_need, "omegaconf")
    adapter = adapter
    reference = hunyuan21
