"""How far one mesh is from another, in the frame they were generated in: alignment would hide pose drift.

Lengths are in units of the longest side of the *reference* mesh's bounding box. Surfaces are compared through points:
``QUERIES`` points on one against ``TARGETS`` on the other. The denser target keeps the floor of the estimate (a mesh
against another sampling of itself) low; :func:`floor` measures it, and a difference below it is not a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import trimesh
from scipy.spatial import cKDTree

THRESHOLDS = (0.01, 0.02, 0.05)
QUERIES, TARGETS, VOXELS = 10_000, 100_000, 64


@dataclass(frozen=True)
class Geometry:
    """Distances of a mesh to its reference.

    Attributes:
        chamfer: mean of the two directed mean distances between the surfaces.
        fscore: per threshold of :data:`THRESHOLDS`, the harmonic mean of the shares of either surface within it.
        volume_iou: intersection over union of the filled voxels, ``VOXELS`` along the longest side.
        normals: mean |cosine| between the normals at closest points, both directions.
    """

    chamfer: float
    fscore: tuple[float, ...]
    volume_iou: float
    normals: float


def _sample(mesh: trimesh.Trimesh, count: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    points, faces = trimesh.sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points), np.asarray(mesh.face_normals[faces])


def _directed(a: trimesh.Trimesh, b: trimesh.Trimesh, seed: int) -> tuple[Any, float]:
    """Distances from points of a to the surface of b, and the mean |cosine| of the normals there."""
    points, normals = _sample(a, QUERIES, seed)
    targets, target_normals = _sample(b, TARGETS, seed + 1)
    distances, nearest = cKDTree(targets).query(points)
    return distances, float(np.abs((normals * target_normals[nearest]).sum(1)).mean())


def _voxels(mesh: trimesh.Trimesh, pitch: float) -> npt.NDArray[np.int64]:
    """The filled voxels, each as one number: 20 bits and a sign for each axis."""
    index = np.round(mesh.voxelized(pitch).fill().points / pitch).astype(np.int64) + (1 << 20)
    return np.unique(index[:, 0] << 42 | index[:, 1] << 21 | index[:, 2])


def _check(mesh: trimesh.Trimesh, reference: trimesh.Trimesh) -> None:
    for name, each in (("mesh", mesh), ("reference", reference)):
        if each is None or len(getattr(each, "faces", ())) == 0:
            raise ValueError(f"{name} has no faces: its surface extraction failed")


def chamfer(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> float:
    """:attr:`Geometry.chamfer` alone, a tenth of the work of :func:`compare`.

    Raises:
        ValueError: a mesh without faces.
    """
    _check(mesh, reference)
    (forth, _), (back, _) = _directed(mesh, reference, seed), _directed(reference, mesh, seed + 2)
    return float(forth.mean() + back.mean()) / 2 / float(reference.extents.max())


def compare(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> Geometry:
    """Distances of ``mesh`` to ``reference``; ``seed`` draws the surface points.

    Raises:
        ValueError: a mesh without faces (an extraction that failed).
    """
    _check(mesh, reference)
    unit = float(reference.extents.max())
    forth, cos_forth = _directed(mesh, reference, seed)
    back, cos_back = _directed(reference, mesh, seed + 2)
    shares = [(float((forth <= t * unit).mean()), float((back <= t * unit).mean())) for t in THRESHOLDS]
    mine, theirs = (_voxels(each, unit / VOXELS) for each in (mesh, reference))
    shared = len(np.intersect1d(mine, theirs, assume_unique=True))
    return Geometry(
        chamfer=float(forth.mean() + back.mean()) / 2 / unit,
        fscore=tuple(2 * p * r / (p + r) if p + r else 0.0 for p, r in shares),
        volume_iou=shared / (len(mine) + len(theirs) - shared),
        normals=(cos_forth + cos_back) / 2,
    )


def floor(reference: trimesh.Trimesh, seed: int = 1000) -> Geometry:
    """The reference against itself, sampled with another seed: what no method can go below."""
    return compare(reference, reference, seed)
