"""``python -m benchmarks.zoo --half develop --out out/zoo``: what is missing is measured, then all of it is shown."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from forecache_patches.errors import CheckoutError

from ..flows.problems import Problem
from . import generators, halves, networks, report
from .measure import CHOOSING, PARTS, Bench
from .results import Results

QUICK_SEEDS = 4


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    made.add_argument("--half", choices=tuple(halves.SETTINGS), default="develop", help="default: develop")
    made.add_argument("--out", type=Path, default=Path("out", "zoo"), metavar="DIR", help="default: out/zoo")
    made.add_argument("--only", metavar="PATTERN", help="problems whose key this regular expression finds")
    made.add_argument("--seeds", type=int, help=f"default: 16, with --quick {QUICK_SEEDS}")
    made.add_argument("--quick", action="store_true", help="a few closed-form problems at one budget each")
    made.add_argument("--redo", choices=tuple(PARTS), help="measure this part again, though it is there")
    made.add_argument(
        "--weights", type=Path, metavar="DIR", help="where the published wheel is kept (default: in --out)"
    )
    for name in generators.GENERATORS:
        variable = f"FORECACHE_{name.upper()}"
        made.add_argument(
            f"--{name}", type=Path, metavar="DIR", default=os.environ.get(variable),
            help=f"patched checkout for its reference network (default: ${variable})",
        )  # fmt: skip
    return made


def problems(a: argparse.Namespace) -> tuple[dict[str, tuple[Problem, int]], dict[str, str]]:
    """Problems by key with their first seed, and what is left out with the reason."""
    first = halves.SETTINGS[a.half].seed
    if a.quick:
        return {each.key: (each, first) for each in halves.quick(a.half)}, {}
    found = {each.key: (each, first) for each in halves.closed(a.half)}
    left_out: dict[str, str] = {}

    def add(what: str, seed: int, make: Callable[[], list[Problem]]) -> None:
        try:
            found.update({each.key: (each, seed) for each in make()})
        except (CheckoutError, FileNotFoundError, ImportError) as error:
            left_out[what] = str(error)

    add("published networks", first, partial(networks.published, a.half, a.weights or a.out / "weights"))
    for name, make in generators.GENERATORS.items():
        checkout = getattr(a, name)
        if checkout is None:
            left_out[f"{name}'s reference network"] = f"no checkout was given (--{name})"
        else:
            add(f"{name}'s reference network", generators.FIRST_OF[a.half], partial(make, Path(checkout)))
    return found, left_out


def measure(problem: Problem, first: int, seeds: int, budgets: Sequence[int], results: Results, redo: str) -> None:
    """What is missing of one problem."""
    seeds = math.ceil(seeds / 2) if problem.slow else seeds
    todo = [
        (calls, part) for calls in budgets for part in PARTS if part in {redo, *results.missing(problem, calls, seeds)}
    ]
    if not todo:
        return
    other, choosing = first + halves.CHOOSING, min(CHOOSING // (4 if problem.slow else 1), seeds)
    bench = Bench(problem, range(first, first + seeds), range(other, other + choosing))
    for calls, part in todo:
        start = time.perf_counter()
        rows = bench.rows(calls, part)
        results.add(problem, calls, part, bench.uncached(), rows, time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command = parser()
    a = command.parse_args(arguments)
    seeds = a.seeds or (QUICK_SEEDS if a.quick else 16)
    if seeds < 1:
        command.error(f"--seeds must be >= 1, got {seeds}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    chosen, left_out = problems(a)
    if a.only:
        chosen = {key: each for key, each in chosen.items() if re.search(a.only, key)}
    if not chosen:
        command.exit(1, f"error: no problem of the {a.half} half is called like {a.only}\n")
    name = f"{a.half}-quick" if a.quick else a.half
    results = Results(a.out / f"{name}.jsonl")
    wanted: list[tuple[str, int]] = []
    for problem, first in tqdm(chosen.values(), unit="problem", file=sys.stderr, mininterval=2, desc=name):
        budgets = problem.budgets[1:2] if a.quick else problem.budgets
        measure(problem, first, seeds, budgets, results, a.redo or "")
        wanted += [(problem.key, calls) for calls in budgets]
    cells = results.cells(wanted)
    page = report.page(name, cells, seeds, left_out)
    (a.out / f"{name}.md").write_text(page, encoding="utf-8")
    report.plot(a.out / f"{name}.png", name, cells)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
