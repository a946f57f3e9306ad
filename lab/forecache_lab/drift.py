"""Paired runs with and without forecasting, and the table that they make.

Every cached run has an uncached partner with the same noise, condition and number of steps; drift is the distance
between the two. Medians, 95th percentiles and n are over the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forecache.rules import Rule, make_rule
from forecache.rules.rule import newest
from forecache.snapshots import Array

from . import record
from .generators import Sample, Subject
from .metrics import geometry
from .metrics.geometry import Geometry

SHOWN = 3  # conditions in the picture and among the meshes


class WrongSign(Rule):
    """Control: a rule's step away from the newest snapshot, taken backwards. A bound that it meets is worthless."""

    uses_gram = True

    def __init__(self, rule: Rule) -> None:
        self.rule, self.name, self.window, self.floor = rule, f"wrong sign of {rule.name}", rule.window, rule.floor
        self.clock = rule.clock  # type: ignore[misc]

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        return np.asarray(2 * newest(len(times)) - self.rule.weights(times, target, gram))

    def lower(self) -> Rule | None:
        lower = self.rule.lower()
        return None if lower is None else WrongSign(lower)


@dataclass(frozen=True)
class Method:
    """A row of the table: ``settings`` for the adapter, or ``calls`` of the plain sampler."""

    label: str
    basis: str
    interval: int | None = None
    settings: Mapping[str, Any] | None = None
    calls: int | None = None


@dataclass(frozen=True)
class Run:
    """One cached run against its uncached partner."""

    method: str
    basis: str
    interval: int | None
    seed: int
    calls: int
    fallbacks: int
    denoise_seconds: float
    total_seconds: float
    denoise_speedup: float
    total_speedup: float
    latent_drift: float
    geometry: Geometry
    trace: record.Steps = field(default_factory=list)


def latent_drift(sample: Sample, reference: Sample) -> float:
    """``||x - x_ref|| / ||x_ref||`` of the final latents."""
    return float((sample.latent - reference.latent).norm() / reference.latent.norm())


