"""What all sessions share: rows, runs, the smoke test, medians, and the one writer of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..generators.generated import Generated
from ..metrics.combined import combined
from ..record import UNCACHED

AGAIN = "uncached, again"
Rows = Mapping[str, Mapping[str, Sequence[float]]]  #: median and bad tail, by method and column


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        settings: for the subject's ``sample``; ``None``: uncached.
        steps: of the sampler; ``None``: those of the table.
        rule, computed: of a forecast of the combined velocity, which is a control; ``computed``: its steps.
    """

    label: str
    settings: Mapping[str, Any] | None = None
    steps: int | None = None
    rule: Any = None
    computed: tuple[int, ...] = ()


def run(subject: Any, stage: str, seed: int, steps: int, method: Method | None = None) -> Generated:
    """One run of a stage under a method; ``None``: uncached."""
    method = method or Method(UNCACHED)
    control = method.rule is not None
    with combined(subject.sampler(stage), method.rule, steps, method.computed) if control else nullcontext():
        made: Generated = subject.sample(stage, seed, method.steps or steps, method.settings)
    return made


def same(a: Generated, b: Generated) -> bool:
    """Whether all that the samplers returned is the same, bit for bit."""
    return a.latents.keys() == b.latents.keys() and all(torch.equal(a.latents[k], b.latents[k]) for k in a.latents)


def summary(scores: Sequence[Mapping[str, float]], higher: Sequence[str] = ()) -> dict[str, list[float]]:
    """Median and bad tail by column: p95, or p5 of the columns in ``higher``, in which more is better."""
    return {
        name: [
            float(np.median([each[name] for each in scores])),
            float(np.percentile([each[name] for each in scores], 5 if name in higher else 95)),
        ]
        for name in scores[0]
    }


def cell(name: str, values: Sequence[float]) -> str:
    """``median / bad tail``; a ratio near 1 in more digits."""
    digits = 5 if name == "scale ratio" else 3
    return " / ".join(f"{value:.{digits}g}" for value in values)


class Measurement:
    """A session of one generator with one rule. Subclasses say which methods and columns the tables have.

    Attributes:
        drift: the column that tells methods apart. higher: columns in which more is better. units: of all columns.
        free: steps of a full schedule that call no network, because dt = 0.
        calls_vary: runs of one method may differ in calls, so that their bad tail is shown too.
    """

    drift = "latent drift"
    higher: Sequence[str] = ()
    units: str
    free = 0
    calls_vary = False

    def __init__(self, subject: Any, basis: str, intervals: Sequence[int] | None, warmup: int | None) -> None:
        self.subject, self.basis = subject, basis
        self.intervals = getattr(subject, "intervals", ()) if intervals is None else intervals
        self.warmup = 4 if warmup is None else warmup

    def name(self, stage: str, steps: int) -> str:
        """Of a table."""
        return f"{stage}, {steps} steps"

    def methods(self, stage: str, steps: int) -> list[Method]:
        """The rows of a table but the uncached run's."""
        raise NotImplementedError

    def next_method(self, method: Method, calls: int) -> Method | None:
        """A further row, once it is known how many calls ``method`` made."""
        return None

    def score(self, stage: str, seed: int, made: Generated, uncached: Generated) -> dict[str, float]:
        """The columns of one run beside the uncached run with the same noise; the first is ``calls``."""
        raise NotImplementedError

    def floor(self, uncached: Sequence[Generated]) -> dict[str, float]:
        """The noise floor by column: what a column shows for two samplings of one mesh."""
        return {}

    def control(self, stage: str) -> tuple[str, str] | None:
        """Labels of a rule and of the same rule with the wrong sign, which must drift more."""
        raise NotImplementedError

    def pictured(self, label: str, rows: Rows) -> bool:
        """Whether a method's meshes are in the picture."""
        return not label.startswith("Euler") and "forks" not in label

    def remarks(self, rows: Rows) -> list[str]:
        """Lines below a table."""
        return []

    def smoke(self) -> None:
        """Uncached twice and a full schedule give the same output in every stage, bit for bit.

        Raises:
            RuntimeError: names the stage that differs.
        """
        for stage, grids in self.subject.grids.items():
            first, again = (run(self.subject, stage, 0, grids[-1]) for _ in range(2))
            full = run(self.subject, stage, 0, grids[-1], Method("", {"basis": "reuse", "interval": 1}))
            if not same(first, again):
                raise RuntimeError(f"smoke: two uncached runs differ in {stage}")
            if not same(first, full):
                raise RuntimeError(f"smoke: a full schedule changes the output of {stage}")
            if full.all_calls != first.all_calls - self.free:
                raise RuntimeError(
                    f"smoke: {stage}: {first.all_calls} calls uncached, {full.all_calls} in a full schedule"
                )
            print(
                f"smoke: {stage}: off is bit-identical; full schedule too, with {full.all_calls} of {first.all_calls}"
                " calls" + (" (dt = 0 is skipped)" if self.free else "")
            )

    def check(self, stage: str, rows: Rows) -> list[str]:
        """Why a table tells nothing; empty: it does."""
        failed, control = [], self.control(stage)
        if control is not None:
            rule, wrong = (rows[label][self.drift][0] for label in control)
            if wrong <= rule:
                failed.append("the wrong-sign control drifts no more than the rule")
        if AGAIN in rows and rows[AGAIN][self.drift][0] != 0:
            failed.append("two uncached runs differ")
        return failed

    def table(self, title: str, rows: Rows, floor: Mapping[str, float], uncached_calls: Sequence[int]) -> str:
        """A table; cells are ``median / bad tail``."""
        names = [name for name in next(iter(rows.values())) if name != "calls"]
        lines = [f"### {title}, n = {len(uncached_calls)}", "", f"| method | calls | {' | '.join(names)} |"]
        lines.append("|" + "---|" * (len(names) + 2))
        if AGAIN not in rows:
            same_as_itself = ["0" if name == self.drift else "1" if "speed-up" in name else "-" for name in names]
            lines.append(f"| uncached | {int(np.median(uncached_calls))} | {' | '.join(same_as_itself)} |")
        for label, row in rows.items():
            low, high = row["calls"]
            calls = f"{low:.0f}" + (f" / {high:.0f}" if self.calls_vary and high != low else "")
            lines.append(f"| {label} | {calls} | {' | '.join(cell(name, row[name]) for name in names)} |")
        if floor:
            cells = [f"{floor[name]:.3g}" if name in floor else "-" for name in names]
            lines.append(f"| noise floor: uncached mesh, sampled again | - | {' | '.join(cells)} |")
        remarks = self.remarks(rows)
        return "\n".join([*lines, *([""] if remarks else []), *remarks])
