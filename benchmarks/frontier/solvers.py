"""Solvers with few steps, one plain function each: ``(velocity, x, times) -> x`` with ``velocity(x, t)``.

``restart``: steps that start a new history, where the velocity jumps (a guidance edge).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import torch

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
TOP = 1 - 1e-6  # noise level in place of 1, where log((1 - n) / n) is not finite; diffusers' UniPC takes the same


def euler(velocity: Velocity, x: torch.Tensor, times: Sequence[float]) -> torch.Tensor:
    """``x += h v``."""
    for t, after in pairwise(times):
        x = x + (after - t) * velocity(x, t)
    return x


def ab2(
    velocity: Velocity,
    x: torch.Tensor,
    times: Sequence[float],
    restart: Collection[int] = (),
    second: bool = False,
    path: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Adams-Bashforth 2 with variable steps: ``x += h_k [v_k + (h_k / (2 h_{k-1})) (v_k - v_{k-1})]``.

    The first step of a history is Euler's or, with ``second``, the midpoint rule's, which costs another call. ``path``
    receives the state after every step.
    """
    before: tuple[float, torch.Tensor] | None = None
    for k, (t, after) in enumerate(pairwise(times)):
        h = after - t
        v = velocity(x, t)
        if before is None or k in restart:
            step = velocity(x + h / 2 * v, t + h / 2) if second else v
        else:
            step = v + (h / (2 * before[0])) * (v - before[1])
        x, before = x + h * step, (h, v)
        if path is not None:
            path.append(x)
    return x


def _multistep(
    scheduler: Any, velocity: Velocity, x: torch.Tensor, times: Sequence[float], restart: Collection[int]
) -> torch.Tensor:
    """A diffusers multistep scheduler on our grid. Its noise level is ``1 - t`` and its velocity ``noise - data``."""
    steps = len(times) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor([min(1 - t, TOP) for t in times], dtype=torch.float32)
    scheduler.timesteps = torch.arange(steps)  # labels only: the step index decides
    scheduler.set_begin_index(0)
    for k, t in enumerate(times[:-1]):
        if k in restart:
            scheduler.lower_order_nums = 0
            scheduler.last_sample = None  # UniPC's corrector would compare velocities of the two sides
        x = scheduler.step(-velocity(x, t), scheduler.timesteps[k], x, return_dict=False)[0]
    return x


def dpm_solver(
    velocity: Velocity,
    x: torch.Tensor,
    times: Sequence[float],
    restart: Collection[int] = (),
    order: int = 2,
    solver_type: str = "midpoint",
) -> torch.Tensor:
    """DPM-Solver++ multistep (arXiv:2211.01095), diffusers' implementation; order 2 is 2M."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++", solver_order=order,
        solver_type=solver_type, lower_order_final=True, final_sigmas_type="zero",
    )  # fmt: skip
    return _multistep(scheduler, velocity, x, times, restart)


def unipc(
    velocity: Velocity,
    x: torch.Tensor,
    times: Sequence[float],
    restart: Collection[int] = (),
    order: int = 2,
    solver_type: str = "bh2",
) -> torch.Tensor:
    """UniPC (arXiv:2302.04867), diffusers' implementation: predictor and corrector share the network calls."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=order, solver_type=solver_type,
        lower_order_final=True, final_sigmas_type="zero",
    )  # fmt: skip
    return _multistep(scheduler, velocity, x, times, restart)
