"""Solvers with K steps on their own grid of the same kind: ``(batch, grid) -> x``, one network call a step.

``restart``: steps that start a new history, where guidance switches.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

import numpy as np
import torch

from benchmarks.frontier import solvers as plain

from .grids import Grid
from .problems import Batch

FAR = 1e6  # sigma / alpha in place of infinity, where alpha = 0


def _chart(batch: Batch, grid: Grid) -> tuple[torch.Tensor, float]:
    """The start on the grid's chart, and the factor that turns the end back into a state."""
    x = batch.problem.start(batch.seeds, grid)
    if grid.chart != "vp":
        return x, 1.0
    return x / grid.levels[0][0], grid.levels[-1][0]


def euler(batch: Batch, grid: Grid, restart: Collection[int] = ()) -> torch.Tensor:
    """Euler on the chart; on the chart vp this is DDIM."""
    u, factor = _chart(batch, grid)
    return plain.euler(batch.slope, u, grid.s) * factor


def ab2(batch: Batch, grid: Grid, restart: Collection[int] = ()) -> torch.Tensor:
    """Adams-Bashforth 2 on the chart."""
    u, factor = _chart(batch, grid)
    return plain.ab2(batch.slope, u, grid.s, restart) * factor


def lms(batch: Batch, grid: Grid, restart: Collection[int] = (), order: int = 4) -> torch.Tensor:
    """Linear multistep: the polynomial through the newest ``order`` slopes, integrated over the step."""
    u, factor = _chart(batch, grid)
    nodes: list[float] = []
    slopes: list[torch.Tensor] = []
    for k, (s, after) in enumerate(pairwise(grid.s)):
        if k in restart:
            nodes, slopes = [], []
        nodes, slopes = [*nodes, s][-order:], [*slopes, batch.slope(u, s)][-order:]
        for j, slope in enumerate(slopes):
            others = [(node - s) / (after - s) for i, node in enumerate(nodes) if i != j]
            basis = np.poly1d(others, True) / np.prod([(nodes[j] - s) / (after - s) - other for other in others])
            u = u + float(np.polyint(basis)(1.0)) * (after - s) * slope
    return u * factor


def dpm(batch: Batch, grid: Grid, restart: Collection[int] = ()) -> torch.Tensor:
    """DPM-Solver++(2M) (arXiv:2211.01095): ``x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D2`` with
    ``D2 = D + (h / (2 h_before)) (D - D_before)`` and h the step in ``log(alpha / sigma)``.

    Of first order where either step is infinite: from pure noise, to the data.
    """
    x, before = batch.problem.start(batch.seeds, grid), None
    half = [math.log(a / s) if a and s else math.inf for a, s in grid.levels]
    for k, ((alpha, sigma), (onward, there)) in enumerate(pairwise(grid.levels)):
        data = batch.data(x, alpha, sigma)
        h = half[k + 1] - half[k]
        blend = data
        if before is not None and k not in restart and math.isfinite(h) and math.isfinite(before[0]):
            blend = data + (h / (2 * before[0])) * (data - before[1])
        x = (there / sigma) * x + (onward - alpha * there / sigma) * blend
        before = h, data
    return x


def unipc(batch: Batch, grid: Grid, restart: Collection[int] = (), order: int = 2) -> torch.Tensor:
    """UniPC (arXiv:2302.04867), diffusers' implementation, on ``x / hypot(alpha, sigma)``, where it is at home."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="sample", solver_order=order, solver_type="bh2", lower_order_final=True,
        final_sigmas_type="zero",
    )  # fmt: skip
    steps, levels = len(grid.s) - 1, grid.levels
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor([min(s / a, FAR) if a else FAR for a, s in levels], dtype=torch.float64)
    scheduler.timesteps = torch.arange(steps)  # labels only: the step index decides
    scheduler.set_begin_index(0)
    x = batch.problem.start(batch.seeds, grid) / math.hypot(*levels[0])
    for k, (alpha, sigma) in enumerate(levels[:-1]):
        if k in restart:
            scheduler.lower_order_nums, scheduler.last_sample = 0, None
        data = batch.data(x * math.hypot(alpha, sigma), alpha, sigma)
        x = scheduler.step(data, scheduler.timesteps[k], x, return_dict=False)[0]
    return x * math.hypot(*levels[-1])
