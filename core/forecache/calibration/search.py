"""Where the computed steps should sit, from the Gram matrices of uncached runs and from how their errors survive.

A schedule and a rule fix every forecast as weights on the uncached velocities, so the displacement error of one gap
``[a, b)`` is ``sum h_i (sum_j w_j(i) v_j - v_i)``, and its norm needs the ``N x N`` matrix ``G = V^T V`` alone ("open
loop": the velocities stay those of the uncached run). What counts is how much of it is left in the sample. A flow that
has decided what it makes contracts early errors, sometimes a hundredfold, and one that has not amplifies them, so each
gap is weighted by the survival ``rho(b)`` that probes measured on each run.

Price of a schedule: the errors of its gaps, each times ``rho(b)``, added per run and relative to its sample; over the
runs the power mean of exponent 1/2, which lies near the median but does not forget the tail. How errors of different
gaps add is not in the matrices: as if independent (``coherence = 0``: root of the sum of squares) or as if the flow
kept their directions (1: norm of the sum). Which of the two finds the better schedule differs between flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from .. import schedule
from ..snapshots import Array
from .fit import prior, solve

MOVES = (1, -1, 2, -2, 3, -3, 4, -4)


def power_mean(values: Array) -> float:
    """``(mean sqrt(x))^2``."""
    return float(np.mean(np.sqrt(values)) ** 2)


class Gaps:
    """Prices of gaps, each computed once.

    Args:
        grams: ``[S, N, N]`` of S uncached runs, each divided by the squared norm of its sample.
        survival: ``[S, N + 1]``, the share of a displacement at each step that is left at the end.
        times: ``[N + 1]``.
        memory, ridge: of the weights that will be fitted.
        edges: computed steps that start a new history.
    """

    def __init__(
        self, grams: Array, survival: Array, times: Array, memory: int, ridge: float, edges: Iterable[int] = ()
    ) -> None:
        self.grams, self.survival, self.times = grams, survival, times
        self.memory, self.ridge, self.edges = memory, ridge, frozenset(edges)
        scale = np.maximum(np.einsum("sii->s", grams), 1e-300)
        self.mean = np.mean(grams / scale[:, None, None], 0) * grams.shape[1]
        self._weights: dict[tuple[tuple[int, ...], int], Array] = {}
        self._prices: dict[tuple[tuple[int, ...], int], Array] = {}

    def window(self, computed: Sequence[int], k: int, memory: int | None = None) -> tuple[int, ...]:
        """The anchors that serve the gap after anchor ``k``."""
        return schedule.window(computed[: k + 1], memory or self.memory, self.edges)

    def weights(self, anchors: tuple[int, ...], end: int) -> Array:
        """``[end - a - 1, n]``: for the steps between the last anchor a and ``end``, the weights that minimise the mean
        open-loop error of their velocity.
        """
        known = list(anchors)
        k = self.mean[np.ix_(known, known)]
        rows = []
        for i in range(known[-1] + 1, end):
            if (anchors, i) not in self._weights:
                toward = prior(anchors, i)
                self._weights[anchors, i] = solve(k, self.mean[known, i], toward, len(known), self.ridge)
            rows.append(self._weights[anchors, i])
        return np.array(rows)

    def errors(self, anchors: tuple[int, ...], end: int) -> Array:
        """``[S]``: squared error in the sample that the gap from the last of ``anchors`` to ``end`` leaves."""
        key = (anchors, end)
        if key not in self._prices:
            skipped = list(range(anchors[-1] + 1, end))
            h = np.diff(self.times)[skipped]
            c = np.concatenate([h @ self.weights(anchors, end), -h])
            steps = [*anchors, *skipped]
            g = self.grams[:, steps][:, :, steps]
            self._prices[key] = np.maximum(np.einsum("i,sij,j->s", c, g, c), 0) * self.survival[:, end] ** 2
        return self._prices[key]

    def drift(self, computed: Sequence[int], coherence: float = 0.0) -> Array:
        """``[S]``: predicted drift of each run under a schedule."""
        n = len(self.times) - 1
        apart, c = np.zeros(len(self.grams)), np.zeros((len(self.grams), n))
        for k, (a, b) in enumerate(pairwise((*computed, n))):
            if b == a + 1:
                continue
            anchors = self.window(computed, k)
            apart += self.errors(anchors, b)
            if coherence:
                skipped = list(range(a + 1, b))
                h, rho = np.diff(self.times)[skipped], self.survival[:, b, None]
                c[:, list(anchors)] += rho * (h @ self.weights(anchors, b))
                c[:, skipped] -= rho * h
        together = np.maximum(np.einsum("si,sij,sj->s", c, self.grams, c), 0) if coherence else 0.0
        return np.asarray(np.sqrt((1 - coherence) * apart + coherence * together))

    def price(self, computed: Sequence[int], coherence: float = 0.0) -> float:
        """What :func:`search` minimises."""
        return power_mean(self.drift(computed, coherence))


def shortest_path(gaps: Gaps, effective: Sequence[int], calls: int, required: Iterable[int] = ()) -> tuple[int, ...]:
    """The best schedule under two-snapshot weights, by dynamic programming over (previous anchor, anchor).

    Cost of a gap: the power mean over the runs, squared, so that gaps add up. No gap is longer than four mean gaps.

    Raises:
        ValueError: no schedule of ``calls`` steps holds all of ``required``.
    """
    n, longest = len(gaps.times) - 1, max(4 * len(effective) // calls, 3)
    place = {step: k for k, step in enumerate(effective)}
    forced = sorted(place[step] for step in {*required, effective[0]})
    reach = [next((f for f in forced if f > k), len(effective)) for k in range(len(effective))]

    def gap(p: int | None, a: int, b: int) -> float:
        end = effective[b] if b < len(effective) else n
        if end == effective[a] + 1:
            return 0.0
        pair = (effective[a],) if p is None else (effective[p], effective[a])
        return power_mean(np.sqrt(gaps.errors(gaps.window(pair, len(pair) - 1, 2), end))) ** 2

    best: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {(None, 0): (0.0, (0,))}
    for _ in range(calls - 1):
        later: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}
        for (p, a), (cost, path) in best.items():
            for b in range(a + 1, min(a + longest, reach[a], len(effective) - 1) + 1):
                value = cost + gap(p, a, b)
                if (a, b) not in later or value < later[a, b][0]:
                    later[a, b] = (value, (*path, b))
        best = later
    ends = [(c + gap(p, a, len(effective)), path) for (p, a), (c, path) in best.items() if reach[a] == len(effective)]
    if not ends:
        raise ValueError(f"calls={calls} leaves no room for the required steps {sorted(required)}")
    return tuple(effective[k] for k in min(ends)[1])


def search(
    gaps: Gaps, effective: Sequence[int], calls: int, required: Iterable[int] = (), coherence: float = 0.0
) -> tuple[tuple[int, ...], float]:
    """A schedule of ``calls`` computed steps with a low price.

    The first and the last effective step and ``required`` are computed: nothing after the last one can repair it.

    Starts from :func:`shortest_path`, moves one computed step by 1..4 or to any other place as long as that pays.

    Returns:
        The schedule and its price: the predicted drift.

    Raises:
        ValueError: ``calls`` out of range, or too few for ``required``.
    """
    fixed = {effective[0], effective[-1], *required}
    if not len(fixed) <= calls <= len(effective):
        raise ValueError(f"calls must be {len(fixed)}..{len(effective)}, got {calls}")
    current = shortest_path(gaps, effective, calls, fixed)
    value, improved = gaps.price(current, coherence), True
    place = {step: k for k, step in enumerate(effective)}
    while improved:
        improved = False
        for step in current:
            if step in fixed:
                continue
            near = [place[step] + move for move in MOVES]
            goals = [*(effective[k] for k in near if 0 <= k < len(effective)), *effective]
            for goal in goals:
                candidate = tuple(sorted({*current, goal} - {step}))
                if len(candidate) != calls:
                    continue
                price = gaps.price(candidate, coherence)
                if price < value * (1 - 1e-9):
                    current, value, improved = candidate, price, True
                    break
    return current, value


def survival(steps: Sequence[int], measured: Array, n: int) -> Array:
    """Survival at every step from that at probed ones: log-linear between them, 1 at the end.

    Args:
        steps: probed steps, rising.
        measured: ``[S, len(steps)]``.
        n: steps of the grid.

    Returns:
        ``[S, n + 1]``.
    """
    where = [*steps, n]
    logs = np.log(np.maximum(np.concatenate([measured, np.ones((len(measured), 1))], 1), 1e-6))
    return np.asarray(np.exp(np.stack([np.interp(np.arange(n + 1), where, row) for row in logs])))


def probe_steps(effective: Sequence[int], count: int) -> tuple[int, ...]:
    """Where to probe: denser toward both ends, where survival changes fastest (Chebyshev points)."""
    m = len(effective)
    places = {round((m - 1) * (1 - np.cos(np.pi * k / (count + 1))) / 2) for k in range(1, count + 1)}
    return tuple(effective[k] for k in sorted(places) if k >= 2)
