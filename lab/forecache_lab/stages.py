"""Drift of a staged generator, one stage at a time: ``python -m forecache_lab.stages trellis CHECKOUT --basis dmd``.

Every stage gets a fixed condition, fixed noise and fixed coordinates. End to end one voxel more or less in the first
stage would redraw the noise of the second, and the score would show that. Smoke first (off and a full schedule are
bit-identical), then a table per stage and grid; writes ``stages.md``, ``stages.json``, ``run.json``, ``report.html``
and, where there are meshes, ``comparison.png`` and ``.glb`` files. Exits 1 if the smoke fails or the wrong-sign control
is not told from the rule.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import trimesh
from tqdm import tqdm

from forecache import schedule
from forecache.rules import Hermite, make_rule

from . import record, render, report
from .drift import WrongSign
from .generators.reference import PLANS
from .metrics import geometry, pose
from .metrics.columns import voxels_and_pose
from .metrics.combined import combined, fork_interval, fork_schedule

INTERVALS = (2, 3)
SHOWN = 3  # conditions in the picture and among the meshes
WARMUP = 4  # as the forks of these generators have it


@dataclass
class Output:
    """One run of a stage.

    Attributes:
        latent: what the sampler returned, features only; of leaves, the shape's. calls: at the network.
        seconds: of the sampler.
        occupancy: voxels that the latent decodes to; ``None``: the stage has none. mesh: its surface.
        leaves: all that the sampler returned, if that is more. pose: what the others decode to.
        trace: steps by branch, where a cache was attached.
    """

    latent: torch.Tensor
    calls: int
    seconds: float
    occupancy: torch.Tensor | None = None
    mesh: trimesh.Trimesh | None = None
    leaves: Mapping[str, torch.Tensor] | None = None
    pose: pose.Pose | None = None
    trace: Mapping[str, record.Steps] = field(default_factory=dict)


def structure_latent(pipe: Any, cond: Mapping[str, Any], steps: int) -> torch.Tensor:
    """What the structure stage's sampler returns for noise drawn here, before the pipeline decodes it to voxels."""
    network = pipe.models["sparse_structure_flow_model"]
    noise = torch.randn(1, network.in_channels, *[network.resolution] * 3)
    given = {**cond, **pipe.sparse_structure_sampler_params, "steps": steps, "verbose": False}
    latent: torch.Tensor = pipe.sparse_structure_sampler.sample(network, noise, **given).samples
    return latent


class Staged(Protocol):
    """A generator as this measurement sees it."""

    name: str  #: in the files of plans
    title: str
    conditions: str  #: one line for the table
    adapter: Any  #: module with ``enabled``
    intervals: Sequence[int]  #: of the rows; :data:`INTERVALS` is in them
    fork_last: bool  #: whether the forks compute the last step

    @property
    def grids(self) -> Mapping[str, Sequence[int]]:
        """Numbers of steps to measure, by stage."""
        ...

    @property
    def seeds(self) -> Mapping[str, int]:
        """Test conditions by stage, unless ``--seeds`` asks for another number."""
        ...

    @property
    def pipe(self) -> Any:
        """The pipeline, for the adapter."""
        ...

    def sampler(self, stage: str) -> Any:
        """The stage's object for :func:`.combined.combined`."""
        ...

    def sample(self, stage: str, seed: int, steps: int) -> Output:
        """Run one stage with the noise and condition of ``seed``."""
        ...


@dataclass(frozen=True)
class Method:
    """A row: ``settings`` for the adapter, or the ``rule`` of the combined velocity on the steps ``computed``, or plain
    Euler on ``steps`` steps, or nothing (the uncached run once more).
    """

    label: str
    settings: Mapping[str, Any] | None = None
    rule: Any = None
    computed: tuple[int, ...] = ()
    steps: int | None = None


