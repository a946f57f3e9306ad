"""How much of a plan's drift its network calls can explain: ``python -m benchmarks.studies.limits CHECKOUT``.

The sample of a cached run lies in the span of its start and of the velocities that were computed. The distance of the
uncached sample to that span, per run, is what no choice of weights could take out at these states: weights made for
this very run, and with hindsight. Beside it, what the plan's weights, shared by all runs, leave. Latent drift x 1000,
median / p95, test conditions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from forecache import Calibration, Forecaster, Plan
from forecache_lab.generators.reference import CALIBRATION_SEED

from ..flows import hunyuan21
from ..flows.problems import Problem
from ..flows.sampling import Batch, runner
from ..frontier.__main__ import FIRST
from ..tables import markdown, thousandths


class Kept(Forecaster):
    """Remembers every computed velocity."""

    def observe(self, i: int, value: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), value.clone()]
        used: torch.Tensor = super().observe(i, value, state)
        return used


def drift_and_least(problem: Problem, plan: Plan, seed: int) -> tuple[float, float]:
    """Drift of one run under a plan, and the distance of its uncached sample to the span of its calls."""
    batch = Batch(problem, [seed])
    uncached = batch.uncached.double().flatten()
    cache = Kept(times=problem.times, plan=plan, made_for=plan.made_for)
    cached = batch.sample(cache).end.double().flatten()
    columns = torch.stack([problem.noise([seed]), *cache.seen]).double().flatten(1).T
    nearest = columns @ torch.linalg.lstsq(columns, uncached).solution
    size = float(uncached.norm())
    return float((cached - uncached).norm()) / size, float((nearest - uncached).norm()) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=[9, 11, 15])
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--refine", type=int, default=0)
    parser.add_argument("--test", type=int, default=32)
    a = parser.parse_args()
    torch.set_num_threads(1)
    problem = hunyuan21.problems(a.checkout)["hunyuan50"]
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + a.calibration)
    made = Calibration(runner(Batch(problem, seeds)), times=problem.times, seeds=seeds, refine=a.refine)
    rows = []
    for calls in a.calls:
        plan = made.plan(calls)
        found = [
            drift_and_least(problem, plan, seed)
            for seed in tqdm(range(FIRST, FIRST + a.test), str(calls), mininterval=2)
        ]
        rows.append([str(calls), *map(thousandths, zip(*found, strict=True))])
    table = markdown(["calls", "plan", "least, in the span of its calls"], rows)
    print(f"\nn = {a.test}, {a.calibration} for calibration\n\n{table}")


if __name__ == "__main__":
    main()
