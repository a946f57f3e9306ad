"""SAM 3D's structure generator around a network trained here; its condition is a coarse look at a posed solid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import sam3d, sam3d_latents, solids, trellis_latents
from .weights import fill

WIDTH = 128
NETWORK: dict[str, Any] = {
    "in_channels": 8, "out_channels": 8, "model_channels": WIDTH, "cond_channels": 64, "num_blocks": 4, "num_heads": 4,
    "qk_rms_norm": True, "is_shortcut_model": True, "force_zeros_cond": True,
}  # fmt: skip


class Conditioner(nn.Module):
    """Measurements ``[B, 77]``, see :func:`.sam3d_latents.measure`, -> tokens ``[B, 12, 64]``.

    Eight tokens for the shape, each of eight neighbours, and one for each leaf of the pose.
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.sizes = [sam3d_latents.TOKENS, *(sam3d_latents.LEAVES[name] for name in sam3d_latents.POSE)]
        self.shape = nn.Linear(trellis_latents.CHANNELS, dim)
        self.pose = nn.ModuleList(nn.Linear(size, dim) for size in self.sizes[1:])
        self.position = nn.Parameter(torch.randn(1, 8 + len(self.pose), dim) * 0.02)
        self.mix = nn.TransformerEncoderLayer(dim, 4, dim * 2, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, measured: torch.Tensor) -> torch.Tensor:
        coarse, *pose = torch.split(measured, self.sizes, 1)
        parts = trellis_latents.cut(coarse.reshape(-1, *[sam3d_latents.SIDE] * 3)).flatten(2).mT
        leaves = [layer(leaf)[:, None] for layer, leaf in zip(self.pose, pose, strict=True)]
        tokens: torch.Tensor = self.mix(torch.cat([self.shape(parts), *leaves], 1) + self.position)
        return tokens


def posed(seed: int) -> dict[str, torch.Tensor]:
    """The leaves ``[1, tokens, channels]`` of the posed solid of a number."""
    _, distance = solids.solid(seed)
    grid = solids.grid(distance, trellis_latents.VOXELS, centres=True)
    pose = sam3d_latents.to_leaves(sam3d_latents.draw_pose(seed))
    return {"shape": sam3d_latents.to_shape(grid[None]), **{name: leaf[None, None] for name, leaf in pose.items()}}


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
    """The structure stage alone; the condition ``seed`` is the posed solid of that number, or a picture's outline."""

    def __init__(self, generator: Any, conditioner: Conditioner) -> None:
        super().__init__({"ss_generator": generator})
        self.conditioner = conditioner

    @torch.no_grad()
    def condition(self, seed: int | torch.Tensor) -> torch.Tensor:
        """Tokens ``[1, 12, 64]``."""
        if isinstance(seed, torch.Tensor):
            measured = sam3d_latents.outline(seed)
        else:
            measured = sam3d_latents.measure(posed(seed), torch.Generator().manual_seed(seed))
        tokens: torch.Tensor = self.conditioner(measured)
        return tokens


def build_reference(upstream: SimpleNamespace, weights: str | Path = "sam3d_structure") -> Trained:
    """The upstream's generator at its default settings around the trained network."""
    flow, conditioner = network(upstream), Conditioner()
    fill(weights, {"network": flow, "conditioner": conditioner})
    return Trained(sam3d.generator(upstream, flow, sam3d.STRUCTURE), conditioner.eval().requires_grad_(False))