def methods(subject: Staged, stage: str, basis: str, steps: int) -> list[Method]:
    """The rows of one table. The combined-velocity controls have as many calls as the rule that they stand below; a
    shipped plan is a row if it has them too.
    """
    rows = [Method("uncached, again")]
    for interval in subject.intervals:
        settings = {"basis": basis, "interval": interval, "warmup": WARMUP}
        rows.append(Method(f"{basis}, interval {interval}", settings))
        computed = schedule.fixed_interval(range(steps), interval, WARMUP)
        rows.append(
            Method(
                f"control: combined velocity, interval {interval}",
                None,
                make_rule(basis, (0.0, float(steps))),
                computed,
            )
        )
        plan = PLANS / f"{subject.name}-{stage}-{steps}-{len(computed)}.json"
        if plan.is_file():
            rows.append(Method(f"plan, interval {interval}", {"plan": plan}))
    for interval in sorted({fork_interval(steps, k) for k in subject.intervals}):
        rows.append(
            Method(f"control: the forks' Hermite, interval {interval}", None, Hermite(2, 0.5),
                   tuple(fork_schedule(steps, interval, subject.fork_last)))
        )  # fmt: skip
    wrong = {"basis": WrongSign(make_rule(basis, (0.0, float(steps)))), "interval": 2, "warmup": WARMUP}
    rows.append(Method("control: wrong sign, interval 2", wrong))
    for interval in subject.intervals:
        k = len(schedule.fixed_interval(range(steps), interval, WARMUP))
        rows.append(Method(f"Euler, {k} steps", steps=k))
    return rows


def run(subject: Staged, stage: str, seed: int, steps: int, method: Method | None) -> Output:
    """One run of a stage under a method; ``None``: uncached."""
    on: AbstractContextManager[Any] = nullcontext()
    if method is not None and method.settings is not None:
        others = dict.fromkeys(subject.grids)
        on = subject.adapter.enabled(subject.pipe, stages={**others, stage: method.settings})
    elif method is not None and method.rule is not None:
        on = combined(subject.sampler(stage), method.rule, steps, method.computed)
    with on as handle:
        output = subject.sample(stage, seed, steps if method is None or method.steps is None else method.steps)
    if method is not None and method.settings is not None:
        output.trace = {name: record.steps(trace) for name, trace in handle.traces[stage].branches.items()}
    return output


def relative(output: Output, reference: Output) -> float:
    """``||x - x_ref|| / ||x_ref||`` of the latents."""
    return float((output.latent - reference.latent).norm() / reference.latent.norm())


def score(output: Output, reference: Output) -> dict[str, float]:
    """The columns of one run against the uncached run with the same noise."""
    found = {
        "calls": float(output.calls),
        "speed-up": reference.seconds / output.seconds,
        "latent drift": relative(output, reference),
        **voxels_and_pose(output, reference),
    }
    if output.mesh is not None and reference.mesh is not None:
        found["Chamfer"] = geometry.chamfer(output.mesh, reference.mesh)
    return found


HIGHER = ("speed-up", "occupancy IoU")
UNITS = (
    "Drift relative, of the latents; speed-up of the sampler against the uncached run; Chamfer in longest box sides of"
    " the uncached mesh; rotation in degrees, scale a ratio, translation in scene scales; flip rate: share of voxels."
)
DRIFTS = ("latent drift", "rotation, degrees", "scale ratio", "translation")


