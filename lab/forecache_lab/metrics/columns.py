"""Columns that several tables have: how far surface, voxels and pose are from those of the uncached run."""

from __future__ import annotations

from typing import Protocol

import torch

from . import geometry, pose


class Decoded(Protocol):
    """What a run's latent decodes to; ``None``: the generator has none."""

    @property
    def occupancy(self) -> torch.Tensor | None:
        """Voxels."""
        ...

    @property
    def pose(self) -> pose.Pose | None:
        """See :class:`forecache_lab.metrics.pose.Pose`."""
        ...


def surface(found: geometry.Geometry) -> dict[str, float]:
    """Distances of two surfaces, a column each."""
    shares = zip(geometry.THRESHOLDS, found.fscore, strict=True)
    return {
        "Chamfer": found.chamfer, **{f"F@{t}": share for t, share in shares},
        "normals": found.normals, "volume IoU": found.volume_iou,
    }  # fmt: skip


def voxels_and_pose(made: Decoded, reference: Decoded) -> dict[str, float]:
    """IoU and flip rate of the voxels; rotation in degrees, scale as a ratio and translation in scene scales."""
    found: dict[str, float] = {}
    if made.occupancy is not None and reference.occupancy is not None:
        voxels = geometry.occupancy(made.occupancy.cpu(), reference.occupancy.cpu())
        found["occupancy IoU"], found["flip rate"] = voxels.iou, voxels.flip_rate
    if made.pose is not None and reference.pose is not None:
        found["rotation, degrees"] = float(pose.rotation_angle(made.pose.rotation, reference.pose.rotation))
        found["scale ratio"] = float(pose.scale_ratio(made.pose.scale, reference.pose.scale))
        found["translation"] = float(pose.translation_distance(made.pose.translation, reference.pose.translation))
    return found
