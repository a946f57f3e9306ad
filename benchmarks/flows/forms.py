"""What a network may put out, and the sampler's step in it.

A state is ``x = alpha D + sigma E`` with data ``D`` and noise ``E``. Every output ``o`` gives both as linear functions
of ``x`` and ``o``, so the step of Euler in a flow's time, in sigma and of DDIM, ``x' = alpha' D + sigma' E``,
is ``x' = A x + B o`` with two numbers.

=========  ============================================================
velocity   ``D - E``, with ``alpha + sigma = 1`` the velocity of a flow
eps        ``E``
v          ``(alpha E - sigma D) / r``, ``r^2 = alpha^2 + sigma^2``
data       ``D``
=========  ============================================================
"""

from __future__ import annotations

import math
from typing import Literal

import torch

Form = Literal["velocity", "eps", "v", "data"]
Pair = tuple[float, float]


def coefficients(form: Form, alpha: float, sigma: float) -> tuple[Pair, Pair]:
    """``((a, b), (c, d))`` of ``D = a x + b o`` and ``E = c x + d o``."""
    if form == "velocity":
        total = alpha + sigma
        return (1 / total, sigma / total), (1 / total, -alpha / total)
    if form == "eps":
        return (1 / alpha, -sigma / alpha), (0.0, 1.0)
    if form == "data":
        return (0.0, 1.0), (1 / sigma, -alpha / sigma)
    r = math.hypot(alpha, sigma)
    return (alpha / r**2, -sigma / r), (sigma / r**2, alpha / r)


def split(
    form: Form, o: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and noise that the output ``o`` at ``x`` stands for."""
    (a, b), (c, d) = coefficients(form, alpha, sigma)
    return a * x + b * o, c * x + d * o


def output(form: Form, data: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """What a network of this form puts out where it means ``data``."""
    if form == "data":
        return data
    noise = (x - alpha * data) / sigma
    if form == "eps":
        return noise
    if form == "velocity":
        return data - noise
    return (alpha * noise - sigma * data) / math.hypot(alpha, sigma)


def advance(form: Form, here: Pair, there: Pair) -> Pair:
    """``(A, B)`` of ``x' = A x + B o`` between two levels ``(alpha, sigma)``."""
    (a, b), (c, d) = coefficients(form, *here)
    alpha, sigma = there
    return alpha * a + sigma * c, alpha * b + sigma * d