def recorded(
    out: Path,
    table: str,
    stage: str,
    outputs: Mapping[str, Sequence[Output]],
    scores: Mapping[str, Sequence[Mapping[str, float]]],
    floor: float | None,
) -> record.Table:
    """A table for the report; meshes of the first conditions are written to ``out``."""
    runs = []
    for label, each in outputs.items():
        for seed, output in enumerate(each):
            values = {} if label == record.UNCACHED else dict(scores[label][seed])
            values.pop("calls", None)
            mesh = None
            if output.mesh is not None and seed < SHOWN:
                mesh = record.save_mesh(out, f"{table}-{label}-seed{seed}", output.mesh)
            timed = ({stage: output.calls}, {stage: output.seconds})
            runs.append(record.Run(label, f"seed {seed}", *timed, values, output.trace, mesh))
    return record.Table(table, "latent drift", runs, HIGHER, {} if floor is None else {"Chamfer": floor})


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Median and p95 (the bad tail) by column."""
    return {
        name: [
            float(np.median([each[name] for each in scores])),
            float(np.percentile([each[name] for each in scores], 5 if name in HIGHER else 95)),
        ]
        for name in scores[0]
    }


def same(output: Output, reference: Output) -> bool:
    """Whether all that the sampler returned is one, bit for bit."""
    mine, theirs = ({"": each.latent, **(each.leaves or {})} for each in (output, reference))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def smoke(subject: Staged) -> None:
    """Uncached twice and a full schedule give one latent in every stage, bit for bit.

    Raises:
        RuntimeError: names the stage that differs.
    """
    for stage, grids in subject.grids.items():
        first, again = (run(subject, stage, 0, grids[-1], None) for _ in range(2))
        full = run(subject, stage, 0, grids[-1], Method("", {"basis": "reuse", "interval": 1}))
        if not (same(first, again) and same(first, full)):
            raise RuntimeError(f"smoke: {stage}: uncached runs, or a full schedule, differ")
        if full.calls != first.calls:
            raise RuntimeError(f"smoke: {stage}: {first.calls} calls uncached, {full.calls} in a full schedule")
        print(f"smoke: {stage}: off is bit-identical, full schedule too, {first.calls} network calls")


def cell(name: str, values: Sequence[float]) -> str:
    """``median / p95``; a ratio near 1 in more digits."""
    digits = 5 if name == "scale ratio" else 3
    return " / ".join(f"{value:.{digits}g}" for value in values)


def to_markdown(
    stage: str, steps: int, n: int, rows: Mapping[str, Mapping[str, Sequence[float]]], floor: float | None
) -> str:
    """A table; cells are ``median / p95``."""
    names = list(next(iter(rows.values())))
    lines = [
        f"### {stage}, {steps} steps, n = {n}",
        "",
        f"| method | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 1),
    ]
    for label, row in rows.items():
        cells = [f"{row['calls'][0]:.0f}"]
        cells += [cell(name, row[name]) for name in names if name != "calls"]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if floor is not None:
        lines.append(f"\nChamfer of the uncached mesh against another sampling of itself: {floor:.3g} (median).")
    return "\n".join(lines)


def against_combined(rows: Mapping[str, Mapping[str, Sequence[float]]], label: str, interval: int) -> str:
    """A row's median drift over that of the combined-velocity control of its interval, which has its calls."""
    rule, control = rows[label], rows[f"control: combined velocity, interval {interval}"]
    found = []
    for name in DRIFTS:
        if name in rule:
            mine, other = (np.log(row[name][0]) if name == "scale ratio" else row[name][0] for row in (rule, control))
            found.append(f"{name} {mine / other:.2f}")
    calls = " and ".join(f"{k:.0f}" for k in sorted({rule["calls"][0], control["calls"][0]}))
    return f"{label}, over the combined velocity, {calls} calls, medians: {', '.join(found)}"


def check(rows: Mapping[str, Mapping[str, Sequence[float]]], basis: str) -> list[str]:
    """What a table must tell apart; the ones that it does not."""
    drift = {label: row["latent drift"][0] for label, row in rows.items()}
    failed = []
    if drift["control: wrong sign, interval 2"] <= drift[f"{basis}, interval 2"]:
        failed.append("the wrong-sign control drifts no more than the rule")
    if drift["uncached, again"] != 0:
        failed.append("two uncached runs differ")
    return failed


