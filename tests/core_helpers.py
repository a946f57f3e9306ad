"""Windows, grids and flows that several core tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st

from forecache.rules import DMD, Auto, Chebyshev, Exponential, Hermite, Linear, Reuse, Rule, Taylor

RULES: tuple[Rule, ...] = (
    Reuse(),
    Linear(1),
    Linear(2),
    Taylor(1),
    Taylor(2),
    Hermite(1),
    Hermite(2),
    DMD(),
    Exponential(),
    Chebyshev(),
    Auto(),
)
NAMES = ("auto", "reuse", "linear", "taylor", "hermite", "dmd", "chebyshev", "exponential")


@st.composite
def windows(
    draw: st.DrawFn, least: int = 1, most: int = 8, even: bool | None = None
) -> tuple[np.ndarray, float, np.ndarray]:
    """Times (irregular unless ``even``), a target past them and the Gram matrix of random snapshots."""
    n = draw(st.integers(least, most))
    gaps = [1.0] * n if even else draw(st.lists(st.floats(0.2, 3.0), min_size=n, max_size=n))
    times = np.cumsum(gaps)
    target = times[-1] + draw(st.floats(0.1, 4.0))
    seed = draw(st.integers(0, 2**16))
    v = np.random.default_rng(seed).normal(size=(n, 12)).cumsum(0)
    return times, float(target), v @ v.T


def gram(v: torch.Tensor | np.ndarray) -> np.ndarray:
    v = np.asarray(v, dtype=np.float64)
    return v @ v.T


def mixture_velocity(dim: int = 6, modes: int = 3, seed: int = 0) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Exact velocity of the straight flow from noise (t = 0) to a Gaussian mixture (t = 1), float64.

    ``x_t = (1 - t) n + t y``; with component variance ``s^2``:
    ``E[v | x, k] = m_k + (t s^2 - (1 - t)) / c (x - t m_k)``, ``c = (1 - t)^2 + t^2 s^2``.
    """
    means = 2.0 * torch.randn(modes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spread = 0.3

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        c = (1 - t) ** 2 + t**2 * spread**2
        away = x[:, None] - t * means
        belief = torch.softmax(-(away**2).sum(-1) / (2 * c), dim=1)
        each = means + (t * spread**2 - (1 - t)) / c * away
        return (belief[..., None] * each).sum(1)

    return velocity
