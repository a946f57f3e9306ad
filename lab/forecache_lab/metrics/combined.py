"""Control: the forks' way, which forecasts the *combined* velocity and ignores the guidance edge.

Re-implemented from what the forks of TRELLIS, TRELLIS.2 and SAM 3D Objects do (not from their text): one history of the
velocity after guidance, on the step index, with HiCache's Hermite rule or any other, straight across the end of the
guidance interval.
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

    ``sampler``: one of the TRELLIS family, or a generator of SAM 3D with its Euler solver, whose velocity is a
    dictionary. ``edges``: steps that start a new history; the forks have none.
    """
    name, at = ("_inference_model", 1) if hasattr(sampler, "_inference_model") else ("_generate_dynamics", 0)
    inside = getattr(sampler, name)
    count = itertools.count()
    caches: dict[bool, Forecaster] = {}

    def velocity(*args: Any, **kwargs: Any) -> Any:
        i, sparse = next(count) % steps, is_sparse(args[at])
        if sparse:
            register(type(args[at]))
        if i == 0:  # a new run
            dim = None if sparse else 0
            caches[sparse] = Forecaster(basis, steps=steps, computed=computed, edges=edges, batch_dim=dim)
        return caches[sparse].step(i, lambda: inside(*args, **kwargs))

    setattr(sampler, name, velocity)
    try:
        yield
    finally:
        delattr(sampler, name)


def fork_interval(steps: int, interval: int) -> int:
    """What the forks make of an interval: at least 3 below 20 steps."""
    return max(interval, 3) if steps < 20 else interval


def fork_schedule(steps: int, interval: int, last: bool = True) -> list[int]:
    """Computed steps of the forks: the first four, every ``interval``-th after them (:func:`fork_interval`), and
    the last, which the forks of TRELLIS' structure stage and of SAM 3D leave out.
    """
    gap = fork_interval(steps, interval)
    return [i for i in range(steps) if i < 4 or (i - 3) % gap == 0 or (last and i == steps - 1)]
