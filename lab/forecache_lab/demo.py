"""A demonstration that needs no upstream and no weights: a flow whose velocity is known in closed form.

The data are a Gaussian mixture around the signed-distance grids of procedural solids. With ``x_t = (1 - t) z + t y``,
``y ~ sum_k N(mu_k, s^2 I) / K``, the exact velocity is ``E[y - z | x_t]``: responsibilities are a softmax over k of
``-||x - t mu_k||^2 / (2 c)``, ``c = t^2 s^2 + (1 - t)^2``, and ``E[y | x, k] = mu_k + (t s^2 / c)(x - t mu_k)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from skimage import measure

from forecache import Forecaster

from . import render
from .generators.reference import PLANS, solids
from .generators.reference.hunyuan21 import RESOLUTION, to_distance, to_latent

STEPS, SPREAD = 50, 0.15
MADE_FOR = {"model": "demonstration flow"}
# forecache calibrate forecache_lab.demo:calibration --calls 14 --seeds 1000:1016 --out DIR
PLAN = PLANS / "demo-14.json"


def centres(count: int = 48) -> torch.Tensor:
    """Latents ``[count, d]`` of the mixture's solids."""
    rows = [to_latent(solids.grid(solids.solid(seed)[1], RESOLUTION)[None]).flatten(1) for seed in range(count)]
    return torch.cat(rows)


def velocity(x: torch.Tensor, t: float, mu: torch.Tensor) -> torch.Tensor:
    """Exact velocity at ``x [B, d]``."""
    c = t * t * SPREAD**2 + (1 - t) ** 2
    share = torch.softmax(-torch.cdist(x, t * mu).square() / (2 * c), 1)
    data = share @ mu + (t * SPREAD**2 / c) * (x - t * (share @ mu))
    return (data - x) / (1 - t)


def sample(seeds: Sequence[int], mu: torch.Tensor, settings: dict[str, Any] | None) -> tuple[torch.Tensor, int]:
    """Euler over ``STEPS`` even steps; latents ``[B, d]`` and the number of velocity calls."""
    grid = np.linspace(0, 1, STEPS + 1)
    x = torch.stack([torch.randn(mu.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    cache = None if settings is None else Forecaster(times=grid.tolist(), **settings)
    for i in range(STEPS):
        network = partial(velocity, x, float(grid[i]), mu)
        v = network() if cache is None else cache.step(i, network, state=x)
        x = x + float(grid[i + 1] - grid[i]) * v
    return x, STEPS if cache is None else cache.trace.computed


def calibration() -> dict[str, Any]:
    """For ``forecache calibrate forecache_lab.demo:calibration``."""
    mu, grid = centres(), np.linspace(0, 1, STEPS + 1)

    def run(seed: int, cache: Any) -> torch.Tensor:
        x = torch.randn(1, mu.shape[1], generator=torch.Generator().manual_seed(seed))
        for i in range(STEPS):
            v = cache.step(i, partial(velocity, x, float(grid[i]), mu), state=x)
            x = x + float(grid[i + 1] - grid[i]) * v
        return x

    return {"run": run, "times": grid.tolist(), "made_for": MADE_FOR}


def mesh(latent: torch.Tensor) -> trimesh.Trimesh:
    """Surface of one latent."""
    field = to_distance(latent[None])[0].numpy()
    spacing = 2 / (RESOLUTION - 1)
    vertices, faces, _, _ = measure.marching_cubes(  # type: ignore[no-untyped-call]
        np.pad(field, 1, constant_values=0.3), 0.0, spacing=(spacing,) * 3
    )
    return trimesh.Trimesh(vertices - 1 - spacing, faces)


def main(out: Path | None = None, seeds: int = 12) -> str:
    """Run the comparison; returns the table and, with ``out``, writes ``demo.png`` there."""
    mu = centres()
    exact, _ = sample(range(seeds), mu, None)
    lines = ["| rule | calls of 50 | median drift | p95 |", "|---|---|---|---|"]
    shown, names = [exact], ["all 50 calls"]
    for label, settings in {
        "reuse, interval 5": {"basis": "reuse", "interval": 5, "warmup": 4},
        "taylor, interval 5": {"basis": "taylor", "interval": 5, "warmup": 4},
        "hermite, interval 5": {"basis": "hermite", "interval": 5, "warmup": 4},
        "dmd, interval 5": {"basis": "dmd", "interval": 5, "warmup": 4},
        "auto, as many calls": {"basis": "auto", "interval": 5, "warmup": 4},
        "calibrated plan": {"plan": PLAN, "made_for": MADE_FOR},
    }.items():
        latents, calls = sample(range(seeds), mu, settings)
        drift = ((latents - exact).norm(dim=1) / exact.norm(dim=1)).numpy()
        lines.append(f"| {label} | {calls} | {np.median(drift):.2e} | {np.percentile(drift, 95):.2e} |")
        shown.append(latents)
        names.append(f"{label}: {calls} calls")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = [[mesh(latents[k]) for latents in shown] for k in range(4)]
        render.sheet(out / "demo.png", rows, names, [""] * len(rows))
    return "\n".join(lines)
