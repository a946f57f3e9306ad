"""The distance of one tensor to another that every table of this project calls drift."""

from __future__ import annotations

import torch


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``, in double precision."""
    return float((a.double() - b.double()).norm() / b.double().norm())
