"""Hunyuan3D-2's own pipeline, networks and mesh extraction, with small random weights.

Real upstream code: the flow-matching pipeline and its loop, ``Hunyuan3DDiT``, the decoder of ``ShapeVAE``, both
schedulers, the volume decoder and marching cubes. Ours: conditioner and image processor. Nothing here is trained, so a
table made with it tells a right forecast from a wrong one, and not which rule is best.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .hunyuan21 import process_picture
from .pictures import PictureConditioner
from .stubs import import_shape_path

TOKENS, CHANNELS, CONTEXT = 32, 8, 64
GUIDANCE = 5.0  # the upstream's default
VARIANTS = ("mini", "multiview", "fast", "turbo")
NETWORK: dict[str, Any] = {
    "in_channels": CHANNELS, "context_in_dim": CONTEXT, "hidden_size": 64, "num_heads": 4, "axes_dim": [16],
    "depth": 2, "depth_single_blocks": 2,
}  # fmt: skip
AUTOENCODER: dict[str, Any] = {
    "num_latents": TOKENS, "embed_dim": CHANNELS, "width": 64, "heads": 4, "num_decoder_layers": 2,
    "include_pi": False, "num_freqs": 3, "qkv_bias": False, "qk_norm": True,
}  # fmt: skip
ENCODER = {"num_encoder_layers": 1, "pc_size": 64, "pc_sharpedge_size": 0, "point_feats": 4}  # never called
OUTPUT_GAIN = 4.0  # with less, the velocity hardly changes over time and right and wrong forecasts look alike
RADIUS, SLOPE = 0.7, 8.0  # of the sphere that the decoder's field is added to: enough to close the surface


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the shape path of a checkout that holds ``hy3dgen``; classes by role.

    Raises:
        FileNotFoundError, RuntimeError: see :func:`forecache_lab.generators.reference.stubs.import_shape_path`.
    """
    pipelines, schedulers, autoencoders, denoisers = import_shape_path(
        checkout, "", "hy3dgen.shapegen.pipelines", "hy3dgen.shapegen.schedulers",
        "hy3dgen.shapegen.models.autoencoders", "hy3dgen.shapegen.models.denoisers.hunyuan3ddit",
    )  # fmt: skip
    return SimpleNamespace(
        Pipeline=pipelines.Hunyuan3DDiTFlowMatchingPipeline,
        Network=denoisers.Hunyuan3DDiT,
        Autoencoder=autoencoders.ShapeVAE,
        Scheduler=schedulers.FlowMatchEulerDiscreteScheduler,
        TurboScheduler=schedulers.ConsistencyFlowMatchEulerDiscreteScheduler,
    )


class ViewsConditioner(PictureConditioner):
    """The contract of the multiview encoder: ``[B, V, 1, 32, 32]`` and view numbers -> ``{"main": [B, 16 V, 64]}``."""

    def __init__(self) -> None:
        super().__init__()
        self.views = nn.Parameter(torch.randn(4, 1, CONTEXT))

    def forward(
        self, image: torch.Tensor, mask: torch.Tensor | None = None, view_idxs: Any = None, **unused: Any
    ) -> dict[str, torch.Tensor]:
        tokens = super().forward(image.flatten(0, 1))["main"]
        seen = tokens.reshape(*image.shape[:2], *tokens.shape[1:]) + self.views[torch.tensor(view_idxs)]
        return {"main": seen.flatten(1, 2)}

    def unconditional_embedding(self, batch_size: int, view_idxs: Any = None, **unused: Any) -> dict[str, torch.Tensor]:
        return {"main": super().unconditional_embedding(batch_size)["main"].repeat(1, len(view_idxs[0]), 1)}


def process_views(pictures: dict[int, torch.Tensor]) -> dict[str, Any]:
    """The multiview image processor's contract, for pictures ``[1, 1, 32, 32]`` by view number."""
    image = torch.cat([pictures[view] for view in sorted(pictures)])[None]
    return {"image": image, "mask": torch.ones_like(image), "view_idxs": tuple(sorted(pictures))}


def _add_sphere(
    module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], logits: torch.Tensor
) -> torch.Tensor:
    """A random decoder has no closed level set: the latent dents a sphere instead."""
    distance: torch.Tensor = keywords["queries"].norm(dim=-1, keepdim=True).to(logits.dtype)
    return logits + SLOPE * (RADIUS - distance)


def make_autoencoder(upstream: SimpleNamespace) -> nn.Module:
    """The upstream's autoencoder; the encoder, which older versions lack, is as small as it gets and never called."""
    accepted = inspect.signature(upstream.Autoencoder).parameters
    encoder = {name: value for name, value in ENCODER.items() if name in accepted}
    autoencoder: nn.Module = upstream.Autoencoder(**AUTOENCODER, **encoder)
    generator = torch.Generator().manual_seed(0)  # of its own: the encoder's draws must not change the decoder
    for part in ("post_kl", "transformer", "geo_decoder"):
        for module in autoencoder.get_submodule(part).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    autoencoder.get_submodule("geo_decoder").register_forward_hook(_add_sphere, with_kwargs=True)
    return autoencoder


def build(upstream: SimpleNamespace, variant: str = "mini", dtype: torch.dtype = torch.float32) -> Any:
    """The upstream's pipeline around small random networks.

    Args:
        upstream: what :func:`load` returned.
        variant: ``"mini"``; ``"multiview"``: several pictures a sample; ``"fast"``: guidance is an input of the
            network; ``"turbo"``: that, and the consistency scheduler.
        dtype: of networks and latents.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    torch.manual_seed(0)
    network = upstream.Network(**NETWORK, guidance_embed=variant in ("fast", "turbo"))
    with torch.no_grad():
        network.final_layer.linear.weight.mul_(OUTPUT_GAIN)
    views = variant == "multiview"
    conditioner = ViewsConditioner() if views else PictureConditioner()
    scheduler = upstream.TurboScheduler(pcm_timesteps=100) if variant == "turbo" else upstream.Scheduler()
    return upstream.Pipeline(
        vae=make_autoencoder(upstream).eval(), model=network.eval(), conditioner=conditioner.eval(),
        scheduler=scheduler, image_processor=process_views if views else process_picture, device="cpu", dtype=dtype,
    )  # fmt: skip