def methods(basis: str, intervals: Sequence[int], warmup: int) -> list[Method]:
    """Rows for one basis: each interval, and the wrong-sign control at the middle one."""
    rows = [
        Method(f"{basis}, interval {k}", basis, k, {"basis": basis, "interval": k, "warmup": warmup}) for k in intervals
    ]
    middle = intervals[len(intervals) // 2]
    wrong = {"basis": WrongSign(make_rule(basis, None)), "interval": middle, "warmup": warmup}
    rows.append(Method(f"control: {basis} with the wrong sign, interval {middle}", "control", middle, wrong))
    return rows


def measure(
    subject: Subject, rows: Sequence[Method], seeds: Sequence[int], progress: Callable[[str], None]
) -> tuple[list[Run], list[Sample], dict[str, list[Sample]]]:
    """All rows on all seeds; also the uncached samples, and each row's samples of the first ``SHOWN`` seeds.

    After each cached row the plain Euler sampler with exactly as many network calls is measured too.
    """
    subject.sample(seeds[0], None)  # warm-up: first-call costs belong to no method
    references = []
    for seed in seeds:
        references.append(subject.sample(seed, None))
        progress(f"uncached, seed {seed}")
    runs: list[Run] = []
    shown: dict[str, list[Sample]] = {}
    todo = list(rows)
    done: set[int] = set()
    while todo:
        method = todo.pop(0)
        for seed, reference in zip(seeds, references, strict=True):
            if method.calls is None:
                sample = subject.sample(seed, method.settings)
            else:
                sample = subject.plain(seed, method.calls)
            runs.append(
                Run(
                    method.label,
                    method.basis,
                    method.interval,
                    seed,
                    sample.calls,
                    sample.trace.fallbacks,
                    sample.denoise,
                    sample.total,
                    reference.denoise / sample.denoise,
                    reference.total / sample.total,
                    latent_drift(sample, reference),
                    geometry.compare(sample.mesh, reference.mesh),
                    record.steps(sample.trace),
                )
            )
            if len(shown.setdefault(method.label, [])) < SHOWN:
                shown[method.label].append(sample)
            progress(f"{method.label}, seed {seed}")
        calls = runs[-1].calls
        if method.basis not in ("euler", "control") and calls not in done:
            done.add(calls)
            todo.append(Method(f"Euler, {calls} steps", "euler", calls=calls))
    return runs, references, shown


def floors(references: Sequence[Sample]) -> list[Geometry]:
    """The noise floor of the geometry columns: each uncached mesh against another sampling of itself."""
    return [geometry.floor(reference.mesh) for reference in references]


COLUMNS: dict[str, Callable[[Run], float]] = {
    "denoise speed-up": lambda r: r.denoise_speedup,
    "total speed-up": lambda r: r.total_speedup,
    "latent drift": lambda r: r.latent_drift,
    "Chamfer": lambda r: r.geometry.chamfer,
    **{f"F@{t}": (lambda r, k=k: r.geometry.fscore[k]) for k, t in enumerate(geometry.THRESHOLDS)},  # type: ignore[misc]
    "volume IoU": lambda r: r.geometry.volume_iou,
}
HIGHER_IS_BETTER = {"denoise speed-up", "total speed-up", "volume IoU", *(f"F@{t}" for t in geometry.THRESHOLDS)}


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Per method: calls, n and, per column, ``[median, p95]``. p95 is the bad tail, the 5th percentile where more is
    better.
    """
    rows = []
    for label in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == label]
        row: dict[str, Any] = {
            "method": label,
            "basis": mine[0].basis,
            "interval": mine[0].interval,
            "calls": float(np.median([run.calls for run in mine])),
            "n": len(mine),
        }
        for name, value in COLUMNS.items():
            values = [value(run) for run in mine]
            tail = 5 if name in HIGHER_IS_BETTER else 95
            row[name] = [float(np.median(values)), float(np.percentile(values, tail))]
        rows.append(row)
    return rows


UNITS = "lengths in longest box sides of the uncached mesh; drift relative; speed-up against the uncached run"


def floor_medians(floor: Sequence[Geometry]) -> dict[str, float]:
    """Medians of the noise floor by column."""
    return {
        "Chamfer": float(np.median([g.chamfer for g in floor])),
        **{f"F@{t}": float(np.median([g.fscore[k] for g in floor])) for k, t in enumerate(geometry.THRESHOLDS)},
        "volume IoU": float(np.median([g.volume_iou for g in floor])),
    }


def to_json(path: Path, subject: Subject, seeds: Sequence[int], runs: Sequence[Run], floor: Sequence[Geometry]) -> None:
    """Conditions, summary and every single run; traces are in :func:`to_record`."""
    body = {
        "subject": subject.title,
        "conditions": subject.conditions,
        "steps": subject.steps,
        "seeds": list(seeds),
        "units": UNITS,
        "noise_floor_median": floor_medians(floor),
        "rows": summary(runs),
        "runs": [{key: value for key, value in asdict(run).items() if key != "trace"} for run in runs],
    }
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")


def to_record(
    subject: Subject,
    runs: Sequence[Run],
    references: Sequence[Sample],
    floor: Sequence[Geometry],
    files: Mapping[tuple[str, int], str],
) -> record.Record:
    """What the report is made of; ``files``: meshes by method and number of the condition."""
    seeds = list(dict.fromkeys(run.seed for run in runs))

    def of(method: str, k: int, calls: int, denoise: float, total: float, **more: Any) -> record.Run:
        return record.Run(
            method,
            f"seed {seeds[k]}",
            {"denoise": calls, "decode": 0},
            {"denoise": denoise, "decode": total - denoise},
            mesh=files.get((method, k)),
            **more,
        )

    found = [of(record.UNCACHED, k, s.calls, s.denoise, s.total) for k, s in enumerate(references)]
    for run in runs:
        values = {name: value(run) for name, value in COLUMNS.items()}
        trace = {"network": run.trace} if run.trace else {}
        timed = (run.calls, run.denoise_seconds, run.total_seconds)
        found.append(of(run.method, seeds.index(run.seed), *timed, values=values, trace=trace))
    name = f"shape, {subject.steps} steps"
    table = record.Table(name, "latent drift", found, sorted(HIGHER_IS_BETTER), floor_medians(floor))
    return record.Record(subject.title, subject.conditions, UNITS, [table])


def to_markdown(subject: Subject, runs: Sequence[Run], floor: Sequence[Geometry], uncached: Sequence[Sample]) -> str:
    """The table; cells are ``median / p95``."""
    names = list(COLUMNS)
    head = ["method", "calls", *names]
    calls = int(np.median([sample.calls for sample in uncached]))
    lines = [
        f"{subject.title}: {subject.steps} steps, {subject.conditions}, n = {len(uncached)} test conditions; "
        "median / p95 against the uncached run with the same noise.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        f"| uncached | {calls} | " + " | ".join(["1", "1", "0", *["-"] * (len(names) - 3)]) + " |",
    ]
    for row in summary(runs):
        cells = [f"{row[name][0]:.3g} / {row[name][1]:.3g}" for name in names]
        lines.append(f"| {row['method']} | {row['calls']:.0f} | " + " | ".join(cells) + " |")
    medians = [np.median([g.chamfer for g in floor]), *np.median([g.fscore for g in floor], 0), 1.0]
    lines.append(
        "| noise floor: uncached mesh, sampled again | - | - | - | - | "
        + " | ".join(f"{m:.3g}" for m in medians)
        + " |"
    )
    return "\n".join(lines)
