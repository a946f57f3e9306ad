"""Chebyshev ridge regression (Spectrum, arXiv:2603.01623) in the anchored form that raw velocities need.

The published form also shrinks the constant, so that its weights sum to 0.78..0.94: harmless in front of a
normalisation layer, fatal on velocities. Regressing ``v_j - v_n`` on ``b(t_j) - b(t_n)`` keeps the sum at 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from ..snapshots import Array
from .linear import Linear
from .rule import Rule, newest


@dataclass(frozen=True)
class Chebyshev(Rule):
    """``w = e_n + (I - e_n 1^T) B (B^T B + ridge I)^-1 (b(t) - b(t_n))``, rows of B: ``b(t_j) - b(t_n)``.

    ``b = (T_1 .. T_degree)`` of ``tau = (t - mid) / half``; ``span`` is the range of the clock over the run, (0, N) on
    the step index (``None``: the window and the target).
    """

    degree: int = 4
    ridge: float = 0.1
    span: tuple[float, float] | None = None
    name = "chebyshev"
    floor = 2
    uses_gram = False

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree must be >= 1, got {self.degree}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be > 0, got {self.ridge}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        low, high = self.span if self.span is not None else (times[0], target)
        if high == low:
            return newest(len(times))
        tau = (np.append(times, target) - (low + high) / 2) / ((high - low) / 2)
        b = chebyshev.chebvander(tau, self.degree)[:, 1:]
        b = b - b[len(times) - 1]
        design, wanted = b[:-1], b[-1]
        fitted = design @ np.linalg.solve(design.T @ design + self.ridge * np.eye(self.degree), wanted)
        return np.asarray(fitted + newest(len(times)) * (1 - fitted.sum()))

    def lower(self) -> Rule | None:
        return Linear(1)
