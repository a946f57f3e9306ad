"""What a forecast costs: this package's core against ``hicache-pp`` 1.3.0, in one process and one thread.

::

    python -m benchmarks.cost [--quick] [--json FILE]

Fit: what happens when a snapshot arrives. ``hicache-pp`` factorises the ``[d, n]`` window (``dmd_fit``); the core takes
the dot products of the new snapshot with the window and solves for the weights. Forecast: what happens on a skipped
step. ``hicache-pp`` evaluates complex modes (``dmd_eval``); the core evaluates the weights and sums the window.
Repeats of all are interleaved and the median is reported, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from forecache import Forecaster, Plan, Weights
from forecache.rules import DMD, Auto, Linear
from forecache.snapshots import Snapshots

from ..tables import markdown

BLOCK = 3  # calls
WINDOW = 6
FIT, SUM, FORECAST, STATE = 50.0, 1.5, 5.0, 7.0  # targets, all ratios
ITEMS, CHOICE = (1, 16, 256), 0.2  # batch sizes of auto's choice, and its target in ms


@dataclass(frozen=True)
class Row:
    """One size: milliseconds, ratios, and counts."""

    size: str
    fit_theirs: float
    fit_ours: float
    forecast_theirs: float
    forecast_ours: float
    bare_sum: float
    state: float  #: bytes held / bytes of a snapshot
    large: int  #: tensors of snapshot size made by a forecast

    @property
    def ratios(self) -> dict[str, float]:
        """The four numbers that have a target."""
        return {
            "fit: theirs / ours": self.fit_theirs / self.fit_ours,
            "forecast: theirs / ours": self.forecast_theirs / self.forecast_ours,
            "forecast: ours / bare sum": self.forecast_ours / self.bare_sum,
            "state / snapshot": self.state,
        }


def medians(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each function.

    Rounds of short blocks in an order that changes, so that a drift of the machine's speed falls on all of them; each
    block starts with untimed calls, so that a function is measured in the caches and the heap that it leaves itself, as
    in a run that calls nothing else.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    shuffled = random.Random(0)
    for _ in range(-(-repeats // BLOCK)):
        for name, function in shuffled.sample(list(functions.items()), len(functions)):
            for k in range(2 * BLOCK):
                begin = time.perf_counter()
                function()
                if k >= BLOCK:
                    taken[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def path(d: int, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    """Two damped oscillations per channel, a snapshot at each of ``count`` steps."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, e = (torch.randn(d, generator=generator) for _ in range(4))
    poles = [0.97 * np.exp(0.2j), 0.9 * np.exp(0.45j)]
    powers = [[complex(pole**step) for pole in poles] for step in range(count)]
    return [(p.real * a + p.imag * b + q.real * c + q.imag * e).to(dtype) for p, q in powers]


