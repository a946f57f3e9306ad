"""What the end of the guidance interval costs a trained network.

``python -m benchmarks.studies.edge CHECKOUT --out DIR``

TRELLIS's stages at the guidance strengths of its application (12 steps) and of its weights' configuration (25 steps).
The control forecasts the *combined* velocity with the same rule at the same steps, straight across the edge; the
branches are forecast apart. First where the step behind the edge is the only one that is left out, which is the edge's
own cost, then at interval 2 throughout, where both also miss what any step left out misses.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from forecache import schedule
from forecache.rules import Auto
from forecache_adapters.families.flow_euler import Guidance
from forecache_lab.generators.reference.trellis import SAMPLER
from forecache_lab.generators.trellis import Trellis
from forecache_lab.metrics.combined import grid
from forecache_lab.metrics.relative import relative
from forecache_lab.session.measurement import Method, run
from forecache_lab.session.stages import WARMUP

# stage, steps, strength
SETTINGS = (("sparse_structure", 12, 7.5), ("sparse_structure", 25, 5.0), ("slat", 12, 3.0), ("slat", 25, 5.0))
ROWS = ("edge: combined", "edge: apart", "interval 2: combined", "interval 2: apart", "interval 2: auto's own steps")


def first_unguided(steps: int) -> int:
    """The first step behind the interval, compared as the sampler does it."""
    guidance = Guidance(1.0, tuple(SAMPLER["cfg_interval"]))
    return next(i for i, t in enumerate(grid(steps, SAMPLER["rescale_t"])) if not guidance.reaches([t]))


def methods(steps: int) -> list[Method]:
    """The rows of one setting, in the order of ``ROWS``. An object as ``basis`` keeps the interval's own steps."""
    edge = first_unguided(steps)
    alone = {"interval": 2, "warmup": edge, "end": edge + 1}  # every step but the one behind the edge
    found = []
    for where in (alone, {"interval": 2, "warmup": WARMUP}):
        computed = schedule.fixed_interval(range(steps), **where)
        found += [Method("", rule=Auto(), computed=computed), Method("", {"basis": Auto(), **where})]
    return [*found, Method("", {"basis": "auto", "interval": 2, "warmup": WARMUP})]


def measure(subject: Any, stage: str, steps: int, strength: float, n: int) -> dict[str, tuple[int, list[float]]]:
    """Network calls and latent drift on ``n`` test conditions, by row."""
    params: dict[str, Any] = getattr(subject.pipe, f"{stage}_sampler_params")
    before, params["cfg_strength"] = params["cfg_strength"], strength
    try:
        references = [run(subject, stage, seed, steps) for seed in range(n)]
        rows = {}
        for name, method in zip(ROWS, methods(steps), strict=True):
            outputs = [run(subject, stage, seed, steps, method) for seed in range(n)]
            drifts = [relative(o.latent, r.latent) for o, r in zip(outputs, references, strict=True)]
            rows[name] = outputs[0].all_calls, drifts
    finally:
        params["cfg_strength"] = before
    return rows


def line(stage: str, steps: int, strength: float, rows: Mapping[str, tuple[int, list[float]]]) -> str:
    """A row of the table: ``median / p95 (calls)``, and the ratios of medians to the control above."""
    cells = [f"{1e3 * np.median(d):.3g} / {1e3 * np.percentile(d, 95):.3g} ({calls})" for calls, d in rows.values()]
    median = {name: float(np.median(d)) for name, (_, d) in rows.items()}
    control, alone = median["interval 2: combined"], median["edge: apart"] / median["edge: combined"]
    ratios = [f"{median[name] / control:.2f}" for name in ROWS[3:]]
    n = len(rows[ROWS[0]][1])
    first = f"| {stage}, {steps}, {strength:g} | {n} | {cells[0]} | {cells[1]} | **{alone:.2f}** | {cells[2]} "
    return first + "".join(f"| {cell} | **{ratio}** " for cell, ratio in zip(cells[3:], ratios, strict=True)) + "|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="patched checkout of TRELLIS")
    parser.add_argument("--structure", type=int, default=16, help="test conditions of the structure stage")
    parser.add_argument("--slat", type=int, default=8, help="test conditions of the structured latent")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    subject = Trellis(a.checkout)
    head = ["stage, steps, strength", "n", *ROWS[:2], "ratio", ROWS[2], ROWS[3], "ratio", ROWS[4], "ratio"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    a.out.mkdir(parents=True, exist_ok=True)
    with tqdm(SETTINGS, unit="setting", mininterval=2) as bar:
        for stage, steps, strength in bar:
            n = a.slat if stage == "slat" else a.structure
            lines.append(line(stage, steps, strength, measure(subject, stage, steps, strength, n)))
            bar.write(lines[-1])
            text = f"{subject.title}, CPU, latent drift x 1000, median / p95 (network calls).\n\n" + "\n".join(lines)
            (a.out / "edge.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
