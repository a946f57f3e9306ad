"""One drift session: ``python -m forecache_lab.session hunyuan21 CHECKOUT --basis dmd --out DIR``.

Smoke (off and full schedule are bit-identical, dt = 0 is saved), then drift; writes ``drift.json``, ``drift.md``,
``comparison.png``, ``.glb`` meshes, ``run.json`` and ``report.html``, which is made of the last two. Exits 1 if the
smoke fails or the wrong-sign control is not told from the rule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from forecache.rules import make_rule

from . import drift, record, render, report
from .generators import Subject
from .generators.hunyuan2mini import Hunyuan2Mini
from .generators.hunyuan21 import Hunyuan21

SUBJECTS: dict[str, Callable[..., Subject]] = {"hunyuan21": Hunyuan21, "hunyuan2mini": Hunyuan2Mini}
WARMUP = {"dmd": 4}  # the published quick start's; the polynomial rules need two anchors


def smoke(subject: Subject) -> None:
    """Off is off: uncached twice, and a full schedule, give one latent, bit for bit.

    Raises:
        RuntimeError: names what differs.
    """
    first, again = subject.sample(0, None), subject.sample(0, None)
    full = subject.sample(0, {"basis": "reuse", "interval": 1})
    if not torch.equal(first.latent, again.latent):
        raise RuntimeError("smoke: two uncached runs differ")
    if not torch.equal(first.latent, full.latent):
        raise RuntimeError("smoke: a full schedule changes the latent")
    if first.calls != subject.steps or full.calls != subject.steps - 1:
        raise RuntimeError(f"smoke: {first.calls} uncached and {full.calls} full calls for {subject.steps} steps")
    print(
        f"smoke: off is bit-identical; full schedule too, with {full.calls} of {first.calls} calls (dt = 0 is skipped)"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=sorted(SUBJECTS))
    parser.add_argument("checkout", type=Path, help="patched checkout of the upstream")
    parser.add_argument("--basis", default="dmd")
    parser.add_argument("--intervals", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--warmup", type=int, help="first steps computed (default: 4 for dmd, else 2)")
    parser.add_argument("--seeds", type=int, default=8, help="test conditions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", help="real weights, e.g. tencent/Hunyuan3D-2.1 (needs a CUDA device and --image)")
    parser.add_argument("--image", type=Path)
    a = parser.parse_args(argv)
    if a.seeds < 1 or min(a.intervals) < 1:
        parser.error(f"--seeds and --intervals must be >= 1, got {a.seeds} and {a.intervals}")
    if a.out.exists() and not a.out.is_dir():
        parser.error(f"--out must be a folder, got the file {a.out}")
    try:
        make_rule(a.basis, None)
    except ValueError as error:
        parser.error(str(error))
    options = {}
    if a.weights is None:
        print("left out: the real weights (pass -- --weights NAME --image FILE on a machine with a CUDA device)")
    elif not torch.cuda.is_available():
        print(f"left out: the real weights {a.weights}, because this machine has no CUDA device")
    elif a.image is None or not a.image.is_file():
        parser.error(f"--weights needs an image file: --image FILE, got {a.image}")
    else:
        options = {"weights": a.weights, "image": a.image}
    try:
        subject = SUBJECTS[a.subject](a.checkout, **options)
    except (FileNotFoundError, RuntimeError) as error:
        if options:  # loading real weights can fail in many ways: keep the traceback
            raise
        parser.exit(1, f"error: {error}\n")
    a.out.mkdir(parents=True, exist_ok=True)
    print(f"{subject.title}\n{subject.conditions}")
    smoke(subject)
    warmup = WARMUP.get(a.basis, 2) if a.warmup is None else a.warmup
    rows = drift.methods(a.basis, a.intervals, warmup)
    seeds = range(a.seeds)
    with tqdm(total=a.seeds * (2 * len(a.intervals) + 2), unit="run", file=sys.stdout, mininterval=2) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        runs, references, shown = drift.measure(subject, rows, seeds, progress)
    floor = drift.floors(references)
    table = drift.to_markdown(subject, runs, floor, references)
    (a.out / "drift.md").write_text(table + "\n", encoding="utf-8")
    drift.to_json(a.out / "drift.json", subject, seeds, runs, floor)
    columns = {"uncached": references[: drift.SHOWN], **shown}
    files = {
        (label, seed): record.save_mesh(a.out, f"{label}-seed{seed}", sample.mesh)
        for label, samples in columns.items()
        for seed, sample in enumerate(samples)
    }
    record.write(a.out, drift.to_record(subject, runs, references, floor, files))
    report.write(a.out)
    picked = [label for label in columns if not label.startswith("Euler")]
    picked.append(f"Euler, {next(run.calls for run in runs if run.basis == 'control')} steps")
    rows_of_meshes = [[columns[label][k].mesh for label in picked] for k in range(len(columns["uncached"]))]
    titles = [label.replace("control: ", "").replace(" with the", ",\n") for label in picked]
    render.sheet(a.out / "comparison.png", rows_of_meshes, titles, [f"seed {k}" for k in range(len(rows_of_meshes))])
    print(f"\n{table}\n\nwritten to {a.out}: drift.md, drift.json, comparison.png, meshes/*.glb, run.json, report.html")
    return verdict(runs, a.basis)


def verdict(runs: list[drift.Run], basis: str) -> int:
    """1 if the wrong-sign control drifts no more than the rule at the same interval."""
    by_label = {row["method"]: row for row in drift.summary(runs)}
    control = next(row for row in by_label.values() if row["basis"] == "control")
    rule = by_label[f"{basis}, interval {control['interval']}"]
    if control["latent drift"][0] <= rule["latent drift"][0]:
        print("FAILED: the wrong-sign control drifts no more than the rule: this measurement tells nothing")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
