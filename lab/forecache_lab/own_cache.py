"""A generator that skips by itself, and another rule in its place.

``python -m forecache_lab.own_cache fastsam3d CHECKOUT --basis dmd --out DIR``

One table per stage: its own rule, ours on the steps that its schedule computes, the plain generator with a schedule of
ours and with fewer steps at no more network calls, the wrong sign. Smoke first (off, and a schedule that computes every
step, are bit-identical); writes ``own_cache.md``, ``own_cache.json``, ``run.json`` and ``report.html``. Exits 1 if the
smoke fails or, where no tokens are carved, the wrong sign is not told from the rule.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tqdm import tqdm

from forecache.rules import make_rule

from . import record, report
from .drift import WrongSign
from .stages import command_line, summary

Leaves = Mapping[str, torch.Tensor]
STEPS = 25


@dataclass
class Sample:
    """One run: what it returned, leaf by leaf, how often it called the network, and steps by branch where a cache was
    attached.
    """

    leaves: Leaves
    calls: int
    trace: Mapping[str, record.Steps] = field(default_factory=dict)


class Accelerated(Protocol):
    """A generator with a cache of its own, as this measurement sees it."""

    title: str
    conditions: str  #: one line for the table
    adapter: Any  #: module with ``enabled``

    @property
    def seeds(self) -> Mapping[str, int]:
        """Test conditions by table, unless ``--seeds`` asks for another number."""
        ...

    @property
    def carves(self) -> Mapping[str, bool]:
        """By table: whether computed steps leave tokens out."""
        ...

    def target(self, table: str, own: bool) -> Any:
        """The generator of a table, for the adapter: with its own cache, or the plain one."""
        ...

    def sample(self, table: str, seed: int, own: bool, steps: int = STEPS, every: bool = False) -> Sample:
        """Run one generator with the noise and condition of ``seed``; ``every``: its schedule computes every step."""
        ...


@dataclass(frozen=True)
class Method:
    """A row: the generator with its ``own`` cache or the plain one, ``settings`` for the adapter (``None``: off)."""

    label: str
    own: bool
    settings: Mapping[str, Any] | None = None
    steps: int = STEPS
    every: bool = False


def run(subject: Accelerated, table: str, seed: int, method: Method) -> Sample:
    """One run under a method."""
    if method.settings is None:
        return subject.sample(table, seed, method.own, method.steps, method.every)
    with subject.adapter.enabled(subject.target(table, method.own), **method.settings) as handle:
        sample = subject.sample(table, seed, method.own, method.steps, method.every)
    branches = (branch for stage in handle.traces.values() for branch in stage.branches.items())
    sample.trace = {name: record.steps(trace) for name, trace in branches}
    return sample


def most(calls: int, guess: int, make: Callable[[int], Method], count: Callable[[Method], int]) -> Method:
    """``make(k)`` for the largest k, searched from a guess, that makes no more than ``calls`` network calls."""
    k = guess
    while k > 1 and count(make(k)) > calls:
        k -= 1
    while k == guess and guess < STEPS and count(make(guess + 1)) <= calls:
        k = guess = guess + 1
    return make(k)


def methods(subject: Accelerated, table: str, basis: str) -> list[Method]:
    """The rows of one table."""
    own = Method("its own rule", True)
    calls, uncached = run(subject, table, 0, own).calls, run(subject, table, 0, Method("", False)).calls

    def ours(k: int) -> Method:
        return Method(f"{basis}, our schedule, {k} steps computed", False, {"basis": basis, "calls": k})

    def fewer(k: int) -> Method:
        return Method(f"Euler, {k} steps", False, steps=k)

    def count(method: Method) -> int:
        return run(subject, table, 0, method).calls

    guess = round(STEPS * calls / uncached)
    rows = [Method("uncached, again", False), own, Method(f"{basis}, its schedule", True, {"basis": basis})]
    if subject.carves[table]:
        rows.insert(1, Method("carving alone, every step computed", True, every=True))
    wrong = WrongSign(make_rule(basis, (0.0, float(STEPS))))
    return [
        *rows,
        Method("control: wrong sign, its schedule", True, {"basis": wrong}),
        most(calls, guess, ours, count),
        most(calls, guess, fewer, count),
    ]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``."""
    return float((a - b).norm() / b.norm())


def score(sample: Sample, uncached: Sample, carved: Sample | None) -> dict[str, float]:
    """The columns of one run: distance to the uncached run of the same noise and, where tokens are carved, to the one
    that carves and computes every step; of several leaves, that of the first one and the worst of the others.
    """
    first, *others = uncached.leaves
    found = {"calls": float(sample.calls), "drift": relative(sample.leaves[first], uncached.leaves[first])}
    if others:
        found["worst pose leaf"] = max(relative(sample.leaves[name], uncached.leaves[name]) for name in others)
    if carved is not None:
        found["drift from carving alone"] = relative(sample.leaves[first], carved.leaves[first])
    return found


