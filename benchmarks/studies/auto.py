"""Why ``auto`` is what it is: ``python -m benchmarks.studies.auto [CHECKOUT]``.

Its spread, its candidates and its corrector, each replaced by others at the same number of calls, over *calibration*
conditions of the frontier's settings: two closed-form flows and, with a patched checkout of Hunyuan3D-2.1, the
reference network on grids of 50, 25 and 12 steps. Cells are latent drift x 1000, median / p95.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from forecache import Forecaster, schedule
from forecache.rules import DMD, Auto, Linear, Rule
from forecache_lab.generators.reference import CALIBRATION_SEED

from ..flows.problems import Problem
from ..flows.sampling import Batch, Run
from ..flows.solvers import euler
from ..frontier.__main__ import CLOSED, problems
from ..tables import markdown, thousandths

BUDGETS = {
    "gaussian": (9, 11, 15), "mixture": (9, 11, 15), "hunyuan50": (7, 9, 11, 15), "hunyuan25shift3": (6, 8, 10),
    "hunyuan12shift3": (5, 6, 7), "hunyuan12shift5": (5, 6, 7),
}  # fmt: skip
MIXES = (0.0, 0.2, 0.65, 0.8)
HALF, LINE, PARABOLA = Auto().candidates
REUSE = Linear(0)
Spread = Callable[[Sequence[int], int], tuple[int, ...]]
Row = tuple[Rule, Spread, bool]  # rule, where its calls go, corrector


def rows() -> dict[str, Row]:
    """The default, and each of its parts replaced."""
    found: dict[str, Row] = {"auto": (Auto(), schedule.cosine, True)}
    found["no corrector"] = Auto(), schedule.cosine, False
    for mix in MIXES:
        found[f"spread: cosine, mix {mix:g}" if mix else "spread: even"] = Auto(), _mixed(mix), True
    for name, candidates in {
        "always half the slope": (HALF,), "always the line": (LINE,), "always the parabola": (PARABOLA,),
        "without half the slope": (LINE, PARABOLA), "or reuse": (HALF, LINE, PARABOLA, REUSE),
        "or a cubic": (HALF, LINE, PARABOLA, Linear(3, guard=8.0)), "or dmd": (HALF, LINE, PARABOLA, DMD()),
    }.items():  # fmt: skip
        found[f"candidates: {name}"] = Auto(candidates), schedule.cosine, True
    return found


def _mixed(mix: float) -> Spread:
    return lambda effective, calls: schedule.cosine(effective, calls, mix=mix)


def table(problem: Problem, seeds: Sequence[int], budgets: Sequence[int]) -> str:
    """Markdown of one setting."""
    batch = Batch(problem, seeds)

    def cell(run: Run) -> str:
        return thousandths(batch.distances(run.end, "drift").tolist(), ".0f")

    lines = [["Euler with as many steps", *(cell(batch.solve(euler, problem.grid(calls))) for calls in budgets)]]
    for name, (rule, spread, corrector) in rows().items():
        cells = []
        for calls in budgets:
            computed = spread(range(problem.steps), calls)
            cache = Forecaster(rule, times=problem.times, computed=computed, corrector=corrector)
            cells.append(cell(batch.sample(cache)))
        lines.append([name, *cells])
    head = ["", *(f"{calls} calls" for calls in budgets)]
    return f"{problem.title}, {len(seeds)} calibration conditions\n\n{markdown(head, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="patched checkout of Hunyuan3D-2.1")
    parser.add_argument("--settings", nargs="+", choices=tuple(BUDGETS), help="default: all that can run")
    parser.add_argument("--conditions", type=int, default=12)
    a = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + a.conditions)
    chosen = a.settings or (list(BUDGETS) if a.checkout else list(CLOSED))
    try:
        found = problems(chosen, a.checkout)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")
    print("\n\n".join(table(problem, seeds, BUDGETS[problem.key]) for problem in found))


if __name__ == "__main__":
    main()
