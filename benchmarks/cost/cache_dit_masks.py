"""What serves the skipped steps under cache-dit's step masks, and how far off: our rules and its own calibrators.

::

    python -m benchmarks.cost.cache_dit_masks [--steps 28]

A straight line ``a + b t``: largest and mean error over the skipped steps, in steps of motion ``|b|``. A decaying curve
``a + 0.95^t b + 0.8^t c`` and an oscillation of period 18: mean error, relative to the mean distance of the path from
its middle. Median over 8 draws of 64 numbers, float64. Share: skipped steps that the rule asked for served by itself,
without a fall-back, over all draws and paths.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cache_dit import steps_mask
from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator, FoCaCalibrator, TaylorSeerCalibrator

from forecache.rules import Auto, Exponential, Linear
from forecache_adapters.cache_dit import Config, Forecasts

from ..tables import markdown

POLICIES = ("slow", "medium", "fast", "ultra")
DRAWS = 8
MADE: dict[str, Callable[[], Any]] = {
    "ours, exponential": lambda: Forecasts(Config()),
    "ours, exponential or auto": lambda: Forecasts(Config(basis=Auto((Linear(1), Linear(2), Exponential())))),
    "ours, auto": lambda: Forecasts(Config(basis="auto")),
    "ours, dmd": lambda: Forecasts(Config(basis="dmd")),
    "ours, linear": lambda: Forecasts(Config(basis="linear")),
    "cache-dit TaylorSeer 1": lambda: TaylorSeerCalibrator(n_derivatives=1),
    "cache-dit TaylorSeer 2": lambda: TaylorSeerCalibrator(n_derivatives=2),
    "cache-dit FoCa": FoCaCalibrator,
    "cache-dit DMD": DMDCalibrator,
}


def paths(draw: int, steps: int) -> dict[str, tuple[torch.Tensor, float]]:
    """``[steps, 1, 64]`` of each path, and the length that its errors are measured in."""
    a, b, c = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
    t = torch.arange(steps, dtype=torch.float64)[:, None, None]
    turn = 2 * math.pi * t / 18
    bent = {"decay": a + 0.95**t * b + 0.8**t * c, "period 18": a + turn.cos() * b + turn.sin() * c}
    sizes = {name: float((path - path.mean(0)).flatten(1).norm(dim=1).mean()) for name, path in bent.items()}
    return {"line": (a + t * b, float(b.norm()))} | {name: (path, sizes[name]) for name, path in bent.items()}


def errors(calibrator: Any, mask: Sequence[int], path: torch.Tensor) -> list[float]:
    """Of every skipped step."""
    missed = []
    for value, compute in zip(path, mask, strict=True):
        calibrator.mark_step_begin()
        if compute:
            calibrator.update(value.clone())
        else:
            missed.append(float(torch.dist(calibrator.approximate(), value)))
    return missed


def row(make: Callable[[], Any], mask: Sequence[int]) -> list[str]:
    """The cells of one calibrator."""
    taken: dict[str, list[tuple[float, float]]] = {}
    clean = skipped = 0
    for draw in range(DRAWS):
        for name, (path, length) in paths(draw, len(mask)).items():
            calibrator = make()
            missed = [each / length for each in errors(calibrator, mask, path)]
            taken.setdefault(name, []).append((max(missed), statistics.mean(missed)))
            if isinstance(calibrator, Forecasts):
                clean += calibrator.trace.forecast - calibrator.trace.fallbacks
                skipped += calibrator.trace.forecast
    middle = {name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in taken.items()}
    line = " / ".join(f"{each:.2g}" if each > 1e-5 else "0" for each in middle["line"])
    share = f"{100 * clean / skipped:.0f} %" if skipped else ""
    return [line, *(f"{middle[name][1]:.3f}" for name in middle if name != "line"), share]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.cache_dit_masks", description="See the module.")
    parser.add_argument("--steps", type=int, default=28, metavar="N")
    options = parser.parse_args(arguments)
    for policy in POLICIES:
        mask = steps_mask(total_steps=options.steps, mask_policy=policy)
        print(f"\n{policy}, {len(mask)} steps, {mask.count(0)} skipped: {''.join(map(str, mask))}\n")
        head = ("", "line, max / mean", "decay", "period 18", "share")
        print(markdown(head, ([name, *row(make, mask)] for name, make in MADE.items())))


if __name__ == "__main__":
    main()
