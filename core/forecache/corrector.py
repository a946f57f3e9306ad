"""A corrector that costs no network call.

When a computed value arrives, the gap behind it is closed: what its skipped steps should have been is known by
interpolation, where their forecasts had to extrapolate. The difference is added to the step that follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .basis.linear import lagrange
from .snapshots import Array

ORDER = 2  # of the interpolation
STIFF = 0.6  # of a correction of the state: the share that the velocity answers as if the end point stayed where it is

Gap = Sequence[tuple[int, Array]]  #: skipped steps and the weights that served them, ``[n]`` or ``[items, n]``


def again(gap: Gap, steps: Array, gains: Sequence[float], n: int) -> Array:
    """By how much the state is to move, as weights on the snapshots: ``d [..., n]``, with a sum of 0.

        ``c = sum_j d_j v_j = sum_{i in gap} b_i sum_j (w_j^int(i) - w_j^ext(i)) v_j``

    w^ext: the weights that served step i. w^int: Lagrange of order 2 on the step index, through the newest three
    snapshots. It is the corrector of UniPC (arXiv:2302.04867, section 3.1) without its extra evaluation, and an order
    more for nothing.

    Args:
        gap: see :data:`Gap`; the windows lie one snapshot back.
        steps: ``[n]``, indices of the snapshots with the one that closes the gap.
        gains: b by step: the sampler adds ``b_i v_i`` to the state.
        n: snapshots.
    """
    total: Array = np.zeros(n)
    for i, served in gap:
        before = served[..., -(n - 1) :]
        forecast = np.concatenate([before, np.zeros((*before.shape[:-1], 1))], -1)
        forecast[..., 0] += 1 - forecast.sum(-1)  # what the window has dropped meanwhile
        total = total + gains[i] * (lagrange(steps, float(i), ORDER) - forecast)
    return total


def response(time: float, end: float) -> float:
    """How much the velocity changes with the state: ``v + response * c`` is the velocity at the corrected state.

    If the end point ``x + (T - t) v`` that the network points to stays where it is, a state moved by c has the velocity
    ``v + c / (t - T)``. Of that, :data:`STIFF`: somewhere between a network that has made up its mind and one that has
    not. Without it the corrected run rings: the next forecast reads the old velocity as a change of direction.
    """
    return STIFF / (time - end) if time != end else 0.0
