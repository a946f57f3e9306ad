"""The calibration-free default: cautious, unless the run itself shows that its velocity is smooth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..snapshots import MAX_HISTORY, Array
from .dmd import remembered
from .guard import serve
from .linear import Linear
from .rule import Rule

ROUNDOFF = 1e-7  # of the newest snapshot: errors below it are noise of the Gram matrix
EVIDENCE = 4  # snapshots from which on the newest one is an audit: a line is the least that must have been possible


def forward_error(rule: Rule, times: tuple[float, ...], gram: Array) -> float:
    """``||v_n - sum_j w_j v_j||`` of the newest snapshot, with the weights of the window before it: what ``rule`` would
    have got wrong. From the Gram matrix, ``[-w, 1] G [-w, 1]^T``.
    """
    signed = against_newest(rule, times, gram) if rule.uses_gram else from_times(rule, times)
    return float(np.sqrt(max(float(signed @ gram @ signed), 0.0)))


def against_newest(rule: Rule, times: tuple[float, ...], gram: Array) -> Array:
    """``[-w, 1]``: the newest snapshot less the forecast that the window before it makes of it."""
    w = serve(rule, np.array(times[:-1]), times[-1], gram[:-1, :-1]).weights
    return np.append(-w, 1.0)


@lru_cache(maxsize=256)
def from_times(rule: Rule, times: tuple[float, ...]) -> Array:
    """:func:`against_newest` of a rule that does not look at the Gram matrix: one for all items of all streams."""
    return against_newest(rule, times, np.eye(len(times)))


@dataclass(frozen=True)
class Auto(Rule):
    """Lagrange in true time, as bold as the newest computed value allows.

    A trained network's velocities scatter about a smooth curve, and extrapolation amplifies scatter by ``||w||_1``:
    ``cautious`` is damped and kept on a short leash. A flow without scatter (closed form, or a very good network) is
    served far better by a high order, undamped. Which one a run is, its own snapshots say: ``bold`` serves while its
    forecast of the newest of them missed it by less than ``gate`` times what ``cautious`` missed. On closed-form flows
    the ratio of the two is 0.1 to 0.65 from the middle of a run on, on the trained network 0.65 to 4 (docs/results.md).

    The two may be any rules that can be hashed: ``Auto(Auto(), Exponential(), gate=1.0)`` serves exponentials while
    they did better than this rule's own line and cubic.

    Raises:
        ValueError: ``gate`` negative.
    """

    cautious: Rule = Linear(2, damping=0.7, guard=1.75)  # noqa: RUF009  frozen
    bold: Rule = Linear(3, guard=8.0)  # noqa: RUF009  frozen
    gate: float = 0.7

    name = "auto"
    floor = 3

    @property
    def window(self) -> int:  # type: ignore[override]
        """What the two read, and one more to try them on."""
        return min(1 + max(self.cautious.window, self.bold.window), MAX_HISTORY)

    def __post_init__(self) -> None:
        if not self.gate >= 0:
            raise ValueError(f"gate must be >= 0, got {self.gate}")

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        """Those of the chosen rule, under its guard."""
        return serve(self.chosen(times, gram), times, target, gram).weights

    def chosen(self, times: Array, gram: Array) -> Rule:
        """See the class."""
        if len(times) < EVIDENCE:
            return self.cautious
        return self.bold if smooth(gram, tuple(times.tolist()), self) else self.cautious


@remembered
def smooth(gram: Array, times: tuple[float, ...], auto: Auto) -> bool:
    """Whether the newest snapshot speaks for the bold rule; round-off speaks for neither, and the bold one serves."""
    bold, cautious = (forward_error(rule, times, gram) for rule in (auto.bold, auto.cautious))
    return bold < auto.gate * max(cautious, ROUNDOFF * float(np.sqrt(gram[-1, -1])))
