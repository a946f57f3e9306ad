"""Calibrated plans for a reference network, and what each budget costs in drift.

``python -m benchmarks.studies.plans CHECKOUT --calls 9 11 15 --out DIR`` (a patched checkout of Hunyuan3D-2.1). Plans
are made on calibration conditions; the table is measured on test conditions. Cells are median / p95 of latent drift x
1000.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from forecache import Calibration, Forecaster, Plan
from forecache.rules import Linear
from forecache_adapters import hunyuan21 as adapter
from forecache_lab.generators.reference import CALIBRATION_SEED, TEST_SEED, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE

from ..tables import markdown, thousandths

GUIDANCE = hunyuan21.GUIDANCE
GRID = (*np.linspace(0, 1, 50).tolist(), 1.0)


def runner(pipe: Any, first: int) -> Callable[[int, Any], torch.Tensor]:
    """``run(seed, cache)`` over the solids from ``first`` on; ``cache=None``: uncached."""
    pictures: dict[int, torch.Tensor] = {}

    def run(seed: int, cache: Any) -> torch.Tensor:
        if seed not in pictures:
            pictures[seed] = solids.picture(solids.solid(first + seed)[1], PICTURE)[None]
        with nullcontext() if cache is None else adapter.enabled(pipe, cache=cache):
            latent: torch.Tensor = pipe(
                image=[pictures[seed]], guidance_scale=GUIDANCE, output_type="latent", enable_pbar=False,
                generator=torch.Generator().manual_seed(first + seed),
            )  # fmt: skip
        return latent

    return run


def ladder(pipe: Any, budgets: list[int], calibration: int, test: int, refine: int) -> tuple[dict[int, Plan], str]:
    """Plans by budget and the Markdown table of their drift."""
    key = adapter.key(pipe, GUIDANCE)
    run = runner(pipe, TEST_SEED)
    references = [run(seed, None) for seed in range(test)]

    def drift(basis: Any = "auto", **settings: Any) -> str:
        values = []
        for seed, reference in enumerate(references):
            cache = Forecaster(basis, times=GRID, **settings)
            values.append(float((run(seed, cache) - reference).norm() / reference.norm()))
        return thousandths(values)

    with tqdm(unit="run", mininterval=2) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(f"{stage} {done}/{total}", refresh=False)
            bar.update()

        made = Calibration(
            runner(pipe, CALIBRATION_SEED), times=GRID, seeds=range(calibration), made_for=key,
            guidance_scale=GUIDANCE, refine=refine, progress=progress,
        )  # fmt: skip
        plans = {calls: made.plan(calls) for calls in budgets}
    rows = []
    for calls, plan in plans.items():
        own = drift(plan=plan, made_for=key), drift(Linear(2), computed=plan.computed)
        rows.append([str(calls), *own, *(drift(basis, calls=calls) for basis in ("auto", "linear", "reuse"))])
    head = ("calls of 50", "plan", "its schedule, Lagrange 2", "auto", "even, linear", "even, reuse")
    return plans, markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=[9, 11, 15])
    parser.add_argument("--calibration", type=int, default=32, help="calibration conditions")
    parser.add_argument("--refine", type=int, default=1, help="rounds of refinement")
    parser.add_argument("--test", type=int, default=16, help="test conditions")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    torch.set_num_threads(1)
    pipe = hunyuan21.build(hunyuan21.load(a.checkout))
    plans, table = ladder(pipe, a.calls, a.calibration, a.test, a.refine)
    a.out.mkdir(parents=True, exist_ok=True)
    for calls, plan in plans.items():
        plan.save(a.out / f"hunyuan21-{calls}.json")
    print(
        f"latent drift x 1000, median / p95, n = {a.test} test conditions, {a.calibration} for calibration\n\n{table}"
    )


if __name__ == "__main__":
    main()