class Large(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Counts storages of at least ``nbytes`` that did not exist before an operation."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.nbytes = nbytes
        self.made: dict[int, torch.Tensor] = {}  # alive, so that an address names one storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def storages(tree: Any) -> dict[int, torch.Tensor]:
            tensors = (x for x in _pytree.tree_leaves(tree) if isinstance(x, torch.Tensor))
            return {x.untyped_storage().data_ptr(): x for x in tensors}

        given = storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        for address, tensor in storages(out).items():
            if address not in given and tensor.untyped_storage().nbytes() >= self.nbytes:
                self.made[address] = tensor
        return out


def counted(values: Sequence[torch.Tensor]) -> tuple[float, int]:
    """State in snapshots, and large tensors of one forecast, of ``Forecaster(history=6)``."""
    cache = Forecaster("dmd", steps=len(values) + 1, computed=[*range(len(values) - 1), len(values)], history=WINDOW)
    for i, value in enumerate(values[:-1]):
        cache.observe(i, value)
    nbytes = values[0].numel() * values[0].element_size()
    with Large(nbytes) as large:
        cache.forecast(len(values) - 1)
    return cache.nbytes / nbytes, len(large.made)


def measure(d: int, dtype: torch.dtype, repeats: int) -> Row:
    """One line of the table."""
    from hicache_pp.dmd import dmd_eval, dmd_fit

    values = path(d, dtype, WINDOW + 2)
    window, arriving = values[:WINDOW], values[WINDOW]
    snapshots = Snapshots(WINDOW, batch_dim=None)
    for step, value in enumerate(window):
        snapshots.push(float(step), value)
    times, target, rule = np.arange(float(WINDOW)), WINDOW - 0.5, DMD()
    modes, fresh = dmd_fit(window), itertools.count(1)
    weights = rule.weights(times, target, snapshots.gram[0]).tolist()

    def fit_ours() -> None:
        gram = snapshots.gram[0] * (1 + np.finfo(np.float64).eps * next(fresh))  # a window that was never seen
        snapshots.products(arriving)
        rule.weights(times, target, gram)

    def forecast_ours() -> torch.Tensor:
        return snapshots.combine(rule.weights(times, target, snapshots.gram[0]))

    def bare_sum() -> torch.Tensor:
        out: torch.Tensor = window[0] * weights[0]
        for value, weight in zip(window[1:], weights[1:], strict=True):
            out.add_(value, alpha=weight)
        return out

    taken = medians(
        {
            "forecast_theirs": lambda: dmd_eval(modes, 0.5),
            "forecast_ours": forecast_ours,
            "bare_sum": bare_sum,
            "fit_ours": fit_ours,
        },
        repeats,
    )
    taken |= medians({"fit_theirs": lambda: dmd_fit(window)}, max(3, repeats // 8))
    state, large = counted(values)
    return Row(f"{d:,} {str(dtype).removeprefix('torch.')}", state=state, large=large, **taken)


def serving(values: int, repeats: int) -> tuple[float, float, float]:
    """Median milliseconds of a forecast by a plan of 4 weights, by a rule of 4 snapshots, and of loading the plan."""
    steps = repeats + 4
    weights = {i: Weights((-0.1, 0.2, -0.3, 1.2)) for i in range(4, steps)}
    plan = Plan(tuple(float(t) for t in range(steps + 1)), (0, 1, 2, 3), weights)
    caches = (
        Forecaster(steps=steps, plan=plan, history=4),
        Forecaster(Linear(3), steps=steps, computed=(0, 1, 2, 3), history=4, guard=math.inf),
    )
    value = torch.randn(1, values)
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(steps):
        for cache, spent in zip(caches, times, strict=True):
            if i < 4:
                cache.observe(i, value)
                continue
            start = time.perf_counter()
            cache.forecast(i)
            spent.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder, "plan.json"))
        start = time.perf_counter()
        Plan.load(Path(folder, "plan.json"))
        loading = time.perf_counter() - start
    return 1e3 * statistics.median(times[0]), 1e3 * statistics.median(times[1]), 1e3 * loading


def choosing(items: int, steps: int) -> tuple[float, float]:
    """Median and 95th percentile, in ms an item, of the choice of ``auto`` at a computed step: random Gram matrices of
    a window that moves on over uneven steps, a new one for every item and step.
    """
    draw, rule, spent = np.random.default_rng(0), Auto(), []
    times = np.cumsum(draw.integers(1, 5, steps + rule.window)).astype(np.float64)
    for k in range(steps):
        values = draw.normal(size=(items, rule.window, 2 * rule.window))
        grams = values @ values.swapaxes(1, 2)
        start = time.perf_counter()
        for gram in grams:
            rule.chosen(times[k : k + rule.window], gram)
        spent.append(1e3 * (time.perf_counter() - start) / items)
    return statistics.median(spent), float(np.percentile(spent, 95))


def choices(steps: int) -> str:
    """The row of :func:`choosing`, with its target."""
    found = [choosing(n, steps) for n in ITEMS]
    cells = [f"{median:.3f} / {p95:.3f}" for median, p95 in found]
    row = ["auto's choice, ms a computed step and item, median / p95", *cells]
    met = "met" if max(median for median, _ in found) <= CHOICE else "missed"
    return f"{markdown(['', *(f'items: {n}' for n in ITEMS)], [row])}\n\nat most {CHOICE} ms: {met}"


def table(rows: Sequence[Row]) -> str:
    """The Markdown table."""
    head = ["values", "fit: theirs", "ours", "ratio", "forecast: theirs", "ours", "bare sum", "theirs / ours",
            "ours / bare sum", "state, snapshots", "large tensors a forecast"]  # fmt: skip
    lines = []
    for row in rows:
        fit, gain, over, state = row.ratios.values()
        cells = [
            row.size, f"{row.fit_theirs:.1f} ms", f"{row.fit_ours:.2f} ms", f"{fit:.0f}x",
            f"{row.forecast_theirs:.2f} ms", f"{row.forecast_ours:.2f} ms", f"{row.bare_sum:.2f} ms",
            f"{gain:.1f}x", f"{over:.2f}", f"{state:.1f}", str(row.large),
        ]  # fmt: skip
        lines.append(cells)
    return markdown(head, lines)


def show(rows: Sequence[Row]) -> None:
    """Print the table and which targets were met."""
    print(f"window {WINDOW}, one thread, medians\n\n{table(rows)}\n")
    for row in rows:
        fit, gain, over, state = row.ratios.values()
        missed = [
            text
            for met, text in (
                (fit >= FIT, f"fit {fit:.0f}x of {FIT:.0f}x"),
                (gain >= FORECAST, f"forecast {gain:.1f}x of {FORECAST:.0f}x"),
                (over <= SUM, f"forecast {over:.2f} of {SUM} bare sums"),
                (state <= STATE, f"state {state:.1f} of {STATE:.0f} snapshots"),
            )
            if not met
        ]
        print(f"{row.size}: {'missed ' + ', '.join(missed) if missed else 'every target met'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the largest size and fewer repeats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = [(262_144, torch.float32, 80), (262_144, torch.bfloat16, 80), (12_600_000, torch.bfloat16, 12)]
    if options.quick:
        sizes = [(262_144, torch.float32, 15), (262_144, torch.bfloat16, 15), (1_260_000, torch.bfloat16, 8)]
    with torch.inference_mode():
        rows = [measure(*size) for size in sizes]
    show(rows)
    print("\nforecast by a plan of 4 weights, by a rule of 4 snapshots, and loading a plan")
    for values, _, repeats in sizes[::2]:
        planned, ruled, loading = serving(values, repeats)
        extra = planned / ruled - 1
        print(f"{values:,} float32: {planned:.3f} ms, {ruled:.3f} ms ({100 * extra:+.1f} %); {loading:.1f} ms once")
    print(f"\n{choices(20 if options.quick else 200)}")
    if options.json:
        body = {"window": WINDOW, "threads": 1, "rows": [{**asdict(row), "ratios": row.ratios} for row in rows]}
        options.json.write_text(json.dumps(body, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
