"""The file of a run: one line of JSON for a part of a cell, appended when it is measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..flows.problems import Problem
from .measure import PARTS, Row


@dataclass(frozen=True)
class Cell:
    """One problem at one number of calls, all parts together.

    Attributes:
        problem: key of the problem, ``flow-grid-steps-form-guidance``.
        uncached: error of the N-step run to the fine solution, a value for each seed.
        rows: by name.
    """

    problem: str
    group: str
    steps: int
    calls: int
    uncached: list[float]
    rows: dict[str, Row]

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.problem} / {self.calls}"


class Results:
    """The lines of a half. Of two lines about one part of a cell the later one holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[str, int, str], dict[str, Any]] = {}
        for line in _read(path):
            self.lines[line["problem"], line["calls"], line["part"]] = line

    def missing(self, problem: Problem, calls: int, seeds: int) -> list[str]:
        """The parts of a cell that were not measured with so many seeds."""
        found = []
        for part in PARTS:
            line = self.lines.get((problem.key, calls, part))
            if line is None or line["seeds"] != seeds:
                found.append(part)
        return found

    def add(
        self, problem: Problem, calls: int, part: str, uncached: list[float], rows: Iterable[Row], seconds: float
    ) -> None:
        """Append what was measured; a run that is broken off keeps it."""
        line = {
            "problem": problem.key, "group": problem.group, "steps": problem.steps, "calls": calls, "part": part,
            "seeds": len(uncached), "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2), "uncached": _short(uncached), "rows": [_row(row) for row in rows],
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines[problem.key, calls, part] = line

    def cells(self, keys: Iterable[tuple[str, int]] | None = None) -> list[Cell]:
        """Cells of which every part was measured with equally many seeds; ``keys``: only these."""
        wanted = None if keys is None else set(keys)
        found = []
        for problem, calls in dict.fromkeys((problem, calls) for problem, calls, _ in self.lines):
            lines = [self.lines.get((problem, calls, part)) for part in PARTS]
            whole = [line for line in lines if line is not None]
            if len(whole) < len(PARTS) or len({line["seeds"] for line in whole}) > 1:
                continue
            if wanted is None or (problem, calls) in wanted:
                rows = {row["name"]: Row(**row) for line in whole for row in line["rows"]}
                first = whole[0]
                found.append(Cell(problem, first["group"], first["steps"], calls, first["uncached"], rows))
        return found


def _row(row: Row) -> dict[str, Any]:
    served = None if row.served is None or row.served != row.served else round(row.served, 4)
    return asdict(row) | {"drift": _short(row.drift), "error": _short(row.error), "served": served}


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:  # the last line of a run that was broken off while it wrote
            continue
