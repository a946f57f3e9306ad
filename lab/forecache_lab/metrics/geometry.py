"""How far one mesh is from another, in the frame they were generated in.

Nothing is aligned first: both meshes come out of one noise and one condition, so they share a frame, and an object that
moved, turned or grew has drifted. Alignment (ICP, or fitting the boxes) would take just that drift out of every figure.

Lengths are in units of the longest side of the *reference* mesh's bounding box, ``L``. Surfaces are compared through
points: ``QUERIES`` points ``P`` on one against ``TARGETS`` on the other, drawn evenly by area. With ``d(p, B)`` the
distance of ``p`` to the nearest point of ``B``:

================  ============================================================================  ===================
figure            formula                                                                       unit
================  ============================================================================  ===================
Chamfer           ``(mean_{p in A} d(p, B) + mean_{p in B} d(p, A)) / 2 / L``                    L
F-score at t      ``2 p r / (p + r)``, ``p = share of A with d(p, B) <= t L``, ``r`` of B alike  share
normals           mean ``|cos|`` of the normals at a point and at its nearest, both directions   cosine
volume IoU        ``|U & V| / |U | V|`` of filled voxels of side ``L / VOXELS``                  share
occupancy IoU     the same of a stage's decoded voxels (:func:`occupancy`)                       share
flip rate         ``|U ^ V| / voxels of the grid``                                               share
topology          connected components, watertight (:func:`topology`)                            count
pose              rotation, scale, translation apart: :mod:`.pose`                               degrees, ratio, L
================  ============================================================================  ===================

Seeds: with ``seed = s`` the points of ``mesh`` are drawn with ``s`` and their targets on the reference with ``s + 1``;
those of the reference with ``s + 2`` and their targets on ``mesh`` with ``s + 3``. Figures of tables have ``s = 0``,
the floor ``s = 1000``. The denser target keeps the floor of the estimate (a mesh against another sampling of itself)
low; :func:`floor` measures it, and a difference below it is not a difference. Occupancy and topology sample nothing.
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


@dataclass(frozen=True)
class Occupancy:
    """Two grids of voxels: ``iou`` of those that are filled, ``flip_rate``: the share of all that changed."""

    iou: float
    flip_rate: float


@dataclass(frozen=True)
class Topology:
    """Of one mesh, vertices at one place taken as one: connected components; whether every edge has two faces."""

    components: int
    watertight: bool


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


def check(mesh: trimesh.Trimesh, name: str = "mesh") -> None:
    """Whether a mesh can be measured.

    Raises:
        ValueError: it has no faces, a vertex that is not finite, or all vertices at one place.
    """
    if mesh is None or len(getattr(mesh, "faces", ())) == 0:
        raise ValueError(f"{name} has no faces: its surface extraction failed")
    if not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{name} has vertices that are not finite")
    if not mesh.extents.max() > 0:
        raise ValueError(f"{name} has no extent: all vertices are at one place")


def _check(mesh: trimesh.Trimesh, reference: trimesh.Trimesh) -> None:
    check(mesh)
    check(reference, "reference")


def chamfer(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> float:
    """:attr:`Geometry.chamfer` alone, a tenth of the work of :func:`compare`.

    Raises:
        ValueError: see :func:`check`.
    """
    _check(mesh, reference)
    (forth, _), (back, _) = _directed(mesh, reference, seed), _directed(reference, mesh, seed + 2)
    return float(forth.mean() + back.mean()) / 2 / float(reference.extents.max())


def compare(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> Geometry:
    """Distances of ``mesh`` to ``reference``; ``seed`` draws the surface points.

    Raises:
        ValueError: see :func:`check`.
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


def occupancy(grid: Any, reference: Any) -> Occupancy:
    """:class:`Occupancy` of two boolean grids of one shape, arrays or tensors; two empty ones have ``iou`` 1.

    Raises:
        ValueError: shapes that differ, or no voxels.
    """
    mine, theirs = np.asarray(grid, dtype=bool), np.asarray(reference, dtype=bool)
    if mine.shape != theirs.shape or not mine.size:
        raise ValueError(f"grids must have one shape and a voxel, got {mine.shape} and {theirs.shape}")
    either = int((mine | theirs).sum())
    return Occupancy(int((mine & theirs).sum()) / either if either else 1.0, float((mine ^ theirs).mean()))


def topology(mesh: trimesh.Trimesh) -> Topology:
    """:class:`Topology` of a mesh; the mesh stays as it is.

    Raises:
        ValueError: see :func:`check`.
    """
    check(mesh)
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    pairs = trimesh.graph.connected_components(welded.face_adjacency, nodes=np.arange(len(welded.faces)), min_len=1)
    return Topology(len(pairs), bool(welded.is_watertight))


def distances(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> npt.NDArray[np.float64]:
    """``d(v, reference) / L`` at every vertex ``[V]`` of ``mesh``, for a heat map.

    Targets are the reference's vertices and ``TARGETS`` points drawn with ``seed``, so a mesh is at distance 0 from
    itself.

    Raises:
        ValueError: see :func:`check`.
    """
    _check(mesh, reference)
    targets = np.concatenate((np.asarray(reference.vertices), _sample(reference, TARGETS, seed)[0]))
    found, _ = cKDTree(targets).query(np.asarray(mesh.vertices))
    return np.asarray(found / float(reference.extents.max()))
