"""The page: everything of a run folder in one HTML file that asks nobody for anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import trimesh
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from forecache import files

from ..errors import UserError
from ..escape import plotly
from ..record import UNCACHED, Record, Run, Table
from . import meshes, plots, statistics
from .load import load

NAME = "report.html"
LARGEST = 10_000_000  # bytes; TOTAL faces stay well below
T = TypeVar("T")


def number(value: float | None) -> str:
    """Three digits; a ratio near 1 in five."""
    if value is None:
        return "–"
    return f"{value:.5g}" if 0.99 < abs(value) < 1.01 and value != 1 else f"{value:.3g}"


def _columns(table: Table) -> list[dict[str, Any]]:
    names = statistics.columns(table)
    return [{"name": name, "higher": name in table.higher, "floor": table.floor.get(name)} for name in names]


def _rows(table: Table) -> list[dict[str, Any]]:
    rows = []
    for method, runs in statistics.methods(table).items():
        cells = []
        for name in statistics.columns(table):
            values = [run.values[name] for run in runs if name in run.values]
            cells.append(statistics.summarise(values, name in table.higher) if values else None)
        names = dict.fromkeys(stage for run in runs for stage in run.calls)
        stages = {name: statistics.summarise([run.calls.get(name, 0) for run in runs]).median for name in names}
        rows.append(
            {
                "method": method,
                "control": method.startswith("control"),
                "calls": statistics.calls(runs),
                "stages": ", ".join(f"{name} {calls:g}" for name, calls in stages.items()),
                "cells": cells,
                "n": len(runs),
            }
        )  # fmt: skip
    return rows


class _Gallery:
    """Pairs of meshes of the record, the worst first within the limits, and what could not be shown."""

    def __init__(self, folder: Path, record: Record, progress: Callable[[str], None]) -> None:
        self.folder, self.missing, self.left_out = folder, [], 0  # type: tuple[Path, list[str], int]
        self.shapes: list[dict[str, Any]] = []
        self.cards: list[dict[str, Any]] = []
        pairs = []
        for k, table in enumerate(record.tables):
            references = {run.item: run for run in table.runs if run.method == UNCACHED and run.mesh}
            for run in table.runs:
                if run.method != UNCACHED and run.mesh is not None and run.item in references:
                    pairs.append((run.values[table.drift], k, table, run, references[run.item]))
        pairs.sort(key=lambda pair: -statistics.badness(pair[0]))
        files = {each for *_, run, reference in pairs for each in (run.mesh, reference.mesh)}
        self.faces = meshes.limit(len(files))
        most = meshes.TOTAL // meshes.LEAST // 2
        self.left_out = max(0, len(pairs) - most)
        pairs = pairs[:most]
        self._full: dict[str, trimesh.Trimesh | None] = {}
        self._index: dict[str, tuple[int, meshes.Shape] | None] = {}
        found: list[tuple[int, Table, Run, tuple[int, meshes.Shape], tuple[int, meshes.Shape]]] = []
        for _, k, table, run, reference in pairs:
            progress(f"{run.method}, {run.item}")
            theirs, mine = self._read(reference.mesh or ""), self._read(run.mesh or "")
            if theirs is not None and mine is not None:
                left = self._shape(reference.mesh or "", theirs)
                right = left and self._shape(run.mesh or "", mine, theirs)
                if left and right:
                    found.append((k, table, run, left, right))
        #: distance at full colour, one for all, so that colours of two objects can be compared
        far = [float(right[1].distance.max()) for *_, right in found if right[1].distance is not None]
        self.far = float(sorted(far)[int(0.9 * (len(far) - 1))]) if far else 0.0
        for k, table, run, left, right in found:
            card = self._tried(run.mesh or "", partial(self._card, k, table, run, left, right))
            self.cards += [card] if card else []

    def _tried(self, file: str, make: Callable[[], T]) -> T | None:
        """``make()``; a mesh that cannot be shown, and can be odd in more ways than are known, is named with the reason
        instead.
        """
        try:
            return make()
        except Exception as error:
            self.missing.append(
                f"{file}: {'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{error}"
            )
            return None

    def _read(self, file: str) -> trimesh.Trimesh | None:
        if file not in self._full:
            self._full[file] = self._tried(file, partial(meshes.load, self.folder / file))
        return self._full[file]

    def _shape(
        self, file: str, mesh: trimesh.Trimesh, reference: trimesh.Trimesh | None = None
    ) -> tuple[int, meshes.Shape] | None:
        if file not in self._index:
            self._index[file] = self._tried(file, partial(self._made, mesh, reference))
        return self._index[file]

    def _made(self, mesh: trimesh.Trimesh, reference: trimesh.Trimesh | None) -> tuple[int, meshes.Shape]:
        each = meshes.shape(mesh, self.faces, reference)
        self.shapes.append(meshes.packed(each))
        return len(self.shapes) - 1, each

    def _card(
        self, k: int, table: Table, run: Run, left: tuple[int, meshes.Shape], right: tuple[int, meshes.Shape]
    ) -> dict[str, Any]:
        frame = left[1].mesh
        return {
            "table": k,
            "heading": table.name,
            "method": run.method,
            "item": run.item,
            "calls": sum(run.calls.values()),
            "column": table.drift,
            "drift": run.values[table.drift],
            "values": {name: number(value) for name, value in run.values.items()},
            "left": left[0],
            "right": right[0],
            "pictures": [meshes.thumbnail(each, frame, self.far) for each in (left[1], right[1])],
        }


def _finite(body: Any) -> Any:
    """``body`` with ``None`` in place of what JSON has no number for."""
    if isinstance(body, dict):
        return {key: _finite(value) for key, value in body.items()}
    if isinstance(body, (list, tuple)):
        return [_finite(value) for value in body]
    return None if isinstance(body, float) and not math.isfinite(body) else body


def _script(body: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(_finite(body), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def render(folder: Path, progress: Callable[[str], None] = lambda what: None) -> str:
    """The page about the run folder.

    Raises:
        UserError: see :func:`.load.load`. Meshes that are missing or torn are named on the page instead.
    """
    record = load(folder)
    gallery = _Gallery(folder, record, progress)
    tables: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for k, table in enumerate(record.tables):
        drawn = plots.labelled(table)
        for j, column in enumerate(statistics.columns(drawn)):
            figures[f"drift-{k}-{j}"] = plots.drift_against_calls(drawn, column)
        items = statistics.worst_first(table)[: plots.TIMELINES]
        lines = {item: plots.timeline(drawn, plotly(item)) for item in items}
        traced = [item for item in items if lines[item]]
        figures |= {f"timeline-{k}-{j}": lines[item] for j, item in enumerate(traced)}
        timed = plots.stages(drawn)
        if timed:
            figures[f"stages-{k}"] = timed
        tables.append(
            {
                "name": table.name,
                "columns": _columns(table),
                "rows": _rows(table),
                "traced": traced,
                "timed": bool(timed),
                "n": len(statistics.worst_first(table)),
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forecache_lab.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    here = Path(__file__).parent
    data = {
        "figures": figures,
        "shapes": gallery.shapes,
        "far": gallery.far,
        "cards": [{key: card[key] for key in ("left", "right", "method", "item", "heading")} for card in gallery.cards],
    }
    return environment.get_template("page.html.j2").render(
        record=record, tables=tables, gallery=gallery, statistics=statistics,
        methods=list(dict.fromkeys(card["method"] for card in gallery.cards)), data=_script(data),
        total=meshes.TOTAL, css=Markup((here / "page.css").read_text(encoding="utf-8")),
        js=Markup((here / "page.js").read_text(encoding="utf-8")), plotly=Markup(get_plotlyjs()),
    )  # fmt: skip


def write(folder: Path, out: Path | None = None, progress: Callable[[str], None] = lambda what: None) -> Path:
    """Write :func:`render` to ``out``, or to ``report.html`` in the folder; returns the file.

    Raises:
        UserError: see :func:`render`; a page of more than ``LARGEST`` bytes; a file that cannot be written.
    """
    out = folder / NAME if out is None else out
    text = render(folder, progress).encode("utf-8", "backslashreplace")  # a name may hold half a character
    if len(text) > LARGEST:
        raise UserError(f"the page would have {len(text):,} bytes, more than {LARGEST:,}: report fewer runs at once")
    try:
        files.replace(out, lambda partial: partial.write_bytes(text))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return out
