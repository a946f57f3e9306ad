"""The numbers to steer by: how the default stands beside the best published rule, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from forecache_lab.metrics import resampling

from .measure import Row
from .methods import STEER
from .results import Cell

FLOOR = 1e-6  # relative distances below this are round-off: they count as this much
RESAMPLES = 2000
LOSES = 1.0
QUARTER = 4  # cells with at least a quarter of the steps computed are compared with solvers


def median(values: Sequence[float]) -> float:
    """Of relative distances."""
    return max(float(np.median(values)), FLOOR)


def p95(values: Sequence[float]) -> float:
    """Of relative distances."""
    return max(float(np.percentile(values, 95)), FLOOR)


Statistic = Callable[[Sequence[float]], float]


def best(cell: Cell, kind: str, by: str = "drift", statistic: Statistic = median) -> Row:
    """The row of a kind with the least value."""
    return min((row for row in cell.rows.values() if row.kind == kind), key=lambda row: statistic(getattr(row, by)))


def ratio(cell: Cell, statistic: Statistic = median, ours: str = STEER) -> float:
    """Our drift over that of the best published rule of this cell, by the same statistic."""
    return statistic(cell.rows[ours].drift) / statistic(best(cell, "published", statistic=statistic).drift)


def interval(cell: Cell, ours: str = STEER, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians, over seeds that both rows share."""
    pairs = cell.rows[ours].drift, best(cell, "published").drift
    return resampling.bootstrap(
        pairs, RESAMPLES, seed, lambda draws: np.divide(*np.maximum(resampling.median(draws), FLOOR))
    )


@dataclass(frozen=True)
class Compared:
    """Ratios over cells: geometric mean, the worst cell, and the share of cells where we lose."""

    mean: float
    worst: float
    where: str
    loses: float


def compared(cells: Sequence[Cell], statistic: Statistic = median, ours: str = STEER) -> Compared:
    """Our drift over the best published rule's."""
    ratios = np.array([ratio(cell, statistic, ours) for cell in cells])
    worst = int(ratios.argmax())
    mean = float(np.exp(np.log(ratios).mean()))
    return Compared(mean, float(ratios[worst]), cells[worst].name, float((ratios > LOSES).mean()))


def above_euler(cells: Sequence[Cell], ours: str = STEER) -> list[str]:
    """Cells where our median drift is above that of Euler with as many steps."""
    return [cell.name for cell in cells if median(cell.rows[ours].drift) > median(cell.rows["Euler-K"].drift)]


@dataclass(frozen=True)
class Accurate:
    """Our error to the fine solution beside that of the best solver, over cells with K >= N / 4.

    Attributes:
        cells: how many cells there are.
        missed: those where a solver with as many calls has the smaller error.
        beyond: those of ``missed`` where that error is below the N-step run's too, which a cache imitates and so cannot
            better.
    """

    cells: int
    missed: list[str]
    beyond: list[str]

    @property
    def share(self) -> float:
        """Of the cells where no solver with as many calls is better."""
        return 1 - len(self.missed) / self.cells


def accurate(cells: Sequence[Cell], ours: str = STEER) -> dict[int, Accurate]:
    """By the number of steps N, where K >= N / 4: the median error to the fine solution beside the best solver's."""
    found = {}
    for steps in sorted({cell.steps for cell in cells}, reverse=True):
        some = [cell for cell in cells if cell.steps == steps and cell.calls * QUARTER >= steps]
        if some:
            missed = [cell for cell in some if median(cell.rows[ours].error) > _solved(cell)]
            beyond = [cell.name for cell in missed if median(cell.uncached) > _solved(cell)]
            found[steps] = Accurate(len(some), [cell.name for cell in missed], beyond)
    return found


def _solved(cell: Cell) -> float:
    return median(best(cell, "solver", "error").error)
