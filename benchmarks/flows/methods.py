"""A method is a row of a table: one way to spend K network calls, or several of which other seeds choose one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .problems import Problem
from .sampling import Batch, By, Run, Streams


@dataclass(frozen=True, eq=False)
class Candidate:
    """One setting: what to call it, and how to run it on a batch."""

    label: str
    run: Callable[[Batch], Run]


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        name, kind: for the table and the plot.
        candidates: settings of which other seeds choose one.
        by: what they are chosen by; a solver aims at the flow, a cache at the uncached run.
        few: they are tried on half of the seeds that choose: each item has a state of its own, which takes long.
    """

    name: str
    kind: str
    candidates: Sequence[Candidate]
    by: By = "drift"
    few: bool = False


def cached(
    make: Callable[[], Any],
    label: str = "",
    streams: Streams = "combined",
    served: Callable[[Any], float | None] = lambda cache: None,
) -> Candidate:
    """A candidate that samples with a fresh cache from ``make`` in every run; ``served`` reads it afterwards."""

    def run(batch: Batch) -> Run:
        cache = make()
        found = batch.sample(cache, streams)
        return replace(found, served=served(cache))

    return Candidate(label, run)


def solver(
    name: str, problem: Problem, calls: int, ways: Mapping[str, Callable[..., Any]], label: str = "restart"
) -> Method:
    """A solver with ``calls`` steps on a grid of the problem's kind, in several ways; each also with a history that
    starts anew where guidance switches, which ``label`` stands for.
    """
    grid = problem.grid(calls)
    starts: dict[str, tuple[int, ...]] = {"": ()}
    if edges := problem.edges(grid):
        starts[label] = tuple(edges)

    def candidate(how: str, solve: Callable[..., Any], where: str) -> Candidate:
        words = ", ".join(filter(None, (how, where)))
        return Candidate(words, lambda batch: batch.solve(solve, grid, restart=starts[where]))

    found = [candidate(how, solve, where) for how, solve in ways.items() for where in starts]
    return Method(name, "solver", found, "error")
