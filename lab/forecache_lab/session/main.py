"""The command line of a session, its loop, and the files that it writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import trimesh
from tqdm import tqdm

from forecache.rules import make_rule

from .. import record, render, report
from ..errors import UserError
from ..generators.generated import Generated
from ..generators.registry import GENERATORS
from .measurement import Measurement, Rows, run, summary
from .one_stage import OneStage
from .own_cache import OwnCache
from .stages import Stages

MEASUREMENTS: Mapping[str, type[Measurement]] = {"one stage": OneStage, "stages": Stages, "own cache": OwnCache}
SHOWN = 3  # conditions in the picture and among the meshes


def command_line(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Measurement]:
    """Checked arguments and the measurement that they ask for; a bad one ends the program with a line that says why."""
    parser = argparse.ArgumentParser(
        prog="python -m forecache_lab.session", description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("generator", choices=sorted(GENERATORS))
    parser.add_argument("checkout", type=Path, help="patched checkout of the upstream")
    parser.add_argument("--basis", default="dmd")
    parser.add_argument("--seeds", type=int, help="test conditions of every stage (default: the generator's)")
    parser.add_argument("--intervals", type=int, nargs="+", help="default: the generator's")
    parser.add_argument("--warmup", type=int, help="first steps computed (default: 4; of one stage, 4 for dmd, else 2)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", help="real weights, e.g. tencent/Hunyuan3D-2.1 (needs a CUDA device and --image)")
    parser.add_argument("--image", type=Path)
    a = parser.parse_args(argv)
    row = GENERATORS[a.generator]
    if (a.seeds is not None and a.seeds < 1) or min(a.intervals or [1]) < 1:
        parser.error(f"--seeds and --intervals must be >= 1, got {a.seeds} and {a.intervals}")
    if row.measured == "own cache" and (a.intervals or a.warmup is not None):
        parser.error(f"--intervals and --warmup: the schedule of {row.name} is its own")
    if a.out.exists() and not a.out.is_dir():
        parser.error(f"--out must be a folder, got the file {a.out}")
    options: dict[str, Any] = {}
    if a.weights is not None:
        if row.measured != "one stage":
            parser.error(f"--weights {a.weights}: a session of {row.name} measures the small networks only")
        if not torch.cuda.is_available():
            print(f"left out: the real weights {a.weights}, because this machine has no CUDA device")
        elif a.image is None or not a.image.is_file():
            parser.error(f"--weights needs an image file: --image FILE, got {a.image}")
        else:
            options = {"weights": a.weights, "image": a.image}
    elif row.measured == "one stage":
        print("left out: the real weights (pass -- --weights NAME --image FILE on a machine with a CUDA device)")
    try:
        make_rule(a.basis, None)
    except ValueError as error:
        parser.error(str(error))
    try:
        subject = row.make(a.checkout, **options)
    except (UserError, FileNotFoundError, RuntimeError) as error:
        if options:  # loading real weights can fail in many ways: keep the traceback
            raise
        parser.exit(1, f"error: {error}\n")
    return a, MEASUREMENTS[row.measured](subject, a.basis, a.intervals, a.warmup)


def measure(
    session: Measurement, stage: str, steps: int, n: int, progress: Callable[[str], None] = lambda what: None
) -> tuple[dict[str, list[Generated]], dict[str, list[dict[str, float]]]]:
    """All methods on ``n`` conditions: what each of them made, the uncached run first, and its columns."""
    subject = session.subject
    uncached = [run(subject, stage, seed, steps) for seed in range(n)]
    made, scores = {record.UNCACHED: uncached}, {}
    todo = session.methods(stage, steps)
    while todo:
        method = todo.pop(0)
        made[method.label] = [run(subject, stage, seed, steps, method) for seed in range(n)]
        pairs = enumerate(zip(made[method.label], uncached, strict=True))
        scores[method.label] = [session.score(stage, seed, *pair) for seed, pair in pairs]
        further = session.next_method(method, made[method.label][-1].all_calls)
        todo += [] if further is None else [further]
        progress(method.label)
    return made, scores


def to_record(
    out: Path, session: Measurement, name: str, made: Mapping[str, Sequence[Generated]],
    scores: Mapping[str, Sequence[Mapping[str, float]]], floor: Mapping[str, float],
) -> record.Table:  # fmt: skip
    """A table for the report; meshes of the first conditions are written to ``out``."""
    runs = []
    for label, each in made.items():
        for seed, one in enumerate(each):
            values = {} if label == record.UNCACHED else dict(scores[label][seed])
            values.pop("calls", None)
            mesh = None
            if one.mesh is not None and seed < SHOWN:
                mesh = record.save_mesh(out, f"{name}-{label}-seed{seed}", one.mesh)
            runs.append(record.Run(label, f"seed {seed}", one.calls, one.seconds, values, one.trace, mesh))
    return record.Table(name, session.drift, runs, session.higher, floor)


def main(argv: list[str] | None = None) -> int:
    """Measure one generator; the exit status."""
    a, session = command_line(argv)
    subject = session.subject
    print(f"{subject.title}\n{subject.conditions}")
    session.smoke()
    a.out.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    body: dict[str, Any] = {}
    failed: list[str] = []
    kept: list[record.Table] = []
    shown: dict[str, list[trimesh.Trimesh]] = {}
    with tqdm(unit="method", file=sys.stdout, mininterval=2) as bar:
        for stage, grids in subject.grids.items():
            for steps in grids:
                name = session.name(stage, steps)

                def progress(label: str, name: str = name) -> None:
                    bar.set_description(f"{name}, {label}", refresh=False)
                    bar.update()

                made, scores = measure(session, stage, steps, a.seeds or subject.seeds[stage], progress)
                rows: Rows = {label: summary(each, session.higher) for label, each in scores.items()}
                floor = session.floor(made[record.UNCACHED])
                texts.append(session.table(name, rows, floor, [each.all_calls for each in made[record.UNCACHED]]))
                body[name] = {"rows": rows, "runs": scores, "noise_floor_median": floor}
                kept.append(to_record(a.out, session, name, made, scores, floor))
                failed += [f"{name}: {what}" for what in session.check(stage, rows)]
                if steps == grids[-1]:
                    for label, each in made.items():
                        meshes = [one.mesh for one in each[:SHOWN] if one.mesh is not None]
                        if meshes and session.pictured(label, rows):
                            shown[f"{stage}: {label}"] = meshes
    head = (
        f"{subject.title}: {subject.conditions}; n test conditions, median / p95 against the uncached run with the same"
        " noise, condition and coordinates."
    )
    text = "\n\n".join([head, *texts])
    (a.out / "drift.md").write_text(text + "\n", encoding="utf-8")
    held = {"title": head, "units": session.units, "tables": body}
    (a.out / "drift.json").write_text(json.dumps(held, indent=1), encoding="utf-8")
    if shown:
        titles = [label.replace("control: ", "").replace(": ", ":\n", 1).replace(", ", ",\n") for label in shown]
        pictures = [list(row) for row in zip(*shown.values(), strict=True)]
        render.sheet(a.out / "comparison.png", pictures, titles, [f"seed {k}" for k in range(len(pictures))])
    record.write(a.out, record.Record(subject.title, subject.conditions, session.units, kept))
    report.write(a.out)
    more = ", comparison.png, meshes/*.glb" if shown else ""
    print(f"\n{text}\n\nwritten to {a.out}: drift.md, drift.json, run.json, report.html{more}")
    for what in failed:
        print(f"FAILED: {what}: this measurement tells nothing")
    return int(bool(failed))
