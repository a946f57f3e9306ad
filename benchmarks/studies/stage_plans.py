"""Plans for a staged generator, made through its own sampler:
``python -m benchmarks.studies.stage_plans trellis CHECKOUT --out DIR``.

Each stage's sampler is calibrated with its branches apart (a weight for the velocity, one for the guidance difference,
one for the state) and tested on other conditions beside rules with at least as many network calls. A table for every
kind of drift that the stage has, median / p95.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from forecache import Calibration, Plan
from forecache_lab.generators.generated import Generated, Generator
from forecache_lab.generators.reference import CALIBRATION_SEED
from forecache_lab.generators.registry import GENERATORS
from forecache_lab.session.measurement import cell, summary
from forecache_lab.session.stages import DRIFTS, distances

BUDGETS: Mapping[int, tuple[int, ...]] = {12: (6, 7), 25: (7, 9, 12)}  # calls of the conditional branch, by steps
ROWS = ("linear", "dmd", "auto", "reuse")


class Planned(Generator, Protocol):
    """A staged generator that plans can be made for."""

    adapter: Any  #: module with ``enabled`` and ``key``
    pipe: Any  #: for the adapter
    first: int  #: first test condition
    groups: Mapping[str, Mapping[str, Sequence[str]]]  #: leaves with weights of their own, by stage

    def alone(self, stage: str, settings: Any) -> Mapping[str, Any]:
        """The adapter's argument ``stages``: settings for one stage, no cache for the others."""
        ...

    def run(self, stage: str, seed: int, steps: int) -> Generated:
        """One stage with whatever is attached, for a condition by its own number."""
        ...

    def times(self, stage: str, steps: int) -> Sequence[float]:
        """The N + 1 times of a stage's grid."""
        ...


def runner(subject: Planned, stage: str, steps: int) -> Callable[[int, Any], Any]:
    """``run(seed, cache)`` of one stage, for ``forecache.calibrate``."""

    def run(seed: int, cache: Any) -> Any:
        with subject.adapter.enabled(subject.pipe, stages=subject.alone(stage, cache)):
            made = subject.run(stage, seed, steps)
        return made.latents if len(made.latents) > 1 else made.latent

    return run


def make(subject: Planned, stage: str, steps: int, seeds: range, refine: int) -> Calibration:
    """The calibration of one stage and grid."""
    key = subject.adapter.key(subject.pipe, stage)
    return Calibration(
        runner(subject, stage, steps),
        times=subject.times(stage, steps),
        seeds=seeds,
        guidance_scale=key["guidance_scale"],
        groups=subject.groups.get(stage),
        refine=refine,
        made_for=key,
    )


def drifts(
    subject: Planned, stage: str, steps: int, references: Mapping[int, Generated], settings: Mapping[str, Any]
) -> tuple[dict[str, str], int]:
    """The cells of one row by kind of drift from the uncached runs ``references``, and its network calls."""
    scores, calls = [], 0
    for seed, reference in references.items():
        with subject.adapter.enabled(subject.pipe, stages=subject.alone(stage, settings)):
            made = replace(subject.run(stage, seed, steps), mesh=None)  # its distances are not asked for
        scores.append(distances(made, reference))
        calls = made.all_calls
    found = summary([{name: each[name] for name in DRIFTS if name in each} for each in scores])
    return {name: cell(name, values) for name, values in found.items()}, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("sam3d", "trellis"))
    parser.add_argument("checkout", type=Path, help="checkout of the upstream, patched where its adapter needs that")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", help="default: all")
    parser.add_argument("--calls", type=int, nargs="+", help="of the conditional branch, for every grid")
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--refine", type=int, default=0)
    a = parser.parse_args()
    subject: Planned = GENERATORS[a.subject].make(a.checkout)
    stages = a.stages or list(subject.grids)
    foreign = sorted(set(stages) - set(subject.grids))
    if foreign:
        parser.error(f"--stages must be among {', '.join(subject.grids)}, got {', '.join(foreign)}")
    calibration = range(CALIBRATION_SEED, CALIBRATION_SEED + a.calibration)
    test = range(subject.first, subject.first + a.test)
    head = [f"| stage, steps | calls | plan | {' | '.join(ROWS)} |", "|" + "---|" * (len(ROWS) + 3)]
    tables: dict[str, list[str]] = {}
    a.out.mkdir(parents=True, exist_ok=True)
    total = sum(len(a.calls or BUDGETS[steps]) for stage in stages for steps in subject.grids[stage])
    with tqdm(total=total, unit="plan", mininterval=2) as bar:
        for stage in stages:
            for steps in subject.grids[stage]:
                made = make(subject, stage, steps, calibration, a.refine)
                references = {seed: subject.run(stage, seed, steps) for seed in test}
                for budget in a.calls or BUDGETS[steps]:
                    plan: Plan = made.plan(budget)
                    file = a.out / f"{a.subject}-{stage}-{steps}-{budget}.json"
                    plan.save(file)
                    cells, calls = drifts(subject, stage, steps, references, {"plan": file})
                    others = [drifts(subject, stage, steps, references, {"basis": k, "calls": budget}) for k in ROWS]
                    for name, drift in cells.items():
                        row = [other[name] + ("" if n == calls else f" ({n} calls)") for other, n in others]
                        line = f"| {stage}, {steps} | {calls} | {drift} | {' | '.join(row)} |"
                        tables.setdefault(name, [*head]).append(line)
                        bar.write(f"{name}: {line}")
                    bar.update()
    text = (
        f"{subject.title}, {subject.conditions}. Median / p95, {a.test} test conditions, plans from {a.calibration} "
        f"others, {a.refine} rounds of refinement. Calls: both branches."
    )
    for name, lines in tables.items():
        text += f"\n\n{name}\n\n" + "\n".join(lines)
    (a.out / "plans.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
