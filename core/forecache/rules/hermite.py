"""HiCache (arXiv:2508.16984): TaylorSeer's differences with dual-scaled physicists' Hermite polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..snapshots import Array
from .linear import Linear
from .rule import Polynomial, Rule
from .taylor import backward_differences

Number = TypeVar("Number", float, torch.Tensor)


def physicists_hermite(n: int, x: Number) -> Number:
    """``H_n(x)``: ``H_0 = 1``, ``H_1 = 2x``, ``H_{m+1} = 2x H_m - 2m H_{m-1}``.

    Raises:
        ValueError: ``n < 0``.
    """
    if n < 0:
        raise ValueError(f"Hermite order must be >= 0, got {n}")
    before, current = x * 0, x * 0 + 1
    for m in range(n):
        before, current = current, 2 * x * current - 2 * m * before
    return current


def scaled_hermite(n: int, x: Number, sigma: float) -> Number:
    """``sigma^n H_n(sigma x)`` (HiCache, section 3.2)."""
    return sigma**n * physicists_hermite(n, sigma * x)


@dataclass(frozen=True)
class Hermite(Polynomial):
    """``v(k) = sum_{i <= order} D_i sigma^i H_i(sigma k) / i!``, k steps *after* the newest anchor (``+k``).

    The order-1 term is ``2 sigma^2 k``: half the slope at sigma = 0.5, all of it at ``sqrt(1/2)``. The order-2 term is
    not homogeneous in k, so the rule is defined on the step index.
    """

    order: int = 2
    sigma: float = 0.5
    stem = "hermite"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma < 1:
            raise ValueError(f"sigma must lie in (0, 1), got {self.sigma}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        k = float(target - times[-1])
        terms = backward_differences(times, self.order)
        return np.asarray(sum(d * scaled_hermite(i, k, self.sigma) / math.factorial(i) for i, d in enumerate(terms)))

    def lower(self) -> Rule | None:
        return Hermite(self.order - 1, self.sigma) if self.order > 1 else Linear(1)
