"""Medians, tails and bootstrap intervals over the objects of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.resampling import bootstrap
from ..record import UNCACHED, Run, Table

RESAMPLES, SEED, FEWEST = 2000, 0, 3


@dataclass(frozen=True)
class Summary:
    """Of one column: ``tail`` is the bad end, p95, or p5 where more is better.

    ``low``, ``high``: 95 % percentile-bootstrap interval of the median over objects; ``None`` for fewer than
    :data:`FEWEST` of them.
    """

    median: float
    tail: float
    low: float | None
    high: float | None
    n: int


def summarise(values: Sequence[float], higher: bool = False) -> Summary:
    """:class:`Summary` of ``values [n]``; ``RESAMPLES`` draws with replacement from ``SEED``."""
    array = np.asarray(values, dtype=np.float64)
    low = high = None
    if len(array) >= FEWEST:
        with np.errstate(invalid="ignore"):
            low, high = bootstrap(values, RESAMPLES, SEED)
    with np.errstate(invalid="ignore"):  # what is no number, or infinite, shows as such
        median, tail = np.median(array), np.percentile(array, 5 if higher else 95)
    return Summary(float(median), float(tail), low, high, len(array))


def methods(table: Table) -> dict[str, list[Run]]:
    """Runs by method, in their order, without the uncached ones."""
    found: dict[str, list[Run]] = {}
    for run in table.runs:
        if run.method != UNCACHED:
            found.setdefault(run.method, []).append(run)
    return found


def columns(table: Table) -> list[str]:
    """Names of the columns, the drift first."""
    names = dict.fromkeys(name for runs in methods(table).values() for run in runs for name in run.values)
    return [table.drift, *(name for name in names if name != table.drift)]


def calls(runs: Sequence[Run]) -> float:
    """Median of the network calls of all stages."""
    return float(np.median([sum(run.calls.values()) for run in runs]))


def family(method: str) -> str:
    """What methods share that differ in how often they call the network: ``dmd, interval 3`` -> ``dmd``."""
    return method.split(",")[0]


def badness(drift: float) -> float:
    """To sort by: a run that is no number is the worst."""
    return drift if math.isfinite(drift) else math.inf


def worst_first(table: Table) -> list[str]:
    """The objects, by their median drift over the methods that are no control and not plain Euler."""
    drift: dict[str, list[float]] = {}
    for method, runs in methods(table).items():
        for run in runs:
            scored = drift.setdefault(run.item, [])
            if not method.startswith(("control", "Euler")):
                scored.append(run.values[table.drift])
    return sorted(drift, key=lambda item: -badness(float(np.median(drift[item] or [0.0]))))
