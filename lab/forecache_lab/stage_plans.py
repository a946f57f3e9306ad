"""Plans for TRELLIS's stages, made through its own sampler: ``python -m forecache_lab.stage_plans CHECKOUT --out DIR``.

Each stage's sampler is calibrated with its branches apart (a weight for the velocity, one for the guidance difference,
one for the state) and tested on other conditions beside rules with at least as many network calls. Latent drift x 1000,
median / p95.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from forecache import Calibration, Plan

from .combined import grid
from .reference import CALIBRATION_SEED
from .stages import Output, relative
from .subjects.trellis import FIRST, Trellis

BUDGETS: Mapping[int, tuple[int, ...]] = {12: (6, 7), 25: (7, 9, 12)}  # calls of the conditional branch, by steps


def runner(subject: Trellis, stage: str, steps: int) -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` of one stage, for ``forecache.calibrate``."""

    def run(seed: int, cache: Any) -> torch.Tensor:
        with subject.adapter.enabled(subject.pipe, stages={**dict.fromkeys(subject.grids), stage: cache}):
            return subject.run(stage, seed, steps).latent

    return run


def make(subject: Trellis, stage: str, steps: int, seeds: range, refine: int) -> Calibration:
    """The calibration of one stage and grid."""
    key = subject.adapter.key(subject.pipe, stage)
    return Calibration(
        runner(subject, stage, steps),
        times=grid(steps, subject.pipe.slat_sampler_params["rescale_t"]),
        seeds=seeds,
        guidance_scale=key["guidance_scale"],
        refine=refine,
        made_for=key,
    )


def drifts(
    subject: Trellis, stage: str, steps: int, references: Mapping[int, Output], settings: Mapping[str, Any]
) -> tuple[str, int]:
    """The cell of one row, against the uncached runs by condition, and its network calls."""
    found, calls = [], 0
    for seed, reference in references.items():
        with subject.adapter.enabled(subject.pipe, stages={**dict.fromkeys(subject.grids), stage: settings}):
            output = subject.run(stage, seed, steps)
        found.append(relative(output, reference))
        calls = output.calls
    return f"{1e3 * np.median(found):.2f} / {1e3 * np.percentile(found, 95):.2f}", calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="patched checkout of TRELLIS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=list(Trellis.grids), default=list(Trellis.grids))
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--refine", type=int, default=0)
    a = parser.parse_args()
    subject = Trellis(a.checkout)
    calibration = range(CALIBRATION_SEED, CALIBRATION_SEED + a.calibration)
    test = range(FIRST, FIRST + a.test)
    rows = ["linear", "dmd", "auto"]
    lines = [
        f"| stage, steps | calls | plan | {' | '.join(rows)} | reuse |",
        "|" + "---|" * (len(rows) + 4),
    ]
    a.out.mkdir(parents=True, exist_ok=True)
    total = sum(len(BUDGETS[steps]) for stage in a.stages for steps in subject.grids[stage])
    with tqdm(total=total, unit="plan", mininterval=2) as bar:
        for stage in a.stages:
            for steps in subject.grids[stage]:
                made = make(subject, stage, steps, calibration, a.refine)
                references = {seed: subject.run(stage, seed, steps) for seed in test}
                for budget in BUDGETS[steps]:
                    plan: Plan = made.plan(budget)
                    file = a.out / f"trellis-{stage}-{steps}-{budget}.json"
                    plan.save(file)
                    cell, calls = drifts(subject, stage, steps, references, {"plan": file})
                    cells = []
                    for basis in (*rows, "reuse"):
                        other, spent = drifts(subject, stage, steps, references, {"basis": basis, "calls": budget})
                        cells.append(other if spent == calls else f"{other} ({spent} calls)")
                    lines.append(f"| {stage}, {steps} | {calls} | {cell} | {' | '.join(cells)} |")
                    bar.update()
                    bar.write(lines[-1])
    text = (
        f"{subject.title}, {subject.conditions}. Latent drift x 1000, median / p95, {a.test} test conditions, plans "
        f"from {a.calibration} others, {a.refine} rounds of refinement. Calls: both branches.\n\n" + "\n".join(lines)
    )
    (a.out / "plans.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
