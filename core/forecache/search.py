"""Where the computed steps should sit: local search on the Gram matrix of uncached runs, without network calls.

A schedule and a rule fix every forecast as weights on the uncached velocities, so the displacement error after step k
is ``c_k V`` with ``c_k = sum_{i <= k} h_i (w(i) - e_i)`` over the skipped steps, and its norm needs the ``N x N``
matrix ``G = V^T V`` alone. "Open loop": the velocities stay those of the uncached run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import schedule
from .basis import Rule
from .select import GUARD, serve
from .snapshots import Array

MOVES = (1, -1, 2, -2, 3, -3, 4, -4)


def displacement_errors(gram: Array, times: Array, computed: Sequence[int], rule: Rule, guard: float = GUARD) -> Array:
    """``c_k G c_k^T`` for every step k: squared open-loop displacement error of the path.

    Args:
        gram: ``[N, N]`` of the velocities of one run, or a mean over runs.
        times: ``[N + 1]``; ``h_i = times[i + 1] - times[i]``.
        computed: sorted computed steps.
        rule: must not look at the Gram matrix.
        guard: as in :func:`forecache.select.serve`.
    """
    n = len(times) - 1
    error = np.zeros((n, n))
    anchors = np.array(computed)
    for i in range(int(anchors[0]) + 1, n):
        h = times[i + 1] - times[i]
        if h == 0 or i in computed:
            continue
        known = anchors[anchors < i][-rule.window :]
        window = np.eye(len(known))
        steps = (known.astype(np.float64), float(i))
        error[i, known] += h * serve(rule, times[known], float(times[i]), window, guard, steps).weights
        error[i, i] -= h
    path = np.cumsum(error, 0)
    return np.asarray(np.maximum(np.einsum("ki,ij,kj->k", path, gram, path), 0))


def cost(gram: Array, times: Array, computed: Sequence[int], rule: Rule, guard: float = GUARD) -> float:
    """``J = c_{N-1} G c_{N-1}^T + mean_k c_k G c_k^T``: final error plus path error, both squared."""
    errors = displacement_errors(gram, times, computed, rule, guard)
    return float(errors[-1] + errors.mean())


def search(gram: Array, times: Array, calls: int, rule: Rule, guard: float = GUARD) -> tuple[tuple[int, ...], float]:
    """A schedule of ``calls`` computed steps with a low :func:`cost`; the first and last effective step are computed.

    Starts from the even and from graded spreads; moves one computed step by 1..4 as long as that lowers the cost.

    Returns:
        The schedule and ``sqrt(J)``.

    Raises:
        ValueError: ``calls`` out of range.
    """
    effective = schedule.effective_steps(times.tolist())
    if rule.uses_gram:
        raise ValueError(f"rule must not use the Gram matrix, got {rule.name}")
    best: tuple[float, tuple[int, ...]] | None = None
    place = {step: k for k, step in enumerate(effective)}
    seen: dict[tuple[int, ...], float] = {}

    def price(candidate: tuple[int, ...]) -> float:
        if candidate not in seen:
            seen[candidate] = cost(gram, times, candidate, rule, guard)
        return seen[candidate]

    for power in (1.0, 1.3, 1.7):
        current = schedule.graded(effective, calls, power)
        value, improved = price(current), True
        while improved:
            improved = False
            for k in range(1, len(current) - 1):
                for move in MOVES:
                    at = place[current[k]] + move
                    if not place[current[k - 1]] < at < place[current[k + 1]]:
                        continue
                    candidate = (*current[:k], effective[at], *current[k + 1 :])
                    if price(candidate) < value * (1 - 1e-9):
                        current, value, improved = candidate, price(candidate), True
        if best is None or value < best[0]:
            best = (value, current)
    assert best is not None
    return best[1], float(np.sqrt(best[0]))
