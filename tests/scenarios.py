"""Synthetic trajectories on which forecasters are compared: sums of exponentials and five ways to spoil them."""

from __future__ import annotations

import math

import numpy as np
import torch

NAMES = ("clean", "noise", "drift", "regime switch", "drift + noise", "oscillation + trend")


def exponentials(channels: int, poles: list[complex], steps: int, seed: int) -> torch.Tensor:
    """``[steps, channels]``: Re(A z^t), float64."""
    rng = np.random.default_rng(seed)
    amplitudes = rng.normal(size=(channels, len(poles))) + 1j * rng.normal(size=(channels, len(poles)))
    powers = np.array(poles)[:, None] ** np.arange(steps)
    return torch.from_numpy((amplitudes @ powers).real.T.copy())


def trajectory(name: str, seed: int, steps: int = 20, channels: int = 64) -> torch.Tensor:
    """``[steps, channels]``, float64; two damped complex pole pairs, turning 0.15 to 0.5 rad a step."""
    rng = np.random.default_rng(10_000 + seed)
    poles = [rng.uniform(0.9, 0.99) * np.exp(1j * rng.uniform(0.15, 0.25)),
             rng.uniform(0.8, 0.95) * np.exp(1j * rng.uniform(0.4, 0.5))]  # fmt: skip
    clean = exponentials(channels, poles, steps, seed)
    noise = 0.01 * clean[:8].std() * torch.from_numpy(rng.normal(size=(steps, channels)))
    if name == "clean":
        return clean
    if name == "noise":
        return clean + noise
    if name in ("drift", "drift + noise"):
        amplitudes = rng.normal(size=(channels, 2)) + 1j * rng.normal(size=(channels, 2))
        phase = np.cumsum([[1.0] * 2] + [[1 + 0.03 * t] * 2 for t in range(steps - 1)], axis=0) - 1
        drifting = torch.from_numpy((amplitudes @ (np.array(poles)[:, None] ** phase.T)).real.T.copy())
        return drifting + noise if name == "drift + noise" else drifting
    if name == "regime switch":
        other = exponentials(channels, [0.95 * np.exp(0.3j), 0.85 * np.exp(0.6j)], steps, seed + 500)
        return torch.cat((clean[:5], other[5:]))
    if name == "oscillation + trend":
        a, b, c = (torch.from_numpy(rng.normal(size=channels)) for _ in range(3))
        rows, phase = [], 0.0
        for t in range(steps):
            frac = t / steps
            phase += 2.2 * (1 + 0.5 * frac)
            trend = a * 2 * math.tanh(2.5 * (frac - 0.45)) + b * 1.5 * frac**2
            rows.append(trend + c * 0.8 * 0.85**t * math.cos(phase))
        return torch.stack(rows) + noise
    raise ValueError(f"name must be one of {NAMES}, got {name!r}")
