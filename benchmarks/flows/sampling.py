"""Runs of a problem: the N-step sampler with a cache in it, solvers on grids of their own, and the fine solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from forecache import Calibration, Guided

from . import forms, solvers
from .grids import Grid, level
from .network import Counts, Network, Path
from .problems import EDGE, Problem, Seeds, Value, combine

FINE = 400  # steps of the fine solution, at least
Values = npt.NDArray[np.float64]
Streams = Literal["combined", "apart", "optional", "edges"]
By = Literal["drift", "error"]


def distance(latents: torch.Tensor, reference: torch.Tensor) -> Values:
    """``||x - x_ref|| / ||x_ref||`` per condition."""
    off, size = ((each).double().flatten(1).norm(dim=1) for each in (latents - reference, reference))
    return np.asarray((off / size).cpu().numpy())


@dataclass(frozen=True)
class Run:
    """Where a run ended ``[B, ...]``; per condition, calls of the network and of either branch; and the share of the
    skipped steps that the rule itself served.
    """

    end: torch.Tensor
    calls: Counts
    cond: Counts
    uncond: Counts
    served: float | None = None


@dataclass(frozen=True)
class Memory:
    """What the runs of one problem share: values on the uncached path and fine states by seed, and recordings that
    plans are made of.
    """

    path: Path = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    calibrations: dict[Any, Calibration] = field(default_factory=dict)


class Batch:
    """A problem for some seeds, in one tensor, with what its runs share."""

    def __init__(self, problem: Problem, seeds: Seeds, memory: Memory | None = None) -> None:
        self.problem, self.seeds, self.memory = problem, list(seeds), memory or Memory()

    def part(self, seeds: Seeds) -> Batch:
        """Some of the seeds, or others, with the same memory."""
        return Batch(self.problem, seeds, self.memory)

    def sample(self, cache: Any = None, streams: Streams = "combined") -> Run:
        """The N-step sampler.

        Args:
            cache: asked at every step; ``None``: every one is computed.
            streams: what the cache forecasts where guidance is on for part of the time. "combined": the output that the
                sampler integrates, as published. "apart": both branches; outside the interval cond stands in for
                uncond, so that cond keeps one history over the edge. "optional": both branches, ``Guided(cond, None)``
                outside. "edges": both branches inside, cond alone outside (needs ``Forecaster(edges=...)``).
        """
        problem, net = self.problem, Network(self.problem, self.seeds)
        x, computed = problem.start(self.seeds, problem.own_grid), -1
        for i, (here, there) in enumerate(pairwise(problem.own_grid.levels)):

            def compute(
                rows: torch.Tensor | None = None, i: int = i, here: forms.Pair = here, x: torch.Tensor = x
            ) -> Value:
                nonlocal computed
                if rows is None and computed == i - 1:  # nothing was forecast so far
                    computed = i
                    value = net.on_path(self.memory.path, i, x, here)
                else:
                    value = net.branches(x, *here, rows)
                if streams == "combined":
                    return combine(value, problem.strength)
                if isinstance(value, Guided) or streams == "edges":
                    return value
                return Guided(value, value if streams == "apart" else None)

            value = compute() if cache is None else cache.step(i, compute, state=x)
            if isinstance(value, Guided) and not problem.guided(*here):
                value = value.cond
            a, b = forms.advance(problem.form, here, there)
            x = a * x + b * combine(value, problem.strength)
        return Run(x, net.calls, net.cond, net.uncond)

    def solve(self, solver: Callable[..., torch.Tensor], grid: Grid, **options: Any) -> Run:
        """A solver of :mod:`.solvers` on a grid of its own."""
        net = Network(self.problem, self.seeds)
        return Run(solver(net, grid, **options), net.calls, net.cond, net.uncond)

    @cached_property
    def uncached(self) -> torch.Tensor:
        """Where the run with all N calls ends."""
        return self.sample().end

    @property
    def states(self) -> torch.Tensor:
        """States ``[N + 1, B, ...]`` of the fine solution at the sampler's own points."""
        known = self.memory.states
        wanted = [seed for seed in self.seeds if seed not in known]
        if wanted:
            states = _march(self.problem, wanted) if self.problem.exact is None else self.problem.exact(
                wanted, self.problem.times
            )  # fmt: skip
            known.update(zip(wanted, states.unbind(1), strict=True))
        return torch.stack([known[seed] for seed in self.seeds], 1)

    @property
    def fine(self) -> torch.Tensor:
        """The end of the flow itself."""
        return self.states[-1]

    def distances(self, end: torch.Tensor, by: By) -> Values:
        """Drift to the uncached run, or error to the fine solution, per condition."""
        return distance(end, self.uncached if by == "drift" else self.fine)


def _march(problem: Problem, seeds: Seeds) -> torch.Tensor:
    """AB2 with at least :data:`FINE` steps. The history starts anew where guidance switches: the flow is smooth on
    either side only.
    """
    chart, s = problem.own_grid.chart, problem.own_grid.s
    ends = _switches(problem)
    nodes = sorted({*s, *(e for e in ends if min(s) < e < max(s))}, reverse=s[0] > s[-1])
    x, net = problem.start(seeds, problem.own_grid), Network(problem, seeds)
    u = x / level(chart, s[0])[0] if chart == "vp" else x
    parts = problem.parts or math.ceil(FINE / (2 if problem.slow else 1) / len(s))
    states = {s[0]: u}
    for a, b in pairwise([nodes[0], *(e for e in nodes[1:-1] if e in ends), nodes[-1]]):
        inside = [e for e in nodes if min(a, b) <= e <= max(a, b)]
        points = [p for lo, hi in pairwise(inside) for p in np.linspace(lo, hi, parts + 1)[:-1].tolist()]
        guided, path = problem.guided(*level(chart, (a + b) / 2)), list[torch.Tensor]()
        u = solvers.adams_bashforth(partial(net.slope, guided=guided), u, [*points, b], second=True, path=path)
        states.update(zip([*points[1:], b], path, strict=True))
    return torch.stack([states[each] * level(chart, each)[0] if chart == "vp" else states[each] for each in s])


def _switches(problem: Problem) -> list[float]:
    """``s`` where guidance switches; one that is a grid point but for round-off is that point."""
    found = []
    for n in problem.interval or ():
        if 0 < n < 1:
            s = 1 - n if problem.own_grid.chart == "flow" else n / (1 - n)
            near = min(problem.own_grid.s, key=lambda each: abs(each - s))
            found.append(near if abs(near - s) <= EDGE else s)
    return found


def runner(batch: Batch, streams: Streams = "combined") -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` of the N-step sampler, for ``forecache.calibrate``."""
    return lambda seed, cache: batch.part([seed]).sample(cache, streams).end


def reference_runner(batch: Batch) -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` that lands on the fine solution of a flow at every grid time: its velocities are the
    secants.
    """

    def run(seed: int, cache: Any) -> torch.Tensor:
        states = batch.part([seed]).states
        for i, (t, after) in enumerate(pairwise(batch.problem.times)):
            secant = (states[i + 1] - states[i]) / (after - t)
            cache.step(i, lambda secant=secant: secant, state=states[i])
        return states[-1]

    return run
