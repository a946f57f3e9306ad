"""The control that every table holds: a rule that steps the wrong way. A figure that it reaches says nothing."""

from __future__ import annotations

import numpy as np

from forecache.rules import Rule
from forecache.rules.rule import newest
from forecache.snapshots import Array


class WrongSign(Rule):
    """The step of a rule away from the newest snapshot, taken backwards: ``v_n - (forecast - v_n)``."""

    uses_gram = True

    def __init__(self, rule: Rule) -> None:
        self.rule, self.name, self.window, self.floor = rule, f"wrong sign of {rule.name}", rule.window, rule.floor
        self.clock = rule.clock  # type: ignore[misc]

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        return np.asarray(2 * newest(len(times)) - self.rule.weights(times, target, gram))

    def lower(self) -> Rule | None:
        lower = self.rule.lower()
        return None if lower is None else WrongSign(lower)
