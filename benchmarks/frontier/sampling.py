"""The N-step Euler sampler with a cache in it, the fine solution, and what ``forecache.calibrate`` runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from forecache import Guided

from . import solvers
from .problems import EDGE, Network, Problem, Seeds, combine

FINE = 400  # steps of the reference solution, at least
Counts = npt.NDArray[np.int64]
Streams = Literal["combined", "apart", "optional", "edges"]


@dataclass(frozen=True)
class Result:
    """Final latents ``[B, ...]`` and, per condition, calls of the velocity and of either branch."""

    latents: torch.Tensor
    calls: Counts
    cond: Counts
    uncond: Counts


class Always:
    """No cache: every step computes."""

    def step(self, i: int, compute: Callable[[], Any], state: Any = None) -> Any:
        """The network's value."""
        return compute()


def sample(problem: Problem, seeds: Seeds, cache: Any = None, streams: Streams = "combined") -> Result:
    """Euler over ``problem.times``; steps with dt = 0 are free for everybody.

    Args:
        problem: what to sample.
        seeds: conditions, one batch.
        cache: asked at every moving step; ``None``: every one is computed.
        streams: what the cache forecasts where guidance is on for part of the time. "combined": the velocity of the
            sampler, as published. "apart": both branches; outside the interval cond stands in for uncond, so that cond
            keeps one history over the edge. "optional": both branches, ``Guided(cond, None)`` outside. "edges": both
            branches inside, cond alone outside (needs ``Forecaster(edges=...)``).
    """
    net, x, computed = Network(problem, seeds), problem.start(seeds), -1
    asked = Always() if cache is None else cache
    for i, (t, after) in enumerate(pairwise(problem.times)):
        if after == t:
            continue

        def compute(rows: torch.Tensor | None = None, i: int = i, t: float = t, x: torch.Tensor = x) -> Any:
            nonlocal computed
            if rows is None and computed == i - 1:  # nothing was forecast so far
                computed = i
                value = net.on_path(i, x, t)
            else:
                value = net.branches(x, t, rows)
            if streams == "combined":
                return combine(value, problem.scale)
            if isinstance(value, Guided) or streams == "edges":
                return value
            return Guided(value, value if streams == "apart" else None)

        value = asked.step(i, compute, state=x)
        if isinstance(value, Guided) and not problem.guided(t):
            value = value.cond
        x = x + (after - t) * combine(value, problem.scale)
    return Result(x, net.calls, net.cond, net.uncond)


def solve(
    problem: Problem, seeds: Seeds, solver: Callable[..., torch.Tensor], times: tuple[float, ...], **options: Any
) -> Result:
    """A solver of :mod:`.solvers` on its own grid."""
    net = Network(problem, seeds)
    return Result(solver(net.velocity, problem.start(seeds), times, **options), net.calls, net.cond, net.uncond)


def solution(problem: Problem, seeds: Seeds, fine: int = FINE) -> torch.Tensor:
    """States ``[N + 1, B, ...]`` of the flow at ``problem.times``, in closed form or by AB2 with >= ``fine`` steps.

    The history starts anew where guidance switches: the flow is smooth on either side of that time only.
    """
    wanted = [seed for seed in seeds if seed not in problem.references]
    if wanted:
        if problem.exact is not None:
            states = problem.exact(wanted, problem.times)
        else:
            states = _march(problem, wanted, math.ceil(fine / len(problem.effective)))
        problem.references.update(zip(wanted, states.unbind(1), strict=True))
    return torch.stack([problem.references[seed] for seed in seeds], 1)


def _march(problem: Problem, seeds: Seeds, parts: int) -> torch.Tensor:
    grid = sorted(set(problem.times))
    ends = [min(grid, key=lambda t: abs(t - e)) if min(abs(t - e) for t in grid) <= EDGE else e
            for e in problem.interval or ()]  # fmt: skip
    nodes = sorted({*grid, *(e for e in ends if grid[0] < e < grid[-1])})
    net, x = Network(problem, seeds), problem.start(seeds)
    states = {grid[0]: x}
    fine = [grid[0]]
    for a, b in pairwise(nodes):
        fine += [*np.linspace(a, b, parts + 1)[1:-1].tolist(), b]
        if b in ends or b == grid[-1]:
            guided = problem.guided((fine[0] + b) / 2)
            path: list[torch.Tensor] = []
            x = solvers.ab2(partial(net.velocity, guided=guided), x, fine, second=True, path=path)
            states.update(zip(fine[1:], path, strict=True))
            fine = [b]
    return torch.stack([states[t] for t in problem.times])


def runner(problem: Problem, streams: Streams = "combined") -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` of the N-step sampler, for ``forecache.calibrate``."""
    return lambda seed, cache: sample(problem, [seed], cache, streams).latents


def reference_runner(problem: Problem) -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` that lands on the fine solution at every grid time: its velocities are the secants."""

    def run(seed: int, cache: Any) -> torch.Tensor:
        states = solution(problem, [seed])
        for i, (t, after) in enumerate(pairwise(problem.times)):
            if after != t:
                secant = (states[i + 1] - states[i]) / (after - t)
                cache.step(i, lambda secant=secant: secant, state=states[i])
        return states[-1]

    return run
