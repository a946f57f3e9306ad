"""Measuring a cell: a problem at one number of network calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.frontier.measure import Values, distance

from .methods import Method, Run, our_rows, published_rows, solver_rows
from .problems import Batch, Problem

WORST = 1e6  # stands for a run that does not end in a number
CHOOSING = 8  # seeds that choose a row's setting
PARTS: dict[str, Sequence[Callable[[Problem, int], list[Method]]]] = {
    "peers": (solver_rows, published_rows),
    "ours": (our_rows,),
}  # what is measured on its own: ours again after a change, without the peers


@dataclass(frozen=True)
class Row:
    """One method in one cell; a value for each seed."""

    name: str
    kind: str
    setting: str
    served: float | None
    drift: list[float]
    error: list[float]


class Bench:
    """A problem with the seeds that it is measured on and others, which choose settings."""

    def __init__(self, problem: Problem, seeds: Sequence[int], choosing: Sequence[int]) -> None:
        if set(seeds) & set(choosing):
            raise ValueError("seeds that choose a setting must be others than those it is measured on")
        self.problem, self.seeds = problem, list(seeds)
        self.test = Batch(problem, seeds)
        self.many, self.few = (Batch(problem, choosing[:n]) for n in (len(choosing), max(len(choosing) // 2, 1)))

    def uncached(self) -> list[float]:
        """Error of the uncached run."""
        return list(_distance(self.test.uncached[1], self.test.fine))

    def rows(self, calls: int, part: str) -> list[Row]:
        """The rows of one part.

        Raises:
            RuntimeError: a row that called the network more or less often than it should.
        """
        return [self._row(method, calls) for make in PARTS[part] for method in make(self.problem, calls)]

    def _row(self, method: Method, calls: int) -> Row:
        chosen = self._choose(method)
        self.test.uncached, self.test.fine  # noqa: B018 (their calls are nobody's)
        before = self.test.calls
        run: Run = chosen.run(self.test)
        if (made := self.test.calls - before) != calls:
            raise RuntimeError(f"{self.problem.key}: {method.name} made {made} calls of {calls}")
        values = {
            "drift": _distance(run.end, self.test.uncached[1]).tolist(),
            "error": _distance(run.end, self.test.fine).tolist(),
        }
        return Row(method.name, method.kind, chosen.label, run.served, **values)

    def _choose(self, method: Method) -> Any:
        if len(method.candidates) == 1:
            return method.candidates[0]
        batch = self.few if method.few else self.many
        near = batch.uncached[1] if method.by == "drift" else batch.fine
        return min(method.candidates, key=lambda each: float(np.median(_distance(each.run(batch).end, near))))


def _distance(end: torch.Tensor, reference: torch.Tensor) -> Values:
    return np.nan_to_num(distance(end, reference), nan=WORST, posinf=WORST).clip(max=WORST)
