"""Statistics over the objects, as a table, as JSON, and as the record that the page is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forecache import files

from .. import record
from ..escape import markdown
from ..report.page import number
from ..report.statistics import Summary, summarise
from . import scores
from .methods import UNCACHED, Method
from .results import Result
from .run import Bench

CLOCK = ("sampling speed-up", "total speed-up", "seconds saved")
PEAK = "peak memory, of uncached"
OUTSIDE = ("decode", "rest")  # seconds that no sampler takes


@dataclass(frozen=True)
class Pair:
    """A run and its uncached partner."""

    name: str
    result: Result
    uncached: Result

    @property
    def values(self) -> dict[str, float]:
        """All columns: those of the clock and of memory, then the distances."""
        mine, theirs = self.result, self.uncached
        of = {which: sampling(each) for which, each in (("mine", mine), ("theirs", theirs))}
        total = {"mine": sum(mine.seconds.values()), "theirs": sum(theirs.seconds.values())}
        found = {
            CLOCK[0]: of["theirs"] / of["mine"], CLOCK[1]: total["theirs"] / total["mine"],
            CLOCK[2]: total["theirs"] - total["mine"],
        }  # fmt: skip
        if mine.peak and theirs.peak:
            found[PEAK] = mine.peak / theirs.peak
        return {**found, **mine.values}


def sampling(result: Result) -> float:
    """Seconds of all samplers."""
    return sum(seconds for stage, seconds in result.seconds.items() if stage not in OUTSIDE)


@dataclass(frozen=True)
class Found:
    """All that a run folder holds of what was asked for.

    Attributes:
        pairs: by method, without those that failed. uncached: by object. failed: reasons.
        shown: names of the objects that the page shows.
    """

    pairs: Mapping[str, list[Pair]]
    uncached: Sequence[tuple[str, Result]]
    failed: Sequence[str]
    shown: Sequence[str]


def gather(bench: Bench) -> Found:
    """Results with their partners; an object without an uncached run is left out."""
    pairs: dict[str, list[Pair]] = {row.key: [] for row in bench.methods}
    uncached, failed, shown = [], [], []
    for picture, seed, there in bench.results_by_object():
        name = picture.name if len(bench.seeds) == 1 else f"{picture.name}, seed {seed}"
        if bench.shows(picture, seed):
            shown.append(name)
        failed += [f"{name}, {key}: {each.failed}" for key, each in there.items() if each.failed is not None]
        reference = there.get(UNCACHED.key)
        if reference is None or reference.failed is not None:
            continue
        uncached.append((name, reference))
        for row in bench.methods:
            if row.key in there and there[row.key].failed is None:
                pairs[row.key].append(Pair(name, there[row.key], reference))
    return Found(pairs, uncached, failed, shown)


def by_object(each: Sequence[tuple[str, float]]) -> list[float]:
    """Values of objects, which are independent, from those of their seeds, which are not: the median of each."""
    grouped: dict[str, list[float]] = {}
    for digest, value in each:
        grouped.setdefault(digest, []).append(value)
    return [float(np.median(values)) for values in grouped.values()]


def summaries(found: Found) -> dict[str, dict[str, Summary]]:
    """By method and column, over objects."""
    rows: dict[str, dict[str, Summary]] = {}
    for key, pairs in found.pairs.items():
        every = [(pair.result.digest, pair.values) for pair in pairs]
        names = list(dict.fromkeys(name for _, values in every for name in values))
        rows[key] = {
            name: summarise(by_object([(d, v[name]) for d, v in every if name in v]), name in scores.HIGHER)
            for name in names
        }
    return rows


def floors(found: Found) -> dict[str, float]:
    """Medians of the noise floor by column."""
    names = list(dict.fromkeys(name for _, result in found.uncached for name in result.values))
    return {
        name: float(np.median(by_object([(r.digest, r.values[name]) for _, r in found.uncached if name in r.values])))
        for name in names
    }


def _median(found: Sequence[Result], kind: str, stage: str) -> float:
    return float(np.median(by_object([(each.digest, getattr(each, kind).get(stage, 0)) for each in found])))


def _cost(bench: Bench, found: Found, rows: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """The table of calls, seconds and memory."""
    every = {UNCACHED.key: [result for _, result in found.uncached]}
    every |= {key: [pair.result for pair in pairs] for key, pairs in found.pairs.items()}
    stages = list(dict.fromkeys(stage for results in every.values() for each in results for stage in each.seconds))
    called = [stage for stage in stages if any(each.calls.get(stage) for each in every[UNCACHED.key])]
    names = [name for name in (*CLOCK, PEAK) if any(name in columns for columns in rows.values())]
    heads = [*(f"calls, {s}" for s in called), *(f"{s}, s" for s in stages), *names]
    lines = [f"| method | n | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 2)]
    for row in bench.rows:
        results = every[row.key]
        if results:
            cells = [number(_median(results, "calls", stage)) for stage in called]
            cells += [number(_median(results, "seconds", stage)) for stage in stages]
            cells += ["-" if row is UNCACHED else cell(rows[row.key].get(name)) for name in names]
            lines.append(f"| {markdown(row.label)} | {objects(results)} | {' | '.join(cells)} |")
    return lines


def _distance(bench: Bench, found: Found, rows: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """The table of distances to the uncached run."""
    every = dict.fromkeys(name for columns in rows.values() for name in columns)
    names = [name for name in every if name not in (*CLOCK, PEAK)]
    floor = floors(found)
    lines = [f"| method | n | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    for row in bench.methods:
        if rows[row.key]:
            n = objects([pair.result for pair in found.pairs[row.key]])
            cells = [cell(rows[row.key].get(name)) for name in names]
            lines.append(f"| {markdown(row.label)} | {n} | {' | '.join(cells)} |")
    if floor:
        cells = [number(floor[name]) if name in floor else "-" for name in names]
        n = objects([result for _, result in found.uncached])
        lines.append(f"| noise floor: the uncached mesh, sampled again | {n} | {' | '.join(cells)} |")
    return lines


def objects(results: Sequence[Result]) -> int:
    """How many there are."""
    return len({result.digest for result in results})


def cell(summary: Summary | None) -> str:
    """``median / bad tail [low, high]``."""
    if summary is None:
        return "-"
    interval = "" if summary.low is None else f" [{number(summary.low)}, {number(summary.high)}]"
    return f"{number(summary.median)} / {number(summary.tail)}{interval}"


def remarks(bench: Bench, found: Found, shown: Callable[[str], str]) -> list[str]:
    """What a reader must know; ``shown``: how names are written there."""
    n, seeds = objects([result for _, result in found.uncached]), len(bench.seeds)
    lines = [
        f"n = {n} object(s), {seeds} seed(s) each, whose median is the object's value. Cells: median / bad tail over"
        " the objects (p95, or p5 where more is better), and the 95 % bootstrap interval of the median where n >= 3."
    ]
    if bench.generator.paired:
        own = "their own run" if bench.end_to_end else "the uncached run"
        lines.append(f"Later stages ran on the voxels of {own}.")
    repeated = [result.repeated for _, result in found.uncached if result.repeated is not None]
    if repeated:
        lines.append(f"An uncached run, run again, differs from itself by {max(repeated):.2g} of the latent.")
    lines += [f"Skipped: {shown(f'{file}: {reason}')}." for file, reason in bench.folder.skipped.items()]
    lines += [f"Failed: {shown(what)}." for what in found.failed]
    return lines


def to_record(bench: Bench, found: Found) -> record.Record:
    """For the page."""
    labels = {row.key: row.label for row in bench.rows}

    def run(method: str, name: str, each: Result, values: Mapping[str, float]) -> record.Run:
        trace, mesh = (each.trace, each.mesh) if name in found.shown else ({}, None)
        return record.Run(method, name, each.calls, each.seconds, values, trace, mesh)

    runs = [run(record.UNCACHED, name, each, {}) for name, each in found.uncached]
    runs += [
        run(labels[key], each.name, each.result, each.values) for key, pairs in found.pairs.items() for each in pairs
    ]
    name = "from picture to object" if bench.steps is None else f"from picture to object, {bench.steps} steps"
    table = record.Table(name, scores.DRIFT, runs, scores.HIGHER, floors(found))
    text = " ".join([bench.generator.conditions + ".", *remarks(bench, found, str)])
    return record.Record(bench.generator.title, text, scores.UNITS, [table])


def write(bench: Bench) -> str:
    """Write ``bench.md``, ``bench.json`` and ``run.json``, which the page is made of; returns the text of the first."""
    found = gather(bench)
    rows = summaries(found)
    title = markdown(f"{bench.generator.title}: {bench.generator.conditions}.")
    lines = [title, "", *remarks(bench, found, markdown)]
    lines += ["", *_cost(bench, found, rows), "", *_distance(bench, found, rows), "", f"Units: {scores.UNITS}."]
    text = "\n".join(lines)
    body = {
        "settings": bench.settings(), "units": scores.UNITS, "seeds": list(bench.seeds),
        "objects": objects([result for _, result in found.uncached]), "noise_floor_median": floors(found),
        "skipped": dict(bench.folder.skipped), "failed": list(found.failed),
        "rows": [_row(row, rows[row.key]) for row in bench.methods],
    }  # fmt: skip
    files.replace(bench.out / "bench.md", lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    held = json.dumps(body, indent=1)
    files.replace(bench.out / "bench.json", lambda partial: partial.write_text(held, encoding="utf-8"))
    record.write(bench.out, to_record(bench, found))
    return text


def _row(row: Method, columns: Mapping[str, Summary]) -> dict[str, Any]:
    return {"method": row.label, "key": row.key, **{name: asdict(each) for name, each in columns.items()}}
