"""Control for the TRELLIS family: the forks' way, which forecasts the *combined* velocity and ignores the edge.

Re-implemented from what the forks of TRELLIS and TRELLIS.2 do (not from their text): one history of the velocity after
guidance, on the step index, with HiCache's Hermite rule or any other, straight across the end of the guidance interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from forecache import Forecaster
from forecache_adapters.sparse import is_sparse, register


def grid(steps: int, rescale_t: float) -> list[float]:
    """The samplers' times, ``r l / (1 + (r - 1) l)`` for l from 1 to 0."""
    line = np.linspace(1, 0, steps + 1)
    times: list[float] = (rescale_t * line / (1 + (rescale_t - 1) * line)).tolist()
    return times


@contextmanager
def combined(
    sampler: Any, basis: Any, steps: int, computed: Sequence[int], edges: Sequence[int] = ()
) -> Iterator[None]:
    """While it is on, ``sampler`` computes the velocity at the steps ``computed`` and forecasts it at the others.

    ``edges``: steps that start a new history; the forks have none.
    """
    inside = sampler._inference_model
    count = itertools.count()
    caches: dict[bool, Forecaster] = {}

    def velocity(model: Any, x_t: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        i, sparse = next(count) % steps, is_sparse(x_t)
        if sparse:
            register(type(x_t))
        if i == 0:  # a new run
            dim = None if sparse else 0
            caches[sparse] = Forecaster(basis, steps=steps, computed=computed, edges=edges, batch_dim=dim)
        return caches[sparse].step(i, lambda: inside(model, x_t, t, *args, **kwargs))

    sampler._inference_model = velocity
    try:
        yield
    finally:
        del sampler._inference_model


def fork_interval(steps: int, interval: int) -> int:
    """What the forks make of an interval: at least 3 below 20 steps."""
    return max(interval, 3) if steps < 20 else interval


def fork_schedule(steps: int, interval: int, last: bool = True) -> list[int]:
    """Computed steps of the forks: the first four, every ``interval``-th after them (:func:`fork_interval`), and
    the last, which the structure stage of TRELLIS' fork leaves out.
    """
    gap = fork_interval(steps, interval)
    return [i for i in range(steps) if i < 4 or (i - 3) % gap == 0 or (last and i == steps - 1)]
