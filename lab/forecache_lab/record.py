"""What a measurement leaves in its run folder for the report: ``run.json`` and meshes beside it.

Every session writes the same record whatever its own tables look like, so one report reads them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import trimesh

from forecache import Trace, files

FILE, FORMAT = "run.json", 1
UNCACHED = "uncached"


class Step(TypedDict):
    """One step of a branch; ``error``: forward error, ``None`` where nothing was compared."""

    index: int
    time: float
    kind: str
    rule: str
    fallback: str
    error: float | None


Steps = list[Step]


@dataclass(frozen=True)
class Run:
    """One object under one method.

    Attributes:
        item: the object, such as ``seed 3``; its run with method ``uncached`` is the reference.
        calls: at the network, by stage. seconds: by stage; a stage that was not timed is left out.
        values: columns of the table, of this run against its uncached partner; empty for that one.
        trace: steps by branch. mesh: file, relative to the folder.
    """

    method: str
    item: str
    calls: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    trace: Mapping[str, Steps] = field(default_factory=dict)
    mesh: str | None = None


@dataclass(frozen=True)
class Table:
    """Runs that may be compared with each other.

    Attributes:
        name: heading. drift: the column to sort and plot by.
        higher: columns in which more is better. floor: what a column shows for two samplings of one mesh.
    """

    name: str
    drift: str
    runs: Sequence[Run]
    higher: Sequence[str] = ()
    floor: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A run folder. ``units``: of the columns, in one line."""

    title: str
    conditions: str
    units: str
    tables: Sequence[Table]


def steps(trace: Trace) -> Steps:
    """A trace as the record has it: rules of several streams joined, the largest error."""
    return [
        {
            "index": step.index,
            "time": step.time,
            "kind": step.kind,
            "rule": ", ".join(dict.fromkeys(step.rules.values())),
            "fallback": "; ".join(reason for reasons in step.fallbacks.values() for reason in reasons),
            "error": max(step.forward_error.values(), default=None),
        }
        for step in trace.steps
    ]


def save_mesh(folder: Path, name: str, mesh: trimesh.Trimesh) -> str:
    """Write ``mesh`` to ``meshes/`` as ``.glb``; returns its path relative to ``folder``."""
    file = Path("meshes", re.sub(r"[^\w.-]+", "_", name.replace(", ", "-").replace(":", "")) + ".glb")
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    files.replace(folder / file, lambda partial: mesh.export(partial, file_type="glb"))
    return file.as_posix()


def write(folder: Path, record: Record) -> None:
    """Write ``run.json``; an interrupted write leaves the one before."""
    body = json.dumps({"format": FORMAT, **asdict(record)}, indent=None, separators=(",", ":"))
    files.replace(folder / FILE, lambda partial: partial.write_text(body, encoding="utf-8"))
