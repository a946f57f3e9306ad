"""SAM 3D's structure generator around a network trained here; its condition is two pictures of a posed solid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import sam3d, sam3d_latents, solids
from .pictures import PictureConditioner
from .training import fill

WEIGHTS = Path(__file__).with_name("sam3d_structure.safetensors")
WIDTH = 128
NETWORK: dict[str, Any] = {
    "in_channels": 8, "out_channels": 8, "model_channels": WIDTH, "cond_channels": 64, "num_blocks": 4, "num_heads": 4,
    "qk_rms_norm": True, "is_shortcut_model": True, "force_zeros_cond": True,
}  # fmt: skip


class PosedConditioner(nn.Module):
    """``[B, 2, 1, 32, 32]``, see :func:`.sam3d_latents.pictures`, -> tokens ``[B, 32, 64]``."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.scene = PictureConditioner(), PictureConditioner()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.alone(pictures[:, 0])["main"], self.scene(pictures[:, 1])["main"]), 1)


def network(upstream: SimpleNamespace) -> nn.Module:
    """The flow network, untrained: a token of the shape is 4^3 voxels, so that there are 64 of them."""
    leaves = {}
    for name, channels in sam3d_latents.LEAVES.items():
        learnt = upstream.LearntPositionEmbedder(WIDTH, 1)
        place = upstream.ShapePositionEmbedder(WIDTH, sam3d_latents.SIDE, 1) if name == "shape" else learnt
        leaves[name] = upstream.Latent(channels, WIDTH, place)
    made: nn.Module = upstream.SparseStructureFlowTdfyWrapper(
        latent_mapping=leaves, latent_share_transformer={sam3d_latents.POSE[0]: list(sam3d_latents.POSE)}, **NETWORK
    )
    return made


class Trained(sam3d.Pipeline):
    """The structure stage alone; the condition ``seed`` is the posed solid of that number."""

    def __init__(self, generator: Any, conditioner: PosedConditioner) -> None:
        super().__init__({"ss_generator": generator})
        self.conditioner = conditioner
        self._known: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def condition(self, seed: int) -> torch.Tensor:
        """Tokens ``[1, 32, 64]``; the pictures of a solid are made once."""
        if seed not in self._known:
            _, solid = solids.solid(seed)
            self._known[seed] = self.conditioner(sam3d_latents.pictures(solid, sam3d_latents.draw_pose(seed))[None])
        return self._known[seed]


def build_reference(upstream: SimpleNamespace, weights: Path = WEIGHTS) -> Trained:
    """The upstream's generator at its default settings around the trained network."""
    flow, conditioner = network(upstream), PosedConditioner()
    fill(weights, {"network": flow, "conditioner": conditioner})
    return Trained(sam3d.generator(upstream, flow, sam3d.STRUCTURE), conditioner.eval().requires_grad_(False))
