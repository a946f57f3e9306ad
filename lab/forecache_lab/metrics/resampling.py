"""How sure a median is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def median(values: npt.NDArray[np.float64]) -> Any:
    """Over the last axis."""
    return np.median(values, axis=-1)


def bootstrap(
    values: Any, resamples: int = 10_000, seed: int = 0, statistic: Callable[[npt.NDArray[np.float64]], Any] = median
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a statistic of ``values [..., n]``, ``resamples`` draws with replacement.

    ``statistic`` takes the draws ``[..., resamples, n]`` and gives ``[resamples]``.
    """
    v = np.asarray(values, dtype=np.float64)
    pick = np.random.default_rng(seed).integers(v.shape[-1], size=(resamples, v.shape[-1]))
    low, high = np.percentile(statistic(v[..., pick]), [2.5, 97.5])
    return float(low), float(high)
