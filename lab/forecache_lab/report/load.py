"""A run folder, read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..record import FILE, FORMAT, UNCACHED, Record, Run, Table


class ReportError(ValueError):
    """A run folder that no report can be made of; the message says what to do."""


def _run(raw: dict[str, Any]) -> Run:
    run = Run(**raw)
    if not isinstance(run.method, str) or not isinstance(run.item, str):
        raise TypeError("method and item must be strings")
    for name in ("calls", "seconds", "values"):
        for key, value in getattr(run, name).items():
            if not isinstance(value, (int, float)):
                raise TypeError(f"{name}[{key!r}] must be a number, got {value!r}")
    if run.mesh is not None and (Path(run.mesh).is_absolute() or ".." in Path(run.mesh).parts):
        raise ValueError(f"mesh must lie in the folder, got {run.mesh!r}")
    return run


def _table(raw: dict[str, Any]) -> Table:
    table = Table(**{**raw, "runs": [_run(each) for each in raw["runs"]]})
    scored = [run for run in table.runs if run.method != UNCACHED]
    if not scored:
        raise ValueError("runs must hold a method besides the uncached one")
    for run in scored:
        if table.drift not in run.values:
            raise ValueError(f"{run.method}, {run.item}: values must hold {table.drift!r}, got {sorted(run.values)}")
    return table


def load(folder: Path) -> Record:
    """The record of a run folder.

    Raises:
        ReportError: no folder, no record in it, a torn file, another format, or a field that is missing or wrong.
    """
    file = folder / FILE
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder: give the folder that a session wrote (its --out)")
    if not file.is_file():
        raise ReportError(f"{folder} is no run folder: it holds no {FILE}; every generator session of nox writes one")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{file} is torn or no JSON ({error}): run the session again") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ReportError(f"{file}: format must be {FORMAT}, got {found!r}: written by another version of forecache")
    try:
        tables = [_table(each) for each in raw["tables"]]
        if not tables:
            raise ValueError("tables must hold at least one")
        return Record(raw["title"], raw["conditions"], raw["units"], tables)
    except KeyError as error:
        raise ReportError(f"{file}: {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{file}: {error}") from None
