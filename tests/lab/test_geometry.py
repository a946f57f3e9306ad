"""Geometry figures that sample nothing, and the heat map's distances, on shapes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from forecache_lab.metrics import geometry


def test_occupancy_counts_flips():
    grid = torch.zeros(4, 4, 4, dtype=torch.bool)
    grid[:2] = True  # 32 of 64
    other = grid.clone()
    other[0, 0, 0], other[3, 3, 3] = False, True
    assert geometry.occupancy(grid, grid) == geometry.Occupancy(1.0, 0.0)
    assert geometry.occupancy(other, grid) == geometry.Occupancy(31 / 33, 2 / 64)
    assert geometry.occupancy(grid & False, grid & False).iou == 1
    with pytest.raises(ValueError, match="one shape"):
        geometry.occupancy(grid, grid[:2])


def test_topology_tells_holes_and_pieces():
    ball = trimesh.creation.icosphere(2)
    assert geometry.topology(ball) == geometry.Topology(1, True)
    pair = trimesh.util.concatenate([ball, ball.copy().apply_translation([3, 0, 0])])
    assert geometry.topology(pair) == geometry.Topology(2, True)
    torn = ball.copy()
    torn.update_faces(np.arange(len(torn.faces)) > 0)
    assert geometry.topology(torn) == geometry.Topology(1, False)
    soup = trimesh.Trimesh(ball.triangles.reshape(-1, 3), np.arange(3 * len(ball.faces)).reshape(-1, 3), process=False)
    assert geometry.topology(soup) == geometry.Topology(1, True), "vertices at one place are one"
    assert len(soup.vertices) == 3 * len(ball.faces), "the mesh stays as it is"


def test_distances_are_those_of_the_surfaces():
    ball = trimesh.creation.icosphere(4, 0.5)
    assert geometry.distances(ball, ball).max() == 0
    grown = geometry.distances(trimesh.creation.icosphere(3, 0.6), ball)
    assert np.allclose(grown, 0.1, atol=0.004) and grown.shape == (642,)
    doubled = [trimesh.creation.icosphere(k, r) for k, r in ((3, 1.2), (4, 1.0))]
    assert np.allclose(geometry.distances(*doubled), 0.1, atol=0.004), "in longest sides of the reference"
