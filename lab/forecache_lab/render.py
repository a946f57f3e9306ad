"""Meshes as pictures: one fixed view, flat shading, no screen needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import trimesh

mpl.use("Agg")
from matplotlib import pyplot as plt
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

VIEW = {"elev": 24, "azim": -55}


def _draw(axes: Any, mesh: trimesh.Trimesh, colour: Sequence[float]) -> None:
    corners = np.asarray(mesh.triangles)[:, :, [0, 2, 1]] * [1, -1, 1]  # y is up; matplotlib's z is
    normals = np.asarray(mesh.face_normals)[:, [0, 2, 1]] * [1, -1, 1]
    light = np.array([0.45, -0.5, 0.75])
    shade = 0.35 + 0.65 * np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
    collection = Poly3DCollection(
        corners, facecolors=np.clip(shade[:, None] * np.asarray(colour), 0, 1), antialiased=False
    )
    axes.add_collection3d(collection)
    axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), zlim=(-0.75, 0.75))
    axes.set_box_aspect((1, 1, 1), zoom=1.15)
    axes.view_init(**VIEW)
    axes.set_axis_off()


def sheet(
    path: Path,
    rows: Sequence[Sequence[trimesh.Trimesh | np.ndarray[Any, Any]]],
    titles: Sequence[str],
    names: Sequence[str],
) -> None:
    """A grid of meshes (or grey pictures ``[h, w]``), one column a title, one row a name."""
    head = 0.14 + 0.13 * max(title.count("\n") + 1 for title in titles)  # inches
    figure = plt.figure(figsize=(1.9 * len(titles), 1.9 * len(rows) + head), dpi=110)
    for r, row in enumerate(rows):
        for c, what in enumerate(row):
            index = r * len(titles) + c + 1
            if isinstance(what, np.ndarray):
                axes = figure.add_subplot(len(rows), len(titles), index)
                axes.imshow(what, cmap="gray", vmin=-1, vmax=1)
                axes.set_axis_off()
            else:
                axes = figure.add_subplot(len(rows), len(titles), index, projection="3d")
                _draw(axes, what, (0.45, 0.62, 0.85) if c % 2 else (0.85, 0.8, 0.7))
            if r == 0:
                axes.set_title(titles[c], fontsize=8)
        figure.text(0.008, 1 - (r + 0.5) / len(rows), names[r], rotation=90, va="center", fontsize=8)
    figure.subplots_adjust(0.03, 0.005, 0.995, 1 - head / (1.9 * len(rows) + head), 0.02, 0.02)
    figure.savefig(path)
    plt.close(figure)
