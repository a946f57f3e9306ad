"""How far one object's pose is from another: rotation, scale and translation apart, because users see each of them.

A pose takes a point of the object to ``R diag(s) p + t``. Every function takes batches in its leading dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pose:
    """Rotation matrices ``[..., 3, 3]``, positive scales by axis ``[..., 3]``, translations ``[..., 3]``."""

    rotation: torch.Tensor
    scale: torch.Tensor
    translation: torch.Tensor


def rotation_matrix(six: torch.Tensor) -> torch.Tensor:
    """``[..., 6] -> [..., 3, 3]``: the first two columns, made orthonormal by Gram-Schmidt, and their cross product.

    Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", CVPR 2019, equation 15.

    Raises:
        ValueError: another number of channels.
    """
    if six.shape[-1] != 6:
        raise ValueError(f"six must have 6 channels last, got shape {tuple(six.shape)}")
    first, second = six[..., :3], six[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), -1)


def rotation_angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Geodesic distance of rotation matrices in degrees, ``2 asin(|A - B|_F / (2 sqrt 2))``, ``[...]``.

    The Frobenius norm instead of the trace: the arc cosine loses angles below 0.03 degrees in float32.
    """
    chord = (a.double() - b.double()).flatten(-2).norm(dim=-1)
    return torch.rad2deg(2 * torch.asin((chord / (2 * math.sqrt(2))).clamp(max=1)))


def scale_ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``exp(max over axes |log a - log b|)``, at least 1, ``[...]``: 1.1 is 10 % too large or too small.

    Raises:
        ValueError: a scale that is not positive.
    """
    for name, scale in (("a", a), ("b", b)):
        if not (scale > 0).all():
            raise ValueError(f"{name} must be positive scales, got a minimum of {float(scale.min()):g}")
    worst: torch.Tensor = (a.double().log() - b.double().log()).abs().amax(-1)
    return worst.exp()


def translation_distance(a: torch.Tensor, b: torch.Tensor, scene: float = 1.0) -> torch.Tensor:
    """``|a - b|_2 / scene``, ``[...]``: lengths in units of the scene's scale.

    SAM 3D's pose leaves are in such units already (metric translation = scene scale * translation + shift), so that
    ``scene`` is 1 for them.

    Raises:
        ValueError: ``scene`` is not positive.
    """
    if scene <= 0:
        raise ValueError(f"scene must be positive, got {scene:g}")
    distance: torch.Tensor = (a.double() - b.double()).norm(dim=-1)
    return distance / scene
