"""Serving a forecast safely: the guard, the fall-back chain, and the blend toward reuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..snapshots import Array, forward_error
from .rule import Rule, Unfit, newest

MARGIN = 0.1  # with more, single cells of the zoo lose up to a factor 2; clean windows need 1e-6
ROUNDING = 1e-5  # relative: rational gaps give norms of exactly 4, and a float32 grid must not decide otherwise


@dataclass(frozen=True)
class Served:
    """Weights ``[n]`` over the window, the rule that gave them and why better ones were passed over."""

    weights: Array
    rule: str
    fallbacks: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """``||w||_1``."""
        return norm(self.weights)


def with_reuse(served: Sequence[Served], finite: Sequence[bool], why: str) -> list[Served]:
    """``served`` with reuse for each item that is not ``finite``; a single entry of ``served`` stands for all items."""
    if all(finite):
        return list(served)
    each = list(served) * (len(finite) if len(served) == 1 else 1)
    return [
        s if good else Served(newest(len(s.weights)), "reuse", (*s.fallbacks, f"{s.rule}: {why}"))
        for s, good in zip(each, finite, strict=True)
    ]


def vector(rule: Rule, n: int, given: Array) -> Array:
    """``given``, if it is one real number per snapshot: a single number would be spread over all of them.

    Raises:
        ValueError: it is not.
    """
    array = np.asarray(given)
    if array.shape != (n,) or array.dtype.kind not in "fiu":
        raise ValueError(
            f"basis {rule.name!r}: weights() must return {n} real numbers, got {array.dtype} {array.shape}"
        )
    return array


def norm(w: Array) -> float:
    """``||w||_1`` in plain floats: for so few numbers that is faster than an array's sum."""
    return float(sum(map(abs, w.tolist())))


def guarded(
    rule: Rule,
    times: Array,
    target: float,
    gram: Array,
    guard: float | None = None,
    steps: tuple[Array, float] | None = None,
) -> Served:
    """Ask ``rule``, then its lower rules, for weights that are finite and meet ``||w||_1 <= guard``.

    ``guard=None``: each rule's own. ``steps``: the same anchors and target as step indices, for the rules of the chain
    whose clock that is (``None``: ``times`` are indices).

    ``||w||_1`` is the Lebesgue constant: noise eps in the snapshots reaches the forecast as at most ``||w||_1 eps``.
    A rule that reads the Gram matrix may exceed its own guard where the snapshots show that eps is small
    (:func:`pays`); a guard that is given is never exceeded. At the end of the chain the weights are blended toward
    reuse, ``w <- e_n + s (w - e_n)`` with the largest s in [0, 1] that meets the guard; the sum is preserved. Every
    step down is named in the result, none is silent.
    """
    fallbacks: list[str] = []
    current: Rule | None = rule
    while current is not None:
        clock, goal = steps if steps is not None and current.clock == "index" else (times, target)
        current = current.chosen(clock, gram)
        limit = current.guard if guard is None else guard
        n = min(current.window, len(times))
        try:
            w = np.zeros(len(times))
            w[-n:] = vector(current, n, current.weights(clock[-n:], goal, gram[-n:, -n:]))
        except (Unfit, np.linalg.LinAlgError, ArithmeticError) as error:
            fallbacks.append(f"{current.name}: {error}")
            current = current.lower()
            continue
        size = norm(w)
        if not math.isfinite(size):
            fallbacks.append(f"{current.name}: weights are not finite")
        elif size <= limit * (1 + ROUNDING) or (guard is None and pays(current, size, clock, gram)):
            return Served(w, current.name, tuple(fallbacks))
        elif current.lower() is None:
            reuse = newest(len(times))
            s = blend(w, reuse, limit)
            fallbacks.append(f"{current.name}: |w|_1 = {size:.3g} > {limit:g}, blended toward reuse by {1 - s:.3g}")
            return Served(reuse + s * (w - reuse), current.name, tuple(fallbacks))
        else:
            fallbacks.append(f"{current.name}: |w|_1 = {size:.3g} > {limit:g}")
        current = current.lower()
    return Served(newest(len(times)), "reuse", tuple(fallbacks))


def pays(rule: Rule, size: float, times: Array, gram: Array) -> bool:
    """Whether weights of ``||w||_1 = size`` are expected to err less than the lower rule does.

    At the newest snapshot the rule would have erred by ``e = ||v_n - sum_j w'_j v_j||``, with the weights w' of the
    window before it. If its model holds, e is what noise eps of the snapshots makes of it, ``eps sqrt(1 + ||w'||^2)``;
    if it does not, e is larger. So the error ahead is put at ``size e / sqrt(1 + ||w'||^2)``, and that must be at most
    :data:`MARGIN` times what the lower rule missed at the same place.
    """
    n, lower = len(times), rule.lower()
    if not rule.uses_gram or n <= rule.floor:
        return False
    first = max(n - 1 - rule.window, 0)
    known, seen = times[first:-1], gram[first:-1, first:-1]
    try:
        own = vector(rule, len(known), rule.weights(known, times[-1], seen))
    except (Unfit, np.linalg.LinAlgError, ArithmeticError):
        return False
    other = newest(len(known)) if lower is None else guarded(lower, known, times[-1], seen).weights
    ahead = size * float(forward_error(own, gram[first:, first:])) / math.sqrt(1 + float(own @ own))
    return ahead <= MARGIN * float(forward_error(other, gram[first:, first:]))


def blend(w: Array, reuse: Array, guard: float) -> float:
    """Largest ``s`` in [0, 1] with ``||reuse + s (w - reuse)||_1 <= guard``, where the norm of ``reuse`` meets it.

    The norm is convex and piecewise linear in s, with kinks where a weight changes its sign: the answer lies on the
    segment before the first kink, or end, that exceeds the guard.
    """
    start, step = reuse.tolist(), (w - reuse).tolist()
    kinks = sorted(-b / d for b, d in zip(start, step, strict=True) if d and 0 < -b / d < 1)
    s, size = 0.0, norm(reuse)
    if size > guard:
        return 0.0
    for end in (*kinks, 1.0):
        reached = sum(abs(b + end * d) for b, d in zip(start, step, strict=True))
        if reached > guard:
            return float(s + (end - s) * (guard - size) / (reached - size))
        s, size = end, reached
    return 1.0