def smoke(subject: Accelerated, table: str, basis: str) -> None:
    """Off is off, and a schedule that computes every step is the uncached run, bit for bit.

    Raises:
        RuntimeError: names what differs.
    """
    before = run(subject, table, 0, Method("", True))
    inside = run(subject, table, 0, Method("", True, {"basis": basis}))
    after = run(subject, table, 0, Method("", True))
    every = [run(subject, table, 0, Method("", True, settings, every=True)) for settings in (None, {"basis": basis})]
    same = [all(torch.equal(a.leaves[k], b.leaves[k]) for k in a.leaves) for a, b in ((before, after), every)]
    if not all(same) or before.calls != after.calls:
        raise RuntimeError(f"smoke: {table}: off again, or a full schedule, differs")
    print(
        f"smoke: {table}: off is bit-identical, full schedule too; {every[0].calls} -> {before.calls} calls by its"
        f" rule, {inside.calls} by ours"
    )


def to_markdown(title: str, n: int, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A table; cells are ``median / p95``."""
    names = [name for name in next(iter(rows.values())) if name != "calls"]
    lines = [f"#### {title}, n = {n}", "", "| method | calls | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for label, row in rows.items():
        low, high = row["calls"]
        cells = [f"{row[name][0]:.3g} / {row[name][1]:.3g}" for name in names]
        lines.append(f"| {label} | {low:.0f}" + (f" / {high:.0f}" if high != low else "") + f" | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(rows: Mapping[str, Mapping[str, Sequence[float]]], basis: str, carves: bool) -> list[str]:
    """What makes the table worthless."""
    failed = []
    rule, wrong = rows[f"{basis}, its schedule"]["drift"][0], rows["control: wrong sign, its schedule"]["drift"][0]
    if not carves and wrong <= rule:
        failed.append("the wrong-sign control drifts no more than the rule")
    if rows["uncached, again"]["drift"][0] != 0:
        failed.append("two uncached runs differ")
    return failed


def measure(
    subject: Accelerated, table: str, basis: str, n: int, progress: Callable[[str], None]
) -> tuple[dict[str, list[dict[str, float]]], record.Table]:
    """Scores by method, one a condition; the same with the traces, for the report."""
    todo = methods(subject, table, basis)
    found: dict[str, list[dict[str, float]]] = {}
    uncached = [run(subject, table, seed, Method("", False)) for seed in range(n)]
    carved = [run(subject, table, k, Method("", True, every=True)) for k in range(n)] if subject.carves[table] else None
    runs = [record.Run(record.UNCACHED, f"seed {k}", {table: uncached[k].calls}) for k in range(n)]
    for method in todo:
        found[method.label] = []
        for k in range(n):
            sample = run(subject, table, k, method)
            values = score(sample, uncached[k], None if carved is None else carved[k])
            found[method.label].append(values)
            shown = {name: value for name, value in values.items() if name != "calls"}
            calls = {table: sample.calls}
            runs.append(record.Run(method.label, f"seed {k}", calls, values=shown, trace=sample.trace))
        progress(f"{table}: {method.label}")
    return found, record.Table(table, "drift", runs)


def main(argv: list[str] | None = None) -> int:
    from .generators.fastsam3d import FastSam3D

    a, subject = command_line(__doc__, {"fastsam3d": FastSam3D}, argv)
    print(f"{subject.title}\n{subject.conditions}")
    tables, body, failed, kept = [], {}, [], []
    with tqdm(total=sum(6 + carves for carves in subject.carves.values()), file=sys.stdout, mininterval=2) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        for table, default in subject.seeds.items():
            smoke(subject, table, a.basis)
            n = a.seeds or default
            runs, recorded = measure(subject, table, a.basis, n, progress)
            kept.append(recorded)
            rows = {label: summary(scores) for label, scores in runs.items()}
            tables.append(to_markdown(table, n, rows))
            body[table] = {"rows": rows, "runs": runs}
            failed += [f"{table}: {what}" for what in check(rows, a.basis, subject.carves[table])]
    a.out.mkdir(parents=True, exist_ok=True)
    head = (
        f"{subject.title}: {subject.conditions}; n test conditions, median / p95 against the uncached run with the same"
        " noise and condition."
    )
    text = "\n\n".join([head, *tables])
    (a.out / "own_cache.md").write_text(text + "\n", encoding="utf-8")
    (a.out / "own_cache.json").write_text(json.dumps({"title": head, "tables": body}, indent=1), encoding="utf-8")
    units = "Drift relative, of the latents, ||a - b|| / ||b||; the worst pose leaf alike."
    record.write(a.out, record.Record(subject.title, subject.conditions, units, kept))
    report.write(a.out)
    print(f"\n{text}\n\nwritten to {a.out}: own_cache.md, own_cache.json, run.json, report.html")
    for what in failed:
        print(f"FAILED: {what}: this measurement tells nothing")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
