"""Which steps call the network. Pure functions from a number of steps to a sorted tuple of computed steps.

``effective`` are the steps that move the state (``t_{i+1} != t_i``), in order; the others are never computed. The last
effective step is always computed: nothing after it can repair it, and on shifted grids it is the longest one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any


def effective_steps(times: Sequence[float]) -> tuple[int, ...]:
    """Steps i with ``times[i + 1] != times[i]``.

    Raises:
        ValueError: fewer than two times, a time that is not finite, or times that turn back.
    """
    values = [float(t) for t in times]
    if len(values) < 2:
        raise ValueError(f"times must hold the N + 1 >= 2 times of N steps, got {len(values)}")
    moves = [b - a for a, b in pairwise(values)]
    if not all(abs(t) < float("inf") for t in values):  # NaN fails the comparison too
        raise ValueError(f"times must be finite, got {values}")
    if min(moves) < 0 < max(moves):
        raise ValueError(f"times must rise or fall, got {values}")
    return tuple(i for i, move in enumerate(moves) if move != 0)


def whole(name: str, value: Any) -> int:
    """``value`` as an int.

    Raises:
        TypeError: it is none; the message names the argument.
    """
    try:
        return operator.index(value)
    except (TypeError, ValueError):  # a tensor of several numbers is a ValueError
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def grid(times: Sequence[float] | None, steps: int | None) -> tuple[float, ...]:
    """The N + 1 times of a run, given by themselves or by N; ``ValueError``: by both or neither, or ``steps < 1``."""
    if (times is None) == (steps is None):
        raise ValueError("give either times (N + 1 grid times) or steps (N), not both and not neither")
    if steps is not None and whole("steps", steps) < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    return tuple(float(t) for t in (times if times is not None else range((steps or 0) + 1)))


def check_order(step: int, last: int | None, times: Sequence[float], every: bool) -> int:
    """The index of a step, on the grid and behind the ``last`` one; where ``every`` step must come, none is left out.

    Raises:
        TypeError, ValueError: it is no such step.
    """
    step = whole("step", step)  # also a tensor of one integer, which is equal to a step and hashes like none
    if not 0 <= step < len(times) - 1:
        raise ValueError(f"step must be 0..{len(times) - 2}, got {step}")
    left_out = 0 if last is None else step - last - 1
    if left_out < 0 or (left_out and every):
        hint = "a plan is asked at every step" if left_out > 0 else "reset() starts a run"
        if left_out == -1:
            hint = "a solver with several calls a step needs a Forecaster for each"
        raise ValueError(f"steps out of order: step {step} after step {last}; {hint}")
    return step


def fixed_interval(effective: Sequence[int], interval: int, warmup: int = 2, end: int | None = None) -> tuple[int, ...]:
    """HiCache's schedule: the first ``warmup`` steps, then every ``interval``-th, all from step ``end`` on, the last.

    Raises:
        ValueError: ``interval < 1`` or ``warmup < 0``.
    """
    if interval < 1:
        raise ValueError(f"interval must be >= 1, got {interval}")
    if warmup < 0:
        raise ValueError(f"warmup must be >= 0, got {warmup}")
    computed: list[int] = []
    skipped = 0
    for i in effective:
        wanted = i < warmup or skipped >= interval - 1 or (end is not None and i >= end)
        if not computed or wanted or i == effective[-1]:
            computed.append(i)
            skipped = 0
        else:
            skipped += 1
    return tuple(computed)


def even(effective: Sequence[int], calls: int) -> tuple[int, ...]:
    """An exact budget spread evenly: first and last effective step computed, gaps differing by at most one.

    Raises:
        ValueError: ``calls`` outside ``1 .. len(effective)``. One call computes the first step alone.
    """
    n = len(effective)
    if not 1 <= calls <= max(n, 1):
        raise ValueError(f"calls must be 1..{n} (the steps that move the state), got {calls}")
    if calls == 1 or n <= 1:
        return tuple(effective[:1])
    return tuple(effective[(k * (n - 1) * 2 + calls - 1) // (2 * (calls - 1))] for k in range(calls))


def cosine(effective: Sequence[int], calls: int, power: float = 1.25, mix: float = 0.4) -> tuple[int, ...]:
    """An exact budget that is dense at both ends: call k near ``(1 - m) u + m ((1 - cos(pi u)) / 2)^p`` of the way,
    ``u = k / (calls - 1)``.

    Calibrated plans of our flows have this shape: at the start the velocity changes fastest and a sample may still go
    either way (p > 1 is for that), at the end nothing is left of the flow that could contract an error. ``mix = 0`` is
    :func:`even`. A grid that its designer bent is denser where it matters already: there a large m costs more than it
    brings, so the default is mild.

    Raises:
        ValueError: ``calls`` outside ``1 .. len(effective)``, ``power < 1`` or ``mix`` outside [0, 1].
    """
    if not 1 <= power < math.inf or not 0 <= mix <= 1:
        raise ValueError(f"cosine needs a finite power >= 1 and mix in 0..1, got {power} and {mix}")
    spread, last = even(effective, calls), len(effective) - 1
    where: list[int] = []
    for k in range(len(spread)):
        u = k / max(len(spread) - 1, 1)
        wanted = round(last * ((1 - mix) * u + mix * ((1 - math.cos(math.pi * u)) / 2) ** power))
        where.append(max(wanted, where[-1] + 1) if where else wanted)
    for k in reversed(range(len(where))):  # room for the calls that follow
        where[k] = min(where[k], last - (len(where) - 1 - k))
    return tuple(effective[k] for k in where)


def ramp(effective: Sequence[int], warmup: int = 5, start: float = 2.0, growth: float = 0.75) -> tuple[int, ...]:
    """Spectrum's growing interval (arXiv:2603.01623): the first ``warmup`` steps, then a gap that grows by ``growth``
    at every computation, and the last effective step.

    Raises:
        ValueError: ``warmup < 1``, ``start < 1`` or ``growth < 0``.
    """
    if warmup < 1 or not 1 <= start < math.inf or not 0 <= growth < math.inf:
        raise ValueError(f"ramp needs warmup >= 1, finite start >= 1 and growth >= 0, got {warmup}, {start}, {growth}")
    computed: list[int] = []
    gap, skipped = start, 0
    for k, i in enumerate(effective):
        if k < warmup or (skipped + 1) % int(gap) == 0 or i == effective[-1]:
            if k >= warmup:
                gap += growth
            computed.append(i)
            skipped = 0
        else:
            skipped += 1
    return tuple(computed)


def with_edges(computed: Sequence[int], effective: Sequence[int], edges: Sequence[int], exact: bool) -> tuple[int, ...]:
    """``computed`` with the steps after which the velocity is another function: guidance switched, a stage began.

    Args:
        computed: a schedule.
        effective: the steps that move the state.
        edges: first steps after an edge; each is computed.
        exact: keep the number of computed steps: for every edge that is added, the other step whose removal leaves the
            shortest gap goes. False: the edges come on top.

    Raises:
        ValueError: an edge that is not an effective step, or more edges than the budget holds.
    """
    foreign = sorted(set(edges) - set(effective))
    if foreign:
        raise ValueError(f"edges must be steps that move the state, got {foreign}")
    steps = sorted({*computed, *edges})
    kept = {*edges, effective[0], effective[-1]}
    while exact and len(steps) > len(computed):
        spare = [k for k in range(1, len(steps) - 1) if steps[k] not in kept]
        if not spare:
            raise ValueError(
                f"calls must be >= {len(steps)} to compute the first, the last and {len(edges)} edge steps"
            )
        del steps[min(spare, key=lambda k: steps[k + 1] - steps[k - 1])]
    return tuple(steps)


def window(computed: Sequence[int], memory: int, edges: Iterable[int] = ()) -> tuple[int, ...]:
    """The newest ``memory`` of ``computed`` that share a history: none older than the last of ``edges`` among them."""
    last = max((step for step in edges if step in computed), default=-1)
    return tuple(step for step in computed if step >= last)[-memory:]


def check(computed: Sequence[int], effective: Sequence[int]) -> tuple[int, ...]:
    """A given list of computed steps, checked against the grid.

    Raises:
        ValueError: not sorted, not among the effective steps, or without the first one.
    """
    steps = tuple(whole("computed", i) for i in computed)
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"schedule must be strictly increasing steps, got {list(computed)}")
    if not steps or not effective or steps[0] != effective[0]:
        raise ValueError(f"schedule must compute the first effective step {list(effective[:1])}, got {list(computed)}")
    foreign = sorted(set(steps) - set(effective))
    if foreign:
        raise ValueError(f"schedule holds steps {foreign} that are not among the {len(effective)} effective steps")
    return steps


def choose(
    effective: Sequence[int],
    dense: bool,
    interval: int | None = None,
    warmup: int | None = None,
    end: int | None = None,
    calls: int | None = None,
    computed: Sequence[int] | None = None,
    plan: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The schedule that a forecaster's arguments ask for; by default the fixed interval 4.

    ``dense``: an exact budget is spread by :func:`cosine`, not by :func:`even`; and an interval sets the budget only.

    Raises:
        ValueError: more than one of ``interval``, ``calls``, ``computed`` and ``plan`` (its computed steps), or what
            the schedule asked for raises.
    """
    given = {"interval": interval, "calls": calls, "computed": computed, "plan": plan}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"give one of interval, calls, computed, plan; got {' and '.join(named)}")
    if interval is None and (warmup is not None or end is not None) and named:
        raise ValueError(f"warmup and end belong to interval, not to {named[0]}")
    steps = computed if computed is not None else plan
    if steps is not None:
        return check(steps, effective)
    if calls is None:
        fixed = fixed_interval(effective, 4 if interval is None else interval, 2 if warmup is None else warmup, end)
        if not dense or not effective:
            return fixed
        calls = len(fixed)
    return cosine(effective, calls) if dense else even(effective, calls)


FEW = 5  # calls up to which plain Euler with as many steps may do as well as "auto" (docs/frontier.md)


def few_calls(basis: Any, calls: int, steps: int) -> str:
    """A warning where ``basis`` is "auto" and the sampler itself may do as well with as many steps; "": none is due."""
    if basis != "auto" or not calls <= FEW < steps:
        return ""
    return (
        f"auto with {calls} of {steps} calls: with so few, the sampler with {calls} steps of its own often does as "
        "well; try fewer steps, or a plan"
    )
