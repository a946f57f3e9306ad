"""Grids as samplers make them, each by the published formula for any number of steps.

A grid lies on one of three charts, lines ``s -> (alpha, sigma)`` on which the flow is an ordinary equation ``du/ds``:

====  ==========================================  ==================================
flow  ``(s, 1 - s)``, ``s`` rising from 0 to 1      ``du/ds`` = velocity, ``u = x``
ve    ``(1, s)``, ``s`` = sigma, falling            ``du/ds`` = noise, ``u = x``
vp    ``(1, s) / sqrt(1 + s^2)``, ``s`` falling     ``du/ds`` = noise, ``u = x / alpha``
====  ==========================================  ==================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Chart = Literal["flow", "ve", "vp"]
Values = npt.NDArray[np.float64]
TRAINED = 1000  # time steps of Stable Diffusion's schedule


def level(chart: Chart, s: float) -> tuple[float, float]:
    """``(alpha, sigma)`` at ``s``."""
    if chart == "flow":
        return s, 1 - s
    alpha = 1 / math.hypot(1, s) if chart == "vp" else 1.0
    return alpha, s * alpha


@dataclass(frozen=True)
class Grid:
    """``s`` at the N + 1 points of a sampler, and the times that it counts them by."""

    chart: Chart
    s: tuple[float, ...]
    times: tuple[float, ...]

    @property
    def levels(self) -> list[tuple[float, float]]:
        """``(alpha, sigma)`` at every point."""
        return [level(self.chart, s) for s in self.s]


@lru_cache
def ratios() -> Values:
    """Stable Diffusion's ``sigma / alpha`` at its 1000 time steps: betas even in their roots, .00085 to .012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINED) ** 2
    kept = np.cumprod(1 - betas)
    return np.asarray(np.sqrt((1 - kept) / kept))


def flow(shift: float) -> Callable[[int], Grid]:
    """Even noise levels n from 1 to 0, shifted: ``s n / (1 + (s - 1) n)``."""

    def made(steps: int) -> Grid:
        n = np.linspace(1, 0, steps + 1)
        t = tuple((1 - shift * n / (1 + (shift - 1) * n)).tolist())
        return Grid("flow", t, t)

    return made


def _sigmas(values: Values) -> Grid:
    s = (*values.tolist(), 0.0)
    return Grid("ve", s, s)


def karras(low: float, high: float, rho: float = 7.0) -> Callable[[int], Grid]:
    """Karras et al. (arXiv:2206.00364), equation 5, and a last step to 0."""

    def made(steps: int) -> Grid:
        ends = high ** (1 / rho), low ** (1 / rho)
        return _sigmas(np.linspace(*ends, steps) ** rho)

    return made


def exponential(steps: int) -> Grid:
    """Even in log sigma over Stable Diffusion's range, and a last step to 0."""
    return _sigmas(np.geomspace(ratios()[-1], ratios()[0], steps))


def beta(steps: int) -> Grid:
    """Time steps at the quantiles of Beta(.6, .6) (arXiv:2407.12173), dense at both ends, and a last step to 0."""
    from scipy.stats import beta as distribution

    where = distribution.ppf(1 - np.arange(steps) / steps, 0.6, 0.6)
    return _sigmas(ratios()[np.unique(np.rint(where * (TRAINED - 1)).astype(int))[::-1]])


def sgm_uniform(steps: int) -> Grid:
    """Even time steps without the last, log sigma interpolated between trained ones, and a last step to 0."""
    where = np.linspace(TRAINED - 1, 0, steps + 1)[:-1]
    return _sigmas(np.exp(np.interp(where, np.arange(TRAINED), np.log(ratios()))))


def _ddim(steps: npt.NDArray[np.floating[Any]], last: float) -> Grid:
    return Grid("vp", (*ratios()[steps.astype(int)].tolist(), last), (*steps.tolist(), -1.0))


def leading(steps: int) -> Grid:
    """DDIM's time steps counted from the data, offset 1, and a last step to the first trained level."""
    return _ddim(np.arange(steps)[::-1] * (TRAINED // steps) + 1.0, float(ratios()[0]))


def trailing(steps: int) -> Grid:
    """DDIM's time steps counted from the noise (arXiv:2305.08891), and a last step to the data."""
    return _ddim(np.rint(TRAINED - np.arange(steps) * TRAINED / steps) - 1, 0.0)


GRIDS: dict[str, Callable[[int], Grid]] = {
    "even": flow(1.0),
    "shift3": flow(3.0),
    "shift5": flow(5.0),
    "karras80": karras(0.002, 80.0),
    "karras148": karras(0.03, 148.0),
    "exponential": exponential,
    "beta": beta,
    "sgm_uniform": sgm_uniform,
    "leading": leading,
    "trailing": trailing,
}
