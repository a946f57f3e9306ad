"""A generator in stages: each beside the combined velocity, the forks' way, and the sampler with fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecache import schedule
from forecache.rules import Hermite, make_rule

from ..controls import WrongSign
from ..generators.generated import Generated
from ..generators.reference import PLANS
from ..metrics import geometry
from ..metrics.columns import voxels_and_pose
from ..metrics.combined import fork_interval, fork_schedule
from ..metrics.relative import relative
from .measurement import AGAIN, Measurement, Method, Rows

WARMUP = 4  # as the forks of these generators have it
DRIFTS = ("latent drift", "rotation, degrees", "scale ratio", "translation")


class Stages(Measurement):
    """Rows: the rule at every interval with a control of as many calls below it, a shipped plan if it has as many calls
    too, the forks' Hermite, the wrong sign, and the sampler with fewer steps.
    """

    higher = ("speed-up", "occupancy IoU")
    units = (
        "Drift relative, of the latents; speed-up of the sampler against the uncached run; Chamfer in longest box sides"
        " of the uncached mesh; rotation in degrees, scale a ratio, translation in scene scales; flip rate: share of"
        " voxels."
    )

    def methods(self, stage: str, steps: int) -> list[Method]:
        rows, basis, subject = [Method(AGAIN)], self.basis, self.subject
        rule = make_rule(basis, (0.0, float(steps)))
        schedules = {k: schedule.fixed_interval(range(steps), k, self.warmup) for k in self.intervals}
        for interval, computed in schedules.items():
            settings = {"basis": basis, "interval": interval, "warmup": self.warmup}
            rows.append(Method(f"{basis}, interval {interval}", settings))
            label = f"control: combined velocity, interval {interval}"
            rows.append(Method(label, rule=make_rule(basis, (0.0, float(steps))), computed=computed))
            plan = PLANS / f"{subject.name}-{stage}-{steps}-{len(computed)}.json"
            if plan.is_file():
                rows.append(Method(f"plan, interval {interval}", {"plan": plan}))
        for interval in sorted({fork_interval(steps, k) for k in self.intervals}):
            computed = tuple(fork_schedule(steps, interval, subject.fork_last))
            rows.append(
                Method(f"control: the forks' Hermite, interval {interval}", rule=Hermite(2, 0.5), computed=computed)
            )
        wrong = {"basis": WrongSign(rule), "interval": self.intervals[0], "warmup": self.warmup}
        rows.append(Method(self.control(stage)[1], wrong))
        return [*rows, *(Method(f"Euler, {len(each)} steps", steps=len(each)) for each in schedules.values())]

    def control(self, stage: str) -> tuple[str, str]:
        return f"{self.basis}, interval {self.intervals[0]}", f"control: wrong sign, interval {self.intervals[0]}"

    def score(self, stage: str, seed: int, made: Generated, uncached: Generated) -> dict[str, float]:
        return {
            "calls": made.all_calls,
            "speed-up": uncached.seconds[stage] / made.seconds[stage],
            **distances(made, uncached),
        }

    def floor(self, uncached: Sequence[Generated]) -> dict[str, float]:
        found = [geometry.chamfer(each.mesh, each.mesh, seed=1000) for each in uncached if each.mesh is not None]
        return {"Chamfer": float(np.median(found))} if found else {}

    def remarks(self, rows: Rows) -> list[str]:
        pairs = [(f"{kind}, interval {k}", k) for k in self.intervals for kind in (self.basis, "plan")]
        return [f"- {against_combined(rows, label, k)}" for label, k in pairs if label in rows]


def distances(made: Generated, uncached: Generated) -> dict[str, float]:
    """The columns that do not depend on the clock."""
    found = {"latent drift": relative(made.latent, uncached.latent), **voxels_and_pose(made, uncached)}
    if made.mesh is not None and uncached.mesh is not None:
        found["Chamfer"] = geometry.chamfer(made.mesh, uncached.mesh)
    return found


def against_combined(rows: Rows, label: str, interval: int) -> str:
    """A row's median drift over that of the combined-velocity control of its interval, which has its calls."""
    rule, control = rows[label], rows[f"control: combined velocity, interval {interval}"]
    found = []
    for name in DRIFTS:
        if name in rule:
            mine, other = (np.log(row[name][0]) if name == "scale ratio" else row[name][0] for row in (rule, control))
            found.append(f"{name} {mine / other:.2f}")
    calls = " and ".join(f"{k:.0f}" for k in sorted({rule["calls"][0], control["calls"][0]}))
    return f"{label}, over the combined velocity, {calls} calls, medians: {', '.join(found)}"
