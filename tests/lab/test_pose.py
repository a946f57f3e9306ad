"""Pose drift against rotations, scales and translations that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from forecache_lab.metrics import pose


def turned(axis: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotation about ``axis`` (Rodrigues)."""
    x, y, z = (axis / axis.norm()).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


@pytest.mark.parametrize("degrees", [0.0, 0.01, 1.0, 45.0, 90.0, 179.0, 180.0])
def test_rotation_angle_is_the_angle_about_any_axis_in_any_frame(degrees):
    torch.manual_seed(int(degrees))
    start = pose.rotation_matrix(torch.randn(6))
    made = turned(torch.randn(3), degrees) @ start
    assert float(pose.rotation_angle(made, start)) == pytest.approx(degrees, abs=2e-3 if degrees < 179 else 0.1)
    assert torch.equal(pose.rotation_angle(made, start), pose.rotation_angle(start, made))


def test_gram_schmidt_gives_rotations_and_keeps_those_that_it_is_given():
    torch.manual_seed(0)
    made = pose.rotation_matrix(torch.randn(5, 2, 6))
    assert made.shape == (5, 2, 3, 3)
    assert torch.allclose(made @ made.mT, torch.eye(3).expand_as(made), atol=1e-5)
    assert torch.allclose(torch.linalg.det(made), torch.ones(5, 2), atol=1e-5)
    columns = made[..., :2].mT.flatten(-2)
    assert torch.allclose(pose.rotation_matrix(columns), made, atol=1e-6)
    stretched = torch.cat((3 * columns[..., :3], 0.5 * columns[..., 3:] + columns[..., :3]), -1)
    assert torch.allclose(pose.rotation_matrix(stretched), made, atol=1e-5), "only the plane and its first axis count"
    rows = made[..., :2, :].flatten(-2)
    assert not torch.allclose(pose.rotation_matrix(rows), made, atol=0.1), "rows would be the inverse rotation"


def test_scale_ratio_is_the_worst_axis_either_way():
    one = torch.ones(3)
    assert float(pose.scale_ratio(one, one)) == 1
    for factor in (1.25, 1 / 1.25):
        assert float(pose.scale_ratio(torch.tensor([1.0, factor, 1.1]), one)) == pytest.approx(1.25)
        assert float(pose.scale_ratio(one, torch.tensor([1.0, factor, 1.1]))) == pytest.approx(1.25)


def test_translation_distance_is_in_units_of_the_scene():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 5.0, 7.0]])
    assert pose.translation_distance(a, b).tolist() == [5.0]
    assert pose.translation_distance(10 * a, 10 * b, scene=10.0).tolist() == [5.0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"six must have 6 channels last, got shape \(2, 4\)"):
        pose.rotation_matrix(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="b must be positive scales, got a minimum of -1"):
        pose.scale_ratio(torch.ones(3), torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="scene must be positive, got 0"):
        pose.translation_distance(torch.ones(3), torch.ones(3), scene=0.0)
