"""A generator that goes from noise to a mesh in one stage: time, drift and geometry against calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forecache.rules import make_rule

from ..controls import WrongSign
from ..generators.generated import Generated
from ..metrics import geometry
from ..metrics.columns import surface
from ..metrics.relative import relative
from .measurement import Measurement, Method, Rows


class OneStage(Measurement):
    """Rows: the rule at every interval, the wrong sign at the middle one, and for each number of calls the sampler with
    as few steps.
    """

    higher = ("denoise speed-up", "total speed-up", "volume IoU", *(f"F@{t}" for t in geometry.THRESHOLDS))
    units = "lengths in longest box sides of the uncached mesh; drift relative; speed-up against the uncached run"
    free = 1

    def __init__(self, subject: Any, basis: str, intervals: Sequence[int] | None, warmup: int | None) -> None:
        # the published quick start of dmd has 4; the polynomial rules need two anchors
        super().__init__(subject, basis, intervals, (4 if basis == "dmd" else 2) if warmup is None else warmup)
        self.middle = self.intervals[len(self.intervals) // 2]
        self.euler: set[int] = set()

    def name(self, stage: str, steps: int) -> str:
        return f"shape, {steps} steps"

    def methods(self, stage: str, steps: int) -> list[Method]:
        basis, schedule = self.basis, {"warmup": self.warmup}
        rows = [Method(f"{basis}, interval {k}", {"basis": basis, "interval": k, **schedule}) for k in self.intervals]
        wrong = {"basis": WrongSign(make_rule(basis, None)), "interval": self.middle, **schedule}
        return [*rows, Method(self.control(stage)[1], wrong)]

    def next_method(self, method: Method, calls: int) -> Method | None:
        if method.label.startswith(("Euler", "control")) or calls in self.euler:
            return None
        self.euler.add(calls)
        settings, steps = self.subject.fewer(calls)
        return Method(f"Euler, {calls} steps", settings, steps)

    def score(self, stage: str, seed: int, made: Generated, uncached: Generated) -> dict[str, float]:
        assert made.mesh is not None and uncached.mesh is not None
        return {
            "calls": made.all_calls, "denoise speed-up": uncached.seconds[stage] / made.seconds[stage],
            "total speed-up": sum(uncached.seconds.values()) / sum(made.seconds.values()),
            self.drift: relative(made.latent, uncached.latent),
            **_columns(geometry.compare(made.mesh, uncached.mesh)),
        }  # fmt: skip

    def floor(self, uncached: Sequence[Generated]) -> dict[str, float]:
        found = [_columns(geometry.floor(each.mesh)) for each in uncached if each.mesh is not None]
        return {name: float(np.median([each[name] for each in found])) for name in found[0]}

    def control(self, stage: str) -> tuple[str, str]:
        rule = f"{self.basis}, interval {self.middle}"
        return rule, f"control: {self.basis} with the wrong sign, interval {self.middle}"

    def pictured(self, label: str, rows: Rows) -> bool:
        euler = f"Euler, {rows[self.control('')[1]]['calls'][0]:.0f} steps"
        return super().pictured(label, rows) or label == euler


def _columns(found: geometry.Geometry) -> dict[str, float]:
    return {name: value for name, value in surface(found).items() if name != "normals"}