def command_line(
    description: str | None, subjects: Mapping[str, Any], argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Any]:
    """Checked arguments of a measurement and its subject; a bad one ends the program with a line that says why."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=sorted(subjects))
    parser.add_argument("checkout", type=Path, help="patched checkout of the upstream")
    parser.add_argument("--basis", default="dmd")
    parser.add_argument("--seeds", type=int, help="test conditions of every stage")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(argv)
    if a.seeds is not None and a.seeds < 1:
        parser.error(f"--seeds must be >= 1, got {a.seeds}")
    if a.out.exists() and not a.out.is_dir():
        parser.error(f"--out must be a folder, got the file {a.out}")
    try:
        make_rule(a.basis, None)
        subject = subjects[a.subject](a.checkout)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        parser.exit(1, f"error: {error}\n")
    return a, subject


def main(argv: list[str] | None = None) -> int:
    from .generators.sam3d import Sam3D
    from .generators.trellis import Trellis
    from .generators.trellis2 import Trellis2

    subjects: dict[str, Any] = {"sam3d": Sam3D, "trellis": Trellis, "trellis2": Trellis2}
    a, subject = command_line(__doc__, subjects, argv)
    print(f"{subject.title}\n{subject.conditions}")
    smoke(subject)
    a.out.mkdir(parents=True, exist_ok=True)
    tables, body, failed, kept = [], {}, [], []
    shown: dict[str, list[trimesh.Trimesh]] = {}
    count = {stage: a.seeds or subject.seeds[stage] for stage in subject.grids}
    total = sum(
        (len(methods(subject, stage, a.basis, k)) + 1) * count[stage]
        for stage, grids in subject.grids.items()
        for k in grids
    )
    with tqdm(total=total, unit="run", file=sys.stdout, mininterval=2) as bar:
        for stage, grids in subject.grids.items():
            n = count[stage]
            for steps in grids:
                references = [run(subject, stage, seed, steps, None) for seed in range(n)]
                bar.update(n)
                rows, every, drawn = {}, {}, {record.UNCACHED: references}
                for method in methods(subject, stage, a.basis, steps):
                    bar.set_description(f"{stage}, {steps} steps, {method.label}", refresh=False)
                    outputs = []
                    for seed in range(n):
                        outputs.append(run(subject, stage, seed, steps, method))
                        bar.update()
                    drawn[method.label] = outputs
                    every[method.label] = [score(o, r) for o, r in zip(outputs, references, strict=True)]
                    rows[method.label] = summary(every[method.label])
                    if steps == grids[-1] and outputs[0].mesh is not None:
                        shown[f"{stage}: {method.label}"] = [o.mesh for o in outputs[:SHOWN] if o.mesh is not None]
                meshes = [r.mesh for r in references if r.mesh is not None]
                floor = float(np.median([geometry.chamfer(m, m, seed=1000) for m in meshes])) if meshes else None
                tables.append(to_markdown(stage, steps, n, rows, floor))
                pairs = [(f"{kind}, interval {k}", k) for k in subject.intervals for kind in (a.basis, "plan")]
                lines = [f"- {against_combined(rows, label, k)}" for label, k in pairs if label in rows]
                tables.append("\n".join(lines))
                name = f"{stage}, {steps} steps"
                body[name] = {"rows": rows, "runs": every}
                kept.append(recorded(a.out, name, stage, drawn, every, floor))
                failed += [f"{stage}, {steps} steps: {what}" for what in check(rows, a.basis)]
    head = (
        f"{subject.title}: {subject.conditions}; n test conditions, median / p95 against the uncached run with "
        "the same noise, condition and coordinates."
    )
    text = "\n\n".join([head, *tables])
    (a.out / "stages.md").write_text(text + "\n", encoding="utf-8")
    (a.out / "stages.json").write_text(json.dumps({"title": head, "tables": body}, indent=1), encoding="utf-8")
    picked = [label for label in shown if "Euler" not in label and "forks" not in label]
    if picked:
        titles = [label.replace("control: ", "").replace(": ", ":\n", 1).replace(", ", ",\n") for label in picked]
        pictures = [list(row) for row in zip(*(shown[label] for label in picked), strict=True)]
        render.sheet(a.out / "comparison.png", pictures, titles, [f"seed {k}" for k in range(len(pictures))])
    record.write(a.out, record.Record(subject.title, subject.conditions, UNITS, kept))
    report.write(a.out)
    more = ", comparison.png, meshes/*.glb" if picked else ""
    print(f"\n{text}\n\nwritten to {a.out}: stages.md, stages.json, run.json, report.html{more}")
    for what in failed:
        print(f"FAILED: {what}: this measurement tells nothing")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
