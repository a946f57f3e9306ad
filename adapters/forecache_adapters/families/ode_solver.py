"""Generators that hand a dynamics function to an ``ODESolver``: what can be told of solver and guidance wrapper.

A generator has ``_solver.solve_iter(dynamics, x, times, ...)`` and ``reverse_fn``, the guidance wrapper, which calls
``reverse_fn.backbone`` once per branch, in a fixed order. A solver calls the dynamics once or several times a step, at
fixed shares of the step: each such slope has histories of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils import _pytree

from ..settings import Settings

# Where in a step a solver calls the dynamics, as shares of dt
SLOPES = {"Euler": (0.0,), "Midpoint": (0.0, 0.5), "RungeKutta4": (0.0, 0.5, 0.5, 1.0)}
ORDER = {"ClassifierFreeGuidance": ("cond", "uncond"), "PointmapCFG": ("cond", "no_pointmap", "uncond")}


def slopes_of(solver: Any) -> tuple[float, ...]:
    """Where in a step ``solver`` calls the dynamics.

    Raises:
        ValueError: a solver that is not among :data:`SLOPES`; its calls could not be told apart.
    """
    name = type(solver).__name__
    if name not in SLOPES:
        raise ValueError(f"solver must be one of {', '.join(SLOPES)}, got {name}")
    return SLOPES[name]


def order_of(wrapper: Any) -> tuple[str, ...]:
    """The branches in the order in which a guidance wrapper calls them.

    Raises:
        TypeError: not a guidance wrapper that is known.
    """
    for kind in type(wrapper).__mro__:
        if kind.__name__ in ORDER:
            return ORDER[kind.__name__]
    raise TypeError(f"generator.reverse_fn must be one of {', '.join(ORDER)}, got {type(wrapper).__name__}")


def is_compiled(wrapper: Any) -> bool:
    """Whether what calls the network is compiled, so that no Python of ours may run inside of ``inner_forward``.

    A network that is compiled by itself is enclosed.
    """
    if not isinstance(wrapper, torch.nn.Module):
        return False
    replaced = "inner_forward" in {**vars(wrapper), **wrapper._modules}
    return replaced or hasattr(wrapper, "_orig_mod") or wrapper._compiled_call_impl is not None


def obstacle(settings: Any, solver: Any, slopes: Sequence[float], combined: str) -> str | None:
    """Why a stage's settings, or the cache that it was given, cannot serve such a generator."""
    given = not isinstance(settings, (Settings, type(None)))
    planned = isinstance(settings, Settings) and settings.plan is not None
    if (given or planned) and len(slopes) > 1:
        return f"plan: it serves one call of the network a step, {type(solver).__name__} makes {len(slopes)}"
    if planned and combined:
        return f"plan: it needs the branches apart, but they are combined: {combined}"
    if combined and isinstance(settings, Settings) and settings.adaptive_guidance is not False:
        return f"adaptive_guidance: it needs the branches apart, but they are combined: {combined}"
    return None


def strengths(wrapper: Any, time: float) -> tuple[float, ...]:
    """The wrapper's strength of each leaf at a time of the network.

    It is 0 outside of its interval, of which both ends are inside, and everywhere without one or in training mode.
    """
    strength, interval = wrapper.strength, None if wrapper.training else wrapper.interval
    t = torch.tensor(time, dtype=torch.float32)  # as the wrapper compares it

    def at(value: Any, window: Any) -> float:
        return float(value) if window is not None and bool(window[0] <= t <= window[1]) else 0.0

    if isinstance(interval, dict):
        return tuple(_pytree.tree_leaves(_pytree.tree_map(at, strength, interval)))
    return tuple(at(value, interval) for value in _pytree.tree_leaves(strength))


def slope_times(times: Sequence[float], share: float) -> list[float]:
    """The times of one slope: ``t_i + c dt_i``, and one more, as far behind the last as that is behind its own."""
    moved = [a + share * (b - a) for a, b in pairwise(times)]
    return [*moved, times[-1] + share * (times[-1] - times[-2])]
