"""Hunyuan3D-2.1's own pipeline, network class and mesh extraction around a small trained network.

Real upstream code: the flow-matching pipeline and its loop, ``HunYuanDiTPlain`` with MoE layers, the Euler scheduler,
the volume decoder and marching cubes. Ours: the conditioner (a patch embedding of one picture) and the analytic
decoder: 64 tokens of 64 channels are the 4x4x4 patches of a 16^3 signed-distance grid, read trilinearly.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .pictures import (
    PictureConditioner,
)
from .stubs import import_shape_path
from .weights import fill

RESOLUTION, PATCH = 16, 4
TOKENS, CHANNELS = (RESOLUTION // PATCH) ** 3, PATCH**3
CLIP, OFFSET, SCALE = 0.3, 0.2, 8.0  # latent = (clip(distance) - OFFSET) * SCALE, about zero mean and unit variance
GUIDANCE = 3.0
NETWORK: dict[str, Any] = {
    "input_size": TOKENS, "in_channels": CHANNELS, "hidden_size": 160, "context_dim": 64, "depth": 5, "num_heads": 5,
    "qk_norm": True, "qkv_bias": False, "text_len": 16, "use_pos_emb": True, "use_attention_pooling": False,
    "num_moe_layers": 2, "num_experts": 4,
}  # fmt: skip


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the shape path of a checkout that holds ``hy3dshape/hy3dshape``; classes by role.

    Raises:
        FileNotFoundError, RuntimeError: see :func:`forecache_lab.generators.reference.stubs.import_shape_path`.
    """
    pipelines, schedulers, autoencoders, denoisers = import_shape_path(
        checkout, "hy3dshape", "hy3dshape.pipelines", "hy3dshape.schedulers",
        "hy3dshape.models.autoencoders.model", "hy3dshape.models.denoisers.hunyuandit",
    )  # fmt: skip
    return SimpleNamespace(
        Pipeline=pipelines.Hunyuan3DDiTFlowMatchingPipeline,
        Network=denoisers.HunYuanDiTPlain,
        Autoencoder=autoencoders.VectsetVAE,
        Scheduler=schedulers.FlowMatchEulerDiscreteScheduler,
        TurboScheduler=schedulers.ConsistencyFlowMatchEulerDiscreteScheduler,
    )


def to_latent(distances: torch.Tensor) -> torch.Tensor:
    """Grids ``[B, 16, 16, 16]`` -> latents ``[B, 64, 64]``."""
    n = RESOLUTION // PATCH
    cut = distances.reshape(-1, n, PATCH, n, PATCH, n, PATCH).permute(0, 1, 3, 5, 2, 4, 6)
    return (cut.reshape(-1, TOKENS, CHANNELS).clamp(-CLIP, CLIP) - OFFSET) * SCALE


def to_distance(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 64, 64]`` -> grids ``[B, 16, 16, 16]``, the inverse of :func:`to_latent` inside the clip."""
    n = RESOLUTION // PATCH
    cut = latents.reshape(-1, n, n, n, PATCH, PATCH, PATCH).permute(0, 1, 4, 2, 5, 3, 6)
    return cut.reshape(-1, RESOLUTION, RESOLUTION, RESOLUTION) / SCALE + OFFSET


def make_autoencoder(upstream: SimpleNamespace) -> nn.Module:
    """The upstream's autoencoder base (volume decoder and surface extraction are its own) with the analytic decoder."""

    class GridAutoencoder(upstream.Autoencoder):  # type: ignore[misc,name-defined]
        scale_factor, latent_shape = 1.0, (TOKENS, CHANNELS)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return to_distance(latents)

        def geo_decoder(self, queries: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            """Minus the signed distance at ``queries [B, P, 3]`` (the upstream takes the inside as positive)."""
            where = queries.to(latents.dtype).flip(-1)[:, None, None]  # grid_sample wants z, y, x for axes x, y, z
            field = functional.grid_sample(
                latents[:, None], where, mode="bilinear", padding_mode="border", align_corners=True
            )
            return -field[:, 0, 0, 0, :, None]

    return GridAutoencoder()


def process_picture(picture: torch.Tensor) -> dict[str, torch.Tensor]:
    """The image processor's contract: ``{"image", "mask"}`` for one picture ``[1, 1, 32, 32]`` in ``[-1, 1]``."""
    return {"image": picture, "mask": torch.ones_like(picture)}


def build(
    upstream: SimpleNamespace,
    weights: str | Path | None = "hunyuan21",
    dtype: torch.dtype = torch.float32,
    turbo: bool = False,
) -> Any:
    """The upstream's pipeline with the trained network (``weights=None``: the untrained one, woken)."""
    torch.manual_seed(0)
    network, conditioner = upstream.Network(**NETWORK), PictureConditioner()
    if weights is None:
        with torch.no_grad():  # a zero output layer predicts v = 0 and every cache test passes vacuously
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    else:
        fill(weights, {"network": network, "conditioner": conditioner})
    scheduler = upstream.TurboScheduler(pcm_timesteps=100) if turbo else upstream.Scheduler()
    return upstream.Pipeline(
        vae=make_autoencoder(upstream).eval(), model=network.eval(), conditioner=conditioner.eval(),
        scheduler=scheduler, image_processor=process_picture, device="cpu", dtype=dtype,
    )  # fmt: skip
