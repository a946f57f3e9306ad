"""What the leaves of SAM 3D's structure stage mean here: a solid and its pose, with analytic decoders.

Shape: signed distances at the centres of 16^3 voxels, as those of :mod:`.trellis_latents`, in 4^3 tokens of 64
channels. Pose: the upstream's leaves, each shifted and scaled to zero mean and unit variance: the first two columns of
the rotation matrix, the logarithm of the scale by axis, the direction of the translation from the camera and the
logarithm of its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ...metrics.pose import Pose, rotation_matrix
from . import trellis_latents

SIDE = 4
TOKENS, CHANNELS = SIDE**3, 64
LEAVES = {"shape": CHANNELS, "6drotation_normalized": 6, "scale": 3, "translation": 3, "translation_scale": 1}
POSE = tuple(LEAVES)[1:]
MEASURED = TOKENS + sum(LEAVES[name] for name in POSE)
NOISE = 0.25  # of a measurement, whose numbers have about unit variance

AZIMUTH, TILT = math.radians(45), math.radians(15)
SCALES = (0.45, 0.8)
SPREAD, DEPTH = 0.4, 2.5
# Mean and standard deviation of what the leaves hold, over the poses of training
NORM: Mapping[str, tuple[list[float], list[float]]] = {
    "6drotation_normalized": ([0.9, 0.0, 0.0, 0.0, 0.99, 0.0], [0.09, 0.11, 0.42, 0.11, 0.01, 0.11]),
    "scale": ([-0.51] * 3, [0.17] * 3),
    "translation": ([0.0, 0.0, 0.99], [0.09, 0.09, 0.01]),
    "translation_scale": ([0.92], [0.09]),
}


def draw_pose(seed: int) -> Pose:
    """The pose of ``seed``: a turn about y, a tilt about a level axis, one scale for all axes, a place before the
    camera, which is the origin and looks along z.
    """
    rng = np.random.default_rng([seed, 1])
    turn, tilt, axis = rng.uniform(-AZIMUTH, AZIMUTH), rng.uniform(0, TILT), rng.uniform(0, 2 * math.pi)
    about = torch.tensor([[0, turn, 0], [tilt * math.cos(axis), 0, tilt * math.sin(axis)]])
    x, y, z = about.float().unbind(-1)
    o = torch.zeros_like(x)
    turned, tilted = torch.linalg.matrix_exp(torch.stack((o, -z, y, z, o, -x, -y, x, o), -1).reshape(2, 3, 3))
    scale = math.exp(rng.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    place = torch.tensor(rng.uniform(-SPREAD, SPREAD, 3), dtype=torch.float32)
    return Pose(tilted @ turned, torch.full((3,), scale), place + torch.tensor([0.0, 0.0, DEPTH]))


def to_shape(distances: torch.Tensor) -> torch.Tensor:
    """Distances at the centres of voxels ``[B, 16, 16, 16]`` -> leaves ``[B, 64, 64]`` (token, channel)."""
    structure = trellis_latents.to_structure(distances)
    return trellis_latents.cut(structure.flatten(0, 1)).reshape(len(distances), CHANNELS, TOKENS).mT


def to_distances(shape: torch.Tensor) -> torch.Tensor:
    """Leaves ``[B, 64, 64]`` -> distances ``[B, 16, 16, 16]``, the inverse of :func:`to_shape` within its clip."""
    cells = shape.mT.reshape(-1, trellis_latents.CHANNELS, SIDE, SIDE, SIDE)
    half = trellis_latents.join(cells).reshape(len(shape), trellis_latents.CHANNELS, *[2 * SIDE] * 3)
    return trellis_latents.join(half) / trellis_latents.SCALE + trellis_latents.OFFSET


def _raw(pose: Pose) -> dict[str, torch.Tensor]:
    length = pose.translation.norm(dim=-1, keepdim=True)
    return {
        "6drotation_normalized": pose.rotation[..., :2].mT.flatten(-2),
        "scale": pose.scale.log(),
        "translation": pose.translation / length,
        "translation_scale": length.log(),
    }


def to_leaves(pose: Pose) -> dict[str, torch.Tensor]:
    """The pose leaves ``[..., channels]``."""
    return {
        name: (value - value.new_tensor(NORM[name][0])) / value.new_tensor(NORM[name][1])
        for name, value in _raw(pose).items()
    }


def to_pose(leaves: Mapping[str, torch.Tensor]) -> Pose:
    """The inverse of :func:`to_leaves` for any leaves: the rotation by Gram-Schmidt, the direction normalised."""
    raw = {name: leaves[name].float() * torch.tensor(NORM[name][1]) + torch.tensor(NORM[name][0]) for name in POSE}
    direction = torch.nn.functional.normalize(raw["translation"], dim=-1)
    return Pose(
        rotation_matrix(raw["6drotation_normalized"]),
        raw["scale"].exp(),
        direction * raw["translation_scale"].exp(),
    )


def outline(picture: torch.Tensor) -> torch.Tensor:
    """A condition ``[1, 77]`` of a picture ``[1, s, s]`` in ``[-1, 1]``, on black, for pictures of which nothing else
    is known: the object is taken for a slab of its outline, one unit thick, in the mean pose.

    The distance to the outline, negative inside, is brought to 4 x 4 pixels over the cube; a cell behind one of them
    has that distance, or the one to the faces of the slab, if that is larger.
    """
    inside = (picture[0] > -0.95).numpy()
    pixel = 2.0 / picture.shape[-1]
    distance = torch.from_numpy((distance_transform_edt(~inside) - distance_transform_edt(inside)) * pixel).float()
    level = torch.nn.functional.adaptive_avg_pool2d(distance[None, None], SIDE)[0, 0]
    depth = (torch.arange(SIDE) + 0.5).mul(2 / SIDE).sub(1).abs() - 0.5
    cells = torch.maximum(level.flip(0).T[:, :, None], depth)  # rows go down and columns right: x, y, z
    coarse = (cells.clamp(-trellis_latents.CLIP, trellis_latents.CLIP) - trellis_latents.OFFSET) * trellis_latents.SCALE
    return torch.cat([coarse.reshape(1, TOKENS), torch.zeros(1, MEASURED - TOKENS)], 1)


def measure(leaves: Mapping[str, torch.Tensor], generator: torch.Generator | None = None) -> torch.Tensor:
    """The condition ``[B, 77]``, of leaves ``[B, tokens, channels]``: what a coarse look at the object tells.

    The mean distance in each token of the shape, then the numbers of the pose; all of them with noise.
    """
    known = torch.cat([leaves["shape"].mean(-1), *(leaves[name].flatten(1) for name in POSE)], 1)
    return known + NOISE * torch.randn(known.shape, generator=generator)
