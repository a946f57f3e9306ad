"""TaylorSeer (arXiv:2503.06923): backward differences with Taylor weights, on the step index.

Published recursion, reproduced on purpose: ``D_0 = v`` and, at each anchor, ``D_{i+1} = (D_i(new) - D_i(old)) / gap``
with ``gap`` the newest anchor distance for every order. It is not Newton's form: on ``t^2`` with unit spacing it
forecasts 35 for 36. :class:`~forecache.rules.linear.Linear` is the exact one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..snapshots import Array
from .linear import Linear
from .rule import Polynomial, Rule


def backward_differences(times: Array, order: int) -> list[Array]:
    """``[D_0, D_1, ...]`` of the published recursion at the newest anchor, each as weights on the snapshots."""
    return _backward_differences(tuple(times.tolist()), order)


@lru_cache(maxsize=256)  # a schedule visits the same anchors in every stream and run
def _backward_differences(times: tuple[float, ...], order: int) -> list[Array]:
    previous: list[Array] = []
    for m, newest in enumerate(np.eye(len(times))):
        current: list[Array] = [newest]
        for old in previous[:order]:
            current.append((current[-1] - old) / (times[m] - times[m - 1]))
        previous = current
    return previous


@dataclass(frozen=True)
class Taylor(Polynomial):
    """``v(k) = sum_{i <= order} D_i k^i / i!``, k steps after the newest anchor."""

    order: int = 2
    stem = "taylor"

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        k = target - times[-1]
        terms = backward_differences(times, self.order)
        return np.asarray(sum(d * k**i / math.factorial(i) for i, d in enumerate(terms)))

    def lower(self) -> Rule | None:
        return Taylor(self.order - 1) if self.order > 1 else Linear(1)
