"""What TRELLIS's two latents mean here: signed distances of a solid, with analytic decoders in place of networks.

Both are a grid of cells cut into eight. Sparse structure: the distances at the centres of 16^3 voxels as 8 channels on
8^3. Structured latent: for every occupied voxel of the 16^3, the distances at the centres of its eight parts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import nn

VOXELS = 16
CHANNELS = 8
# A voxel is occupied where a part of it may lie inside: its centre is at most this far from the centre of a part
MARGIN = math.sqrt(3) / (2 * VOXELS)
CLIP, OFFSET, SCALE = 0.3, 0.2, 8.0  # latent = (clip(distance) - OFFSET) * SCALE, about zero mean and unit variance
FINE_CLIP = 0.15  # the distances of a structured latent; occupied voxels end at 2 MARGIN = 0.11 outside the surface


def cut(grid: torch.Tensor) -> torch.Tensor:
    """``[B, 2n, 2n, 2n]`` -> ``[B, 8, n, n, n]``: the eight parts of a cell become its channels."""
    b, n = len(grid), grid.shape[-1] // 2
    return grid.reshape(b, n, 2, n, 2, n, 2).permute(0, 2, 4, 6, 1, 3, 5).reshape(b, CHANNELS, n, n, n)


def join(cells: torch.Tensor) -> torch.Tensor:
    """``[B, 8, n, n, n]`` -> ``[B, 2n, 2n, 2n]``, the inverse of :func:`cut`."""
    b, n = len(cells), cells.shape[-1]
    return cells.reshape(b, 2, 2, 2, n, n, n).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, 2 * n, 2 * n, 2 * n)


def to_structure(distances: torch.Tensor) -> torch.Tensor:
    """Distances at the centres of voxels ``[B, 16, 16, 16]`` -> latents ``[B, 8, 8, 8, 8]``."""
    return (cut(distances).clamp(-CLIP, CLIP) - OFFSET) * SCALE


class StructureDecoder(nn.Module):
    """Latents ``[B, 8, 8, 8, 8]`` -> logits ``[B, 1, 16, 16, 16]``, positive in occupied voxels."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return MARGIN - (join(latents) / SCALE + OFFSET)[:, None]


def occupied(distances: torch.Tensor) -> torch.Tensor:
    """Occupied voxels ``[B, 16, 16, 16]`` of a solid, from the distances at their centres."""
    return distances < MARGIN


def to_feats(distances: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Distances at the centres of the parts ``[B, 32, 32, 32]``, voxels ``[N, 4]`` (batch, x, y, z) -> ``[N, 8]``."""
    parts = cut(distances.clamp(-FINE_CLIP, FINE_CLIP)).movedim(1, -1)
    return parts[coords.long().unbind(1)]


def to_grid(feats: torch.Tensor, coords: torch.Tensor, batch: int = 1) -> torch.Tensor:
    """Distances ``[N, 8]`` of voxels ``[N, 4]`` -> ``[batch, 32, 32, 32]``; what is not occupied lies outside."""
    cells = feats.new_full((batch, VOXELS, VOXELS, VOXELS, CHANNELS), FINE_CLIP)
    cells[coords.long().unbind(1)] = feats
    return join(cells.movedim(-1, 1))


def to_mesh(grid: torch.Tensor) -> trimesh.Trimesh:
    """Surface in ``[-1, 1]^3`` of distances ``[32, 32, 32]`` at the centres of cells; empty if nothing is inside."""
    if not (grid < 0).any():
        return trimesh.Trimesh()
    padded = np.pad(grid.float().cpu().numpy(), 1, constant_values=FINE_CLIP)  # closes what reaches the boundary
    vertices, faces, *_ = marching_cubes(padded, level=0.0)  # type: ignore[no-untyped-call]
    return trimesh.Trimesh((vertices - 0.5) * (2 / len(grid)) - 1, faces, process=False)
