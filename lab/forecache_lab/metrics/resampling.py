"""How sure a median is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the median of ``values [n]``, ``resamples`` draws with replacement."""
    v = np.asarray(values, dtype=np.float64)
    pick = np.random.default_rng(seed).integers(len(v), size=(resamples, len(v)))
    low, high = np.percentile(np.median(v[pick], axis=1), [2.5, 97.5])
    return float(low), float(high)
