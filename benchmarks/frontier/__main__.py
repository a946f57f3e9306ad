"""The frontier benchmark: what each method costs in drift and in error at the same number of network calls.

``python -m benchmarks.frontier [CHECKOUT] --settings hunyuan50 --budgets 9 11 15 --out DIR``. The settings on
closed-form flows need no checkout. Writes ``SETTING.md``, ``SETTING.json`` and ``SETTING.png``.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from forecache_lab.generators.reference import CALIBRATION_SEED, TEST_SEED

from ..flows import closed, hunyuan21
from ..flows.problems import Problem
from . import report
from .measure import Bench, Row
from .methods import Making

FIRST = TEST_SEED + 64  # the test conditions before it were looked at while the methods were made
CLOSED = {"gaussian": closed.gaussian, "mixture": closed.mixture}
NETWORK = ("hunyuan50", "hunyuan25shift3", "hunyuan12shift3", "hunyuan12shift5")


def problems(names: list[str], checkout: Path | None) -> list[Problem]:
    """The settings by name.

    Raises:
        ValueError: a setting on the network without a checkout. FileNotFoundError: no such checkout.
    """
    made: dict[str, Problem] = {}
    if any(name in NETWORK for name in names):
        if checkout is None:
            raise ValueError("settings on the network need a checkout of Hunyuan3D-2.1: pass CHECKOUT")
        made |= hunyuan21.problems(checkout)
    return [made[name] if name in made else CLOSED[name]() for name in names]


def write(out: Path, problem: Problem, rows: list[Row], conditions: dict[str, Any]) -> None:
    """What is known so far: a long run that ends early leaves the budgets that it finished."""
    table = report.markdown(problem, rows, len(conditions["calibration"]))
    (out / f"{problem.key}.md").write_text(table + "\n", encoding="utf-8")
    report.write_json(out / f"{problem.key}.json", problem, rows, conditions)
    report.plot(out / f"{problem.key}.png", problem, rows)


def main(argv: list[str] | None = None) -> int:
    """Run the settings; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="checkout of Hunyuan3D-2.1")
    parser.add_argument("--settings", nargs="+", choices=(*NETWORK, *CLOSED), default=[*NETWORK, *CLOSED])
    parser.add_argument("--budgets", type=int, nargs="+", help="network calls (default: those of each setting)")
    parser.add_argument("--test", type=int, default=32, help="test conditions")
    parser.add_argument("--calibration", type=int, default=16, help="calibration conditions")
    parser.add_argument(
        "--meshes", type=int, default=4, help="test conditions whose meshes are compared (3 s each and row)"
    )
    parser.add_argument("--refine", type=int, default=0, help="rounds of refinement of the plans that imitate")
    parser.add_argument("--memory", type=int, default=4, help="snapshots per forecast of a plan")
    parser.add_argument("--ridge", type=float, default=1e-3, help="of a plan's weights toward Lagrange")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="2 conditions of either kind, one budget, no mesh")
    a = parser.parse_args(argv)
    if min(a.test, a.calibration) < 1:
        parser.error(f"--test and --calibration must be >= 1, got {a.test} and {a.calibration}")
    if a.quick:
        a.test, a.calibration, a.meshes = 2, 2, 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    try:
        chosen = problems(a.settings, a.checkout)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")
    a.out.mkdir(parents=True, exist_ok=True)
    for problem in chosen:
        start, budgets = time.perf_counter(), tuple(a.budgets or problem.budgets)
        rows: list[Row] = []
        with tqdm(unit="method", file=sys.stderr, mininterval=2, desc=problem.key) as bar:

            def say(what: str, bar: tqdm[None] = bar, key: str = problem.key) -> None:
                bar.set_description(f"{key}, {what}", refresh=False)
                bar.update()

            bench = Bench(
                problem, range(CALIBRATION_SEED, CALIBRATION_SEED + a.calibration),
                range(FIRST, FIRST + a.test), a.meshes, Making(a.refine, a.memory, a.ridge), say,
            )  # fmt: skip
            rows.append(bench.uncached())
            for calls in budgets[:1] if a.quick else budgets:
                rows += bench.rows(calls)
                conditions = {"test": bench.test.seeds, "calibration": bench.calibration.seeds}
                write(a.out, problem, rows, conditions | {"seconds": time.perf_counter() - start})
        table = report.markdown(problem, rows, a.calibration)
        print(f"\n{table}\n\n{problem.key}: {time.perf_counter() - start:.0f} s, written to {a.out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
