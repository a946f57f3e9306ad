"""Meshes as the page carries them: few enough faces, numbers of 16 bits, a thumbnail, distances at the vertices."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import trimesh
from PIL import Image, ImageDraw
from scipy.spatial import cKDTree

from ..metrics import geometry

FACES = 6_000  # of one mesh
TOTAL = 200_000  # of all; with more than TOTAL / FACES meshes each gets fewer
LEAST = 600  # below this a shape is not to be recognised: further objects are left out, the least drifted first
THUMBNAIL = 150
STOPS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64)


@dataclass(frozen=True)
class Shape:
    """A mesh for the page.

    Attributes:
        mesh: simplified, y up as in the file. distance: at its vertices to the reference, in longest sides of that.
        topology: of the mesh before it was simplified, as are the distances.
    """

    mesh: trimesh.Trimesh
    topology: geometry.Topology
    distance: npt.NDArray[np.float64] | None = None


def load(file: Path) -> trimesh.Trimesh:
    """The mesh of a file.

    Raises:
        ValueError: missing, torn, or nothing that can be measured, see :func:`forecache_lab.metrics.geometry.check`.
    """
    if not file.is_file():
        raise ValueError("the file is missing, or is no file")
    try:
        mesh: Any = trimesh.load(file, force="mesh")
    except Exception as error:  # a torn file fails anywhere in its reader
        raise ValueError(f"cannot be read: {type(error).__name__}: {error}") from None
    geometry.check(mesh, "it")
    found: trimesh.Trimesh = mesh
    return found


def limit(count: int) -> int:
    """Faces that each of ``count`` meshes may have."""
    return int(max(LEAST, min(FACES, TOTAL // max(count, 1))))


def simplified(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """``mesh`` with at most about ``faces`` faces, by quadric error; as it is, if it has no more."""
    return mesh if len(mesh.faces) <= faces else mesh.simplify_quadric_decimation(face_count=faces)


def shape(mesh: trimesh.Trimesh, faces: int, reference: trimesh.Trimesh | None = None) -> Shape:
    """``mesh`` for the page; distances are those of the full meshes, handed to the nearest vertex that is left."""
    small, distance = simplified(mesh, faces), None
    if reference is not None:
        full = geometry.distances(mesh, reference)
        distance = full[cKDTree(mesh.vertices).query(small.vertices)[1]]
    return Shape(small, geometry.topology(mesh), distance)


def packed(each: Shape) -> dict[str, Any]:
    """Base64 of little-endian numbers: ``p`` uint16 ``[V, 3]`` between ``low`` and ``high``, ``f`` uint16 or uint32
    ``[F, 3]``, ``d`` uint16 ``[V]`` between 0 and ``far``.
    """
    vertices = np.asarray(each.mesh.vertices, dtype=np.float64)
    low, high = vertices.min(0), vertices.max(0)
    wide = len(vertices) > 0xFFFF
    found: dict[str, Any] = {
        "low": low.tolist(),
        "high": high.tolist(),
        "p": _base64(np.rint((vertices - low) / np.maximum(high - low, 1e-12) * 0xFFFF).astype("<u2")),
        "f": _base64(np.asarray(each.mesh.faces).astype("<u4" if wide else "<u2")),
        "wide": wide,
        "components": each.topology.components,
        "watertight": each.topology.watertight,
    }
    if each.distance is not None:
        far = max(float(each.distance.max()), 1e-9)
        found |= {"far": far, "d": _base64(np.rint(each.distance / far * 0xFFFF).astype("<u2"))}
    return found


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def thumbnail(each: Shape, frame: trimesh.Trimesh, far: float) -> str:
    """A PNG's data URL: fixed view, farthest face first, lit; by distance in the page's colours if there is one.

    ``frame``: the mesh that fills the picture, so that two of them can be compared. ``far``: distance at full colour.
    """
    tilt, pan = np.radians(24), np.radians(-35)
    down = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    turn = down @ np.array([[np.cos(pan), 0, np.sin(pan)], [0, 1, 0], [-np.sin(pan), 0, np.cos(pan)]])
    size = 2 * THUMBNAIL
    corners = (each.mesh.triangles - frame.bounds.mean(0)) @ turn.T
    half = np.abs((frame.vertices - frame.bounds.mean(0)) @ turn.T)[:, :2].max() * 1.08
    flat = (corners[:, :, :2] * [1, -1] / half + 1) * size / 2
    light = 0.45 + 0.55 * np.clip(each.mesh.face_normals @ turn.T @ np.array([-0.35, 0.6, 0.72]), 0, 1)
    colour = np.full((len(corners), 3), (176.0, 186.0, 200.0))
    if each.distance is not None:
        share = np.clip(each.distance[each.mesh.faces].mean(1) / max(far, 1e-9), 0, 1) * (len(STOPS) - 1)
        colour = np.stack([np.interp(share, range(len(STOPS)), STOPS[:, k]) for k in range(3)], 1)
    shade = np.clip(colour * light[:, None], 0, 255).astype(int)
    picture = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(picture)
    for k in np.argsort(corners[:, :, 2].mean(1)):
        draw.polygon([tuple(point) for point in flat[k]], fill=tuple(shade[k]))
    held = io.BytesIO()
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.quantize(64, method=Image.Quantize.FASTOCTREE).save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
