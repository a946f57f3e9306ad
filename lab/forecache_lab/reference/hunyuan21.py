"""Hunyuan3D-2.1's own pipeline, network class and mesh extraction around a small trained network.

Real upstream code: the flow-matching pipeline and its loop, ``HunYuanDiTPlain`` with MoE layers, the Euler scheduler,
the volume decoder and marching cubes. Ours: the conditioner (a patch embedding of one picture) and the analytic
decoder: 64 tokens of 64 channels are the 4x4x4 patches of a 16^3 signed-distance grid, read trilinearly.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .pictures import PICTURE as PICTURE  # both belong to the interface of this module too
from .pictures import PictureConditioner as PictureConditioner
from .stubs import stub
from .training import fill

RESOLUTION, PATCH = 16, 4
TOKENS, CHANNELS = (RESOLUTION // PATCH) ** 3, PATCH**3
CLIP, OFFSET, SCALE = 0.3, 0.2, 8.0  # latent = (clip(distance) - OFFSET) * SCALE, about zero mean and unit variance
GUIDANCE = 3.0
NETWORK: dict[str, Any] = {
    "input_size": TOKENS, "in_channels": CHANNELS, "hidden_size": 160, "context_dim": 64, "depth": 5, "num_heads": 5,
    "qk_norm": True, "qkv_bias": False, "text_len": 16, "use_pos_emb": True, "use_attention_pooling": False,
    "num_moe_layers": 2, "num_experts": 4,
}  # fmt: skip
WEIGHTS = Path(__file__).with_name("hunyuan21.safetensors")


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the shape path of a checkout that holds ``hy3dshape/hy3dshape``; classes by role.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the package.
        RuntimeError: another checkout's ``hy3dshape`` is already imported (a process holds one).
    """
    root = Path(checkout).resolve() / "hy3dshape"
    if not (root / "hy3dshape" / "pipelines.py").is_file():
        raise FileNotFoundError(f"checkout: {checkout} holds no hy3dshape/hy3dshape/pipelines.py")
    import diffusers.models.attention  # noqa: F401  before any stub: diffusers probes for optional packages

    stub("pymeshlab")
    stub("cv2")
    stub("torchvision", "torchvision.transforms")
    stub("transformers")
    stub("omegaconf")
    stub("timm", "timm.models", "timm.models.vision_transformer")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from hy3dshape import pipelines, schedulers  # type: ignore[import-not-found]
    from hy3dshape.models.autoencoders.model import VectsetVAE  # type: ignore[import-not-found]
    from hy3dshape.models.denoisers.hunyuandit import HunYuanDiTPlain  # type: ignore[import-not-found]

    if Path(pipelines.__file__).resolve().parent != root / "hy3dshape":
        raise RuntimeError(f"checkout: {pipelines.__file__} is already imported; start a new process for {checkout}")
    return SimpleNamespace(
        Pipeline=pipelines.Hunyuan3DDiTFlowMatchingPipeline,
        Network=HunYuanDiTPlain,
        Autoencoder=VectsetVAE,
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
    upstream: SimpleNamespace, weights: Path | None = WEIGHTS, dtype: torch.dtype = torch.float32, turbo: bool = False
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
