"""Solvers with K steps on their own grid, ``(network, grid) -> x``, one network call a step.

They start from the problem's noise. ``restart``: steps that start a new history, where guidance switches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .grids import Grid
from .network import Network

Slope = Callable[[torch.Tensor, float], torch.Tensor]
Restart = Collection[int]
FAR = 1e6  # sigma / alpha in place of infinity, where alpha = 0
TOP = 1 - 1e-6  # noise level in place of 1, where log((1 - n) / n) is not finite; diffusers' UniPC takes the same


def adams_bashforth(
    slope: Slope, u: torch.Tensor, s: Sequence[float], restart: Restart = (), second: bool = False,
    path: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Adams-Bashforth 2 with variable steps: ``u += h_k [v_k + (h_k / (2 h_{k-1})) (v_k - v_{k-1})]``.

    The first step of a history is Euler's or, with ``second``, the midpoint rule's, which costs another call. ``path``
    receives the state after every step.
    """
    before: tuple[float, torch.Tensor] | None = None
    for k, (t, after) in enumerate(pairwise(s)):
        h = after - t
        v = slope(u, t)
        if before is None or k in restart:
            step = slope(u + h / 2 * v, t + h / 2) if second else v
        else:
            step = v + (h / (2 * before[0])) * (v - before[1])
        u, before = u + h * step, (h, v)
        if path is not None:
            path.append(u)
    return u


def _start(net: Network, grid: Grid) -> tuple[torch.Tensor, float]:
    """The start on the grid's chart, and the factor that turns the end back into a state."""
    x = net.problem.start(net.seeds, grid)
    return (x / grid.levels[0][0], grid.levels[-1][0]) if grid.chart == "vp" else (x, 1.0)


def euler(net: Network, grid: Grid, restart: Restart = ()) -> torch.Tensor:
    """Euler on the chart; on the chart vp this is DDIM."""
    u, factor = _start(net, grid)
    for s, after in pairwise(grid.s):
        u = u + (after - s) * net.slope(u, s)
    return u * factor


def ab2(net: Network, grid: Grid, restart: Restart = ()) -> torch.Tensor:
    """Adams-Bashforth 2 on the chart."""
    u, factor = _start(net, grid)
    return adams_bashforth(net.slope, u, grid.s, restart) * factor


def lms(net: Network, grid: Grid, restart: Restart = (), order: int = 4) -> torch.Tensor:
    """Linear multistep: the polynomial through the newest ``order`` slopes, integrated over the step."""
    u, factor = _start(net, grid)
    nodes: list[float] = []
    slopes: list[torch.Tensor] = []
    for k, (s, after) in enumerate(pairwise(grid.s)):
        if k in restart:
            nodes, slopes = [], []
        nodes, slopes = [*nodes, s][-order:], [*slopes, net.slope(u, s)][-order:]
        for j, slope in enumerate(slopes):
            others = [(node - s) / (after - s) for i, node in enumerate(nodes) if i != j]
            basis = np.poly1d(others, True) / np.prod([(nodes[j] - s) / (after - s) - other for other in others])
            u = u + float(np.polyint(basis)(1.0)) * (after - s) * slope
    return u * factor


def dpm(net: Network, grid: Grid, restart: Restart = ()) -> torch.Tensor:
    """DPM-Solver++(2M) (arXiv:2211.01095): ``x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D2`` with
    ``D2 = D + (h / (2 h_before)) (D - D_before)`` and h the step in ``log(alpha / sigma)``.

    Of first order where either step is infinite: from pure noise, to the data.
    """
    x, before = net.problem.start(net.seeds, grid), None
    half = [math.log(a / s) if a and s else math.inf for a, s in grid.levels]
    for k, ((alpha, sigma), (onward, there)) in enumerate(pairwise(grid.levels)):
        data = net.data(x, alpha, sigma)
        h = half[k + 1] - half[k]
        blend = data
        if before is not None and k not in restart and math.isfinite(h) and math.isfinite(before[0]):
            blend = data + (h / (2 * before[0])) * (data - before[1])
        x = (there / sigma) * x + (onward - alpha * there / sigma) * blend
        before = h, data
    return x


def unipc(net: Network, grid: Grid, restart: Restart = (), order: int = 2) -> torch.Tensor:
    """UniPC (arXiv:2302.04867), diffusers' implementation, on ``x / hypot(alpha, sigma)``, where it is at home.

    Its predictor and its corrector share the network calls.
    """
    sizes = [math.hypot(*each) for each in grid.levels]
    sigmas = torch.tensor([min(s / a, FAR) if a else FAR for a, s in grid.levels], dtype=torch.float64)
    scheduler = _scheduler("UniPC", prediction_type="sample", solver_order=order, solver_type="bh2")
    x = _multistep(
        scheduler, net.problem.start(net.seeds, grid) / sizes[0], sigmas, restart,
        lambda k, x: net.data(x * sizes[k], *grid.levels[k]),
    )  # fmt: skip
    return x * sizes[-1]


def flow_dpm(
    net: Network, grid: Grid, restart: Restart = (), order: int = 2, solver_type: str = "midpoint"
) -> torch.Tensor:
    """DPM-Solver++ multistep for a flow's velocity, diffusers' implementation; order 2 is 2M."""
    options = {"algorithm_type": "dpmsolver++", "solver_order": order, "solver_type": solver_type}
    return _on_flow(net, grid, restart, "DPMSolver", **options)


def flow_unipc(net: Network, grid: Grid, restart: Restart = (), order: int = 2) -> torch.Tensor:
    """UniPC for a flow's velocity, diffusers' implementation."""
    return _on_flow(net, grid, restart, "UniPC", solver_order=order, solver_type="bh2")


def _on_flow(net: Network, grid: Grid, restart: Restart, name: str, **options: Any) -> torch.Tensor:
    """A scheduler of diffusers on a flow: its noise level is ``1 - t`` and its velocity ``noise - data``."""
    scheduler = _scheduler(name, prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    sigmas = torch.tensor([min(1 - t, TOP) for t in grid.s], dtype=torch.float32)
    x = net.problem.start(net.seeds, grid)
    return _multistep(scheduler, x, sigmas, restart, lambda k, x: -net.slope(x, grid.s[k]))


def _scheduler(name: str, **options: Any) -> Any:
    """A multistep scheduler of diffusers whose last step is of lower order and ends at the data."""
    import diffusers

    kind = getattr(diffusers, f"{name}MultistepScheduler")
    return kind(lower_order_final=True, final_sigmas_type="zero", **options)


def _multistep(
    scheduler: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    restart: Restart,
    output: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """A multistep scheduler of diffusers on our grid."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(steps)  # labels only: the step index decides
    scheduler.set_begin_index(0)
    for k in range(steps):
        if k in restart:
            scheduler.lower_order_nums = 0
            scheduler.last_sample = None  # UniPC's corrector would compare outputs of the two sides
        x = scheduler.step(output(k, x), scheduler.timesteps[k], x, return_dict=False)[0]
    return x
