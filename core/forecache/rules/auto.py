"""The calibration-free default: of a few rules, the one whose errors in this run add up to the least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..snapshots import Array
from .guard import guarded
from .linear import Linear, lagrange
from .rule import Rule, remembered

MEMORY = 4  # newest forward errors that are added up
DOUBT = 4.0  # how many times better a rule must have done than the first, where the second differences alternate


@dataclass(frozen=True)
class Auto(Rule):
    """Serves the candidate with the smallest *coherent* forward error.

    Every snapshot shows what a rule would have got wrong there: its forward error ``e_k = v_k - sum_j w_j v_j``, with
    the weights of the window before it. A sampler adds velocities up, so what reaches the sample is the sum of the
    errors; a low order has errors of one sign, which the mean of their squares does not see. A candidate is scored by

        ``|| e_{n-m+1} + ... + e_n || / m``,    the newest ``m <= 4`` errors that its window allows,

    from the Gram matrix alone. The first candidate, a line of half the slope, is the cautious one. It serves until it
    has an error to show, since the first snapshots say least of where a curve goes. Where the two newest second
    differences point against one another (:func:`alternates`), any other must score :data:`DOUBT` times as well.
    ``candidates`` may be any rules:
    ``Auto((Linear(1), Exponential()))`` takes exponentials where they did better than a line.

    Raises:
        ValueError: no candidates.
    """

    candidates: tuple[Rule, ...] = (Linear(1, damping=0.5, guard=8.0), Linear(1, guard=8.0), Linear(2, guard=8.0))

    name = "auto"
    window = 6
    floor = 3

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("candidates must hold at least one rule, got none")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        """Those of the chosen rule, under its guard."""
        return guarded(self.chosen(times, gram), times, target, gram).weights

    def chosen(self, times: Array, gram: Array) -> Rule:
        """See the class."""
        n = min(self.window, len(times))
        return self.candidates[smallest(gram[-n:, -n:], tuple(times[-n:].tolist()), self.candidates)]


@remembered
def smallest(gram: Array, times: tuple[float, ...], candidates: tuple[Rule, ...]) -> int:
    """Which candidate has the smallest score, the earlier one of two that are equal; see :class:`Auto`."""
    if len(times) <= candidates[0].floor:
        return 0
    scored = [k for k, rule in enumerate(candidates) if len(times) > rule.floor]
    doubt = DOUBT if alternates(times, gram) else 1.0
    return min(scored, key=lambda k: coherent_error(candidates[k], times, gram) * (doubt if k else 1.0))


def alternates(times: tuple[float, ...], gram: Array) -> bool:
    """Whether the two newest second divided differences have a negative dot product; ``False`` before four snapshots.

    The curve then bends one way and at once the other: the run rings, or its snapshots are noise, and the next bend
    is not one to extrapolate.
    """
    if len(times) < 4:
        return False
    older, newer = bends(times[-4:])
    return bool(older @ gram[-4:, -4:] @ newer < 0)


@lru_cache(maxsize=1024)
def bends(times: tuple[float, ...]) -> Array:
    """What a line misses the two newest of four snapshots by, as weights ``[2, 4]``: the second divided differences
    times ``(t_k - t_{k-1}) (t_k - t_{k-2}) > 0``.
    """
    missed = np.eye(4)[2:]
    for row, k in zip(missed, (2, 3), strict=True):
        row[k - 2 : k] = -lagrange(np.array(times[k - 2 : k]), times[k], 1)
    return missed


def coherent_error(rule: Rule, times: tuple[float, ...], gram: Array) -> float:
    """``||sum of the newest forward errors|| / their number``, of a window of more than ``rule.floor`` snapshots."""
    signed = errors(rule, times, gram) if rule.uses_gram else errors_of_times(rule, times)
    return float(np.sqrt(max(float(signed @ gram @ signed), 0.0)))


def errors(rule: Rule, times: tuple[float, ...], gram: Array) -> Array:
    """The mean of the newest forward errors as one weight per snapshot."""
    n = len(times)
    places = range(max(rule.floor, n - MEMORY), n)
    signed = np.zeros(n)
    for k in places:
        first = max(k - rule.window, 0)
        before = times[first:k]
        signed[k] += 1
        if rule.uses_gram:
            signed[first:k] -= guarded(rule, np.array(before), times[k], gram[first:k, first:k]).weights
        else:
            signed[first:k] -= weights_of_times(rule, before, times[k])
    return signed / len(places)


@lru_cache(maxsize=1024)
def errors_of_times(rule: Rule, times: tuple[float, ...]) -> Array:
    """:func:`errors` of a rule that does not look at the Gram matrix: one for all items of all streams."""
    return errors(rule, times, np.eye(len(times)))


@lru_cache(maxsize=1024)
def weights_of_times(rule: Rule, times: tuple[float, ...], target: float) -> Array:
    """Those of such a rule, which the next windows ask for again."""
    return guarded(rule, np.array(times), target, np.eye(len(times))).weights
