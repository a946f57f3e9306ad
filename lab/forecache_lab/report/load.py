"""A run folder, read and checked."""

from __future__ import annotations

import reprlib
from pathlib import Path

from .. import reading
from ..errors import UserError
from ..record import FILE, FORMAT, UNCACHED, Record, Table


def _check(table: Table) -> None:
    for run in table.runs:
        if run.mesh is not None and (Path(run.mesh).is_absolute() or ".." in Path(run.mesh).parts):
            raise ValueError(f"mesh must lie in the folder, got {run.mesh!r}")
    scored = [run for run in table.runs if run.method != UNCACHED]
    if not scored:
        raise ValueError("runs must hold a method besides the uncached one")
    for run in scored:
        if table.drift not in run.values:
            raise ValueError(f"{run.method}, {run.item}: values must hold {table.drift!r}, got {sorted(run.values)}")


def load(folder: Path) -> Record:
    """The record of a run folder.

    Raises:
        UserError: no folder, no record in it, a torn file, another format, or a field that is missing or wrong.
    """
    file = folder / FILE
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder that a session wrote (its --out)")
    if not file.is_file():
        raise UserError(f"{folder} is no run folder: it holds no {FILE}; every generator session of nox writes one")
    try:
        raw = reading.parse(reading.content(file))
    except ValueError as error:
        raise UserError(f"{file} is torn or no JSON ({error}): run the session again") from None
    found = raw.pop("format", None) if isinstance(raw, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{file}: format must be {FORMAT}, got {reprlib.repr(found)}: written by another version of forecache"
        )
    try:
        record: Record = reading.build(Record, raw)
        if not record.tables:
            raise ValueError("tables must hold at least one")
        for table in record.tables:
            _check(table)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return record
