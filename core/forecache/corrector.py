"""A corrector that costs no network call.

When a computed value arrives, the gap behind it is closed: what its skipped steps should have been is known by
interpolation, where their forecasts had to extrapolate. The difference is added to the step that follows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from .rules.linear import lagrange
from .snapshots import Array

ORDER = 2  # of the interpolation
STEEP = 0.3, 0.42  # guidance strength per step: up to where corrections are made whole, and from where on not at all
STIFF = 0.7  # of a correction of the state: the share that the velocity answers as if the end point stayed where it is

Gap = Sequence[tuple[int, Array]]  #: skipped steps and the weights that served them, ``[n]`` or ``[items, n]``


@dataclass(frozen=True)
class Corrector:
    """What a sampler does with what the network puts out: what the state moves by, and how far.

    With ``h_i = positions[i + 1] - positions[i]``, a computed step k, the skipped steps i of the gap before it, and
    ``f = h_k / (T - positions[k])`` with T = positions[N], the part of the way that is left which step k goes:

        ``r = sum_i (h_i / h_k) sum_j (w_j^int(i) - w_j^ext(i)) v_j``
        step k uses ``v_k + (1 - STIFF f) r``, and the history keeps ``v_k - STIFF f r``.

    w^ext: the weights that served step i. w^int: Lagrange of order 2 on the step index, through the newest three
    snapshots. This is the corrector of UniPC (arXiv:2302.04867, section 3.1) without its extra evaluation.

    The state moves by ``h_k r``, and the velocity moves with it. If the end point ``x + (T - t) v`` that the network
    points to stays where it is, that is by ``-f r``; of which :data:`STIFF`, between a network that has made up its
    mind and one that has not. Without this the corrected run rings: the next forecast reads the velocity at the
    uncorrected state as a change of direction. A velocity that answers faster than this (``x' = lambda x`` with
    ``-lambda`` times a gap beyond one half) still rings.

    Args:
        positions: N + 1 numbers: the sampler adds ``(positions[i + 1] - positions[i]) v_i`` to the state, or to a
            multiple of it. The first may be infinite, where a step is computed and nothing is to be corrected.
        breaks: steps from which on it makes something else of a value, such as the first guided one; only what was
            skipped since then is integrated again.
        end: where the data lie, if the positions do not reach it; T above.
        rates: where the network puts out something else, ``(a, b)`` by step with ``v = a x + b o`` for its output o at
            the state x: v is forecast and corrected, and ``o = (v - a x) / b`` handed to the sampler. DDIM for a
            network that puts out data D moves ``x / alpha`` over sigma / alpha by the noise ``(x - alpha D) / sigma``.
        strength: g of ``u + g (c - u)``. A guided velocity answers a moved state g times as much, and a correction at
            12 steps and strength 5 did more harm than good on trained networks; see :attr:`share`.

    Raises:
        ValueError: positions that are not finite; rates that are not one pair of finite numbers for each step, or with
            b = 0 behind the first, where no output could be found again.
    """

    positions: tuple[float, ...]
    breaks: Collection[int] = field(default_factory=frozenset)
    end: float | None = None
    rates: tuple[tuple[float, float], ...] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.positions[1:])) or math.isnan(sum(self.positions[:1])):
            raise ValueError(f"corrector: its positions must be finite, got {list(self.positions)}")
        if self.rates is None:
            return
        if len(self.rates) != len(self.positions) - 1 or not all(math.isfinite(n) for pair in self.rates for n in pair):
            raise ValueError(
                f"corrector: rates must be {len(self.positions) - 1} pairs of finite numbers, got {list(self.rates)}"
            )
        if lost := [i for i, (_, b) in enumerate(self.rates) if i and not b]:
            raise ValueError(f"corrector: rates must have b != 0 behind the first step, got 0 at steps {lost}")

    def correction(self, gap: Gap, steps: Array, dropped: int | None = None) -> tuple[Array, Array] | None:
        """What is added to the value of step k, used and kept: weights ``[..., n]`` of the snapshots, with a sum of 0.

        Args:
            gap: see :data:`Gap`; its windows lie one snapshot back.
            steps: ``[n]``, indices of the snapshots, the newest one of step k.
            dropped: index of the snapshot that gave way to step k. What it served is taken from the oldest ones that
                are left, by the same interpolation.

        ``None``: nothing was skipped, or step k moves nothing.
        """
        k, n, p = int(steps[-1]), len(steps), self.positions
        since = max((step for step in self.breaks if step <= k), default=0)
        gap = [(i, served) for i, served in gap if i >= since]
        if not gap or not self.share or p[k + 1] == p[k]:
            return None
        gone = np.zeros(n) if dropped is None else lagrange(steps[::-1], float(dropped), ORDER)[::-1]
        total: Array = np.zeros(n)
        for i, served in gap:
            lost, before = np.split(served, [served.shape[-1] - (n - 1)], -1)
            forecast = np.concatenate([before, np.zeros((*before.shape[:-1], 1))], -1) + lost.sum(-1)[..., None] * gone
            total = total + (p[i + 1] - p[i]) / (p[k + 1] - p[k]) * (lagrange(steps, float(i), ORDER) - forecast)
        end = p[-1] if self.end is None else self.end
        kept = -STIFF * (p[k + 1] - p[k]) / (end - p[k]) if end != p[k] else 0.0
        total = total * self.share
        return total * (1 + kept), total * kept

    @property
    def share(self) -> float:
        """The part of every correction that is made: 1 at gentle guidance, 0 where it is steep for so few steps."""
        whole, none = STEEP
        return min(max((none - self.strength / (len(self.positions) - 1)) / (none - whole), 0.0), 1.0)


def corrector_of_run(given: bool | Corrector, times: tuple[float, ...]) -> Corrector | None:
    """The corrector of a run over ``times``, ``None``: there is none; ``ValueError``: it is of another grid."""
    corrector = Corrector(times) if given is True else given or None
    if corrector is not None and len(corrector.positions) != len(times):
        raise ValueError(
            f"corrector: it must have {len(times)} positions, as many as times, got {len(corrector.positions)}"
        )
    return corrector
