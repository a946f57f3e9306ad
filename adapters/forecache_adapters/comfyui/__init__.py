"""ComfyUI (0.3.52 and newer): nodes that forecast a model's output, and a 3D pipeline's. No patch of ComfyUI.

``custom_nodes/forecache/__init__.py`` in ComfyUI's folder holds one line::

    from forecache_adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

In a script of one's own, :func:`~forecache_adapters.comfyui.patch` does what the first node does::

    from forecache_adapters.comfyui import patch, trace_of

    model = patch(model, basis="auto", calls=12)
    samples = comfy.sample.sample(model, noise, 30, 4.0, "euler", "simple", positive, negative, latent)
    print(trace_of(model).calls)

What is forecast is the derivative of the sampler's ODE, ``(x - denoised) / sigma``, of each conditioning entry alone:
its history is found again however ComfyUI puts entries into batches. Guidance, masks, callbacks and previews are
ComfyUI's own at every step. See docs/comfyui.md for samplers, limits, and the wrappers of 3D generators.
"""

from __future__ import annotations

from .model import key, patch, trace_of
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "key", "patch", "trace_of"]
