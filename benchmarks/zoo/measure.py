"""Measuring a cell: a problem at one number of network calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..flows.methods import Candidate, Method
from ..flows.problems import Problem
from ..flows.sampling import Batch, By, Values
from .methods import our_rows, published_rows, solver_rows

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
        self.problem, self.test, self.many = problem, Batch(problem, seeds), Batch(problem, choosing)
        self.few = self.many.part(choosing[: max(len(choosing) // 2, 1)])

    def uncached(self) -> list[float]:
        """Error of the uncached run."""
        return list(_distances(self.test, self.test.uncached, "error"))

    def rows(self, calls: int, part: str) -> list[Row]:
        """The rows of one part.

        Raises:
            RuntimeError: a row that called the network more or less often than it should.
        """
        return [self._row(method, calls) for make in PARTS[part] for method in make(self.problem, calls)]

    def _row(self, method: Method, calls: int) -> Row:
        chosen = self._choose(method)
        run = chosen.run(self.test)
        if set(run.calls) != {calls}:
            raise RuntimeError(f"{self.problem.key}: {method.name} made {run.calls.max()} calls of {calls}")
        values = {by: _distances(self.test, run.end, by).tolist() for by in ("drift", "error")}
        return Row(method.name, method.kind, chosen.label, run.served, **values)

    def _choose(self, method: Method) -> Candidate:
        if len(method.candidates) == 1:
            return method.candidates[0]
        batch = self.few if method.few else self.many
        return min(
            method.candidates, key=lambda each: float(np.median(_distances(batch, each.run(batch).end, method.by)))
        )


def _distances(batch: Batch, end: torch.Tensor, by: By) -> Values:
    return np.nan_to_num(batch.distances(end, by), nan=WORST, posinf=WORST).clip(max=WORST)
