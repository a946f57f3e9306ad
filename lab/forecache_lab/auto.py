"""Why ``auto`` is what it is: ``python -m forecache_lab.auto [CHECKOUT]``.

Its spread and its two rules, each replaced by others at the same number of calls, over *calibration* conditions of the
frontier's settings: two closed-form flows and, with a patched checkout of Hunyuan3D-2.1, the reference network on grids
of 50, 25 and 12 steps. Cells are latent drift x 1000, median / p95.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from forecache import Forecaster, schedule
from forecache.basis import Auto, Linear, Rule

from .frontier.__main__ import CLOSED, problems
from .frontier.measure import distance
from .frontier.problems import Problem
from .frontier.sampling import sample, solve
from .frontier.solvers import euler
from .reference import CALIBRATION_SEED

BUDGETS = {
    "gaussian": (9, 11, 15), "mixture": (9, 11, 15), "hunyuan50": (7, 9, 11, 15), "hunyuan25shift3": (6, 8, 10),
    "hunyuan12shift3": (5, 6, 7), "hunyuan12shift5": (5, 6, 7),
}  # fmt: skip
MIXES = (0.0, 0.4, 0.65, 0.9)
BOLD = Linear(3, guard=8.0)
Spread = Callable[[Sequence[int], int], tuple[int, ...]]


def rows() -> dict[str, tuple[Rule, Spread]]:
    """Per row, the rule and where its calls go."""
    found: dict[str, tuple[Rule, Spread]] = {"auto": (Auto(), schedule.cosine)}
    for mix in MIXES:
        found[f"spread: cosine, mix {mix:g}" if mix else "spread: even"] = Auto(), _mixed(mix)
    found["rule: always cautious"] = Auto(gate=0.0), schedule.cosine
    found["rule: always bold"] = Auto(gate=math.inf), schedule.cosine
    for guard in (1.5, 2.0, 4.0):
        cautious = Linear(2, damping=0.7, guard=guard)
        found[f"cautious under the guard {guard:g}"] = Auto(cautious=cautious), schedule.cosine
    for damping in (0.5, 1.0):
        cautious = Linear(2, damping=damping, guard=1.75)
        found[f"cautious damped by {damping:g}"] = Auto(cautious=cautious), schedule.cosine
    found["bold under the guard 4"] = Auto(bold=Linear(3)), schedule.cosine
    return found


def _mixed(mix: float) -> Spread:
    return lambda effective, calls: schedule.cosine(effective, calls, mix=mix)


def table(problem: Problem, seeds: Sequence[int], budgets: Sequence[int]) -> str:
    """Markdown of one setting."""
    uncached = sample(problem, seeds).latents

    def cell(latents: torch.Tensor) -> str:
        off = 1e3 * distance(latents, uncached)
        return f"{np.median(off):.1f} / {np.percentile(off, 95):.0f}"

    lines = [f"{problem.title}, {len(seeds)} calibration conditions", ""]
    lines += ["| | " + " | ".join(f"{calls} calls" for calls in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    cells = [cell(solve(problem, seeds, euler, problem.grid(calls)).latents) for calls in budgets]
    lines.append("| Euler with as many steps | " + " | ".join(cells) + " |")
    for name, (rule, spread) in rows().items():
        cells = []
        for calls in budgets:
            cache = Forecaster(rule, times=problem.times, computed=spread(problem.effective, calls))
            cells.append(cell(sample(problem, seeds, cache).latents))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
