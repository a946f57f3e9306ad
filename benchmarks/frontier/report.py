"""The table, the JSON behind it, and drift and error against calls as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from forecache_lab.metrics import geometry
from forecache_lab.metrics.resampling import bootstrap

from .. import tables
from ..flows.problems import Problem
from .measure import Row

mpl.use("Agg")
from matplotlib import pyplot as plt

HEAD = ("method", "setting", "calls", "cond + uncond", "drift x 1000", "error x 1000")
SHAPE = ("Chamfer x 1000", *(f"F@{t:g}" for t in geometry.THRESHOLDS), "volume IoU")
# Okabe and Ito's colours, apart for colour-blind readers; markers and dashes tell them apart in print.
STYLE: dict[str, tuple[str, str, str]] = {
    "Euler-K": ("#000000", "s", ":"),
    "AB2-K": ("#000000", "o", "-"),
    "UniPC-K": ("#000000", "^", "--"),
    "best fixed-interval rule": ("#E69F00", "D", "-"),
    "HiCache++ DMD (hicache-pp)": ("#E69F00", "v", "--"),
    "Spectrum, w = 0.5": ("#CC79A7", "P", ":"),
    "EasyCache": ("#CC79A7", "X", "--"),
    "auto": ("#56B4E9", "o", "-."),
    "plan": ("#0072B2", "o", "-"),
    "plan, target reference": ("#D55E00", "*", "-"),
}


def summary(row: Row) -> dict[str, Any]:
    """Medians, their 95 % bootstrap intervals and p95; for shares, where more is better, p95 is the 5th percentile."""
    found: dict[str, Any] = {key: float(np.mean(getattr(row, key))) for key in ("calls", "cond", "uncond")}
    for key in ("drift", "error"):
        values = getattr(row, key)
        found[key] = {
            "median": float(np.median(values)), "interval": bootstrap(values), "p95": float(np.percentile(values, 95))
        }  # fmt: skip
    for key, shapes in row.geometry.items():
        columns = [[s["chamfer"], *s["fscore"], s["volume_iou"]] for s in shapes if s is not None]
        found[f"geometry, {key}"] = {
            "failed": sum(s is None for s in shapes),
            **{
                name: {"median": float(np.median(v)), "p95": float(np.percentile(v, 5 if k else 95))}
                for k, (name, v) in enumerate(zip(("chamfer", *SHAPE[1:]), zip(*columns, strict=True), strict=False))
            },
        }
    return found


def cells(row: Row, shaped: bool) -> list[str]:
    """One line of the table; ``shaped``: with the columns of the geometry."""
    s = summary(row)
    line = [row.method, row.setting, f"{s['calls']:.4g}", f"{s['cond']:.3g} + {s['uncond']:.3g}"]
    for key in ("drift", "error"):
        low, high = s[key]["interval"]
        line.append(f"{1e3 * s[key]['median']:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}] / {1e3 * s[key]['p95']:.1f}")
    if shaped:
        for key in ("drift", "error"):
            shape = s.get(f"geometry, {key}", {})
            line += [
                f"{(1 if k else 1e3) * shape[name]['median']:.3g}" if name in shape else "-"
                for k, name in enumerate(("chamfer", *SHAPE[1:]))
            ]
    return line


def markdown(problem: Problem, rows: Sequence[Row], calibration: int) -> str:
    """A table per budget."""
    first, shaped = rows[0], any(row.geometry for row in rows)
    head = list(HEAD)
    if shaped:
        head += [f"{name}, to {whom}" for whom in ("N-step", "fine") for name in SHAPE]
    lines = [
        f"## {problem.title}", "",
        f"{len(first.drift)} test conditions, {calibration} others for choosing and calibrating. Median [95 % bootstrap"
        f" interval] / p95. Drift: to the N-step Euler run; error: to the fine solution."
        + (f" Geometry: medians over {len(first.geometry['drift'])} conditions." if shaped else ""),
    ]  # fmt: skip
    for budget in dict.fromkeys(row.budget for row in rows):
        here = [cells(row, shaped) for row in rows if row.budget == budget]
        lines += ["", f"### {budget} calls", "", tables.markdown(head, here)]
    return "\n".join(lines)


def write_json(path: Path, problem: Problem, rows: Sequence[Row], conditions: dict[str, Any]) -> None:
    """Every value of every condition, and the summary of the table."""
    body = {
        "problem": problem.key, "title": problem.title, "times": problem.times, "conditions": conditions,
        "units": "relative distances of final latents; lengths in longest box sides of the compared-to mesh",
        "rows": [asdict(row) | {"summary": summary(row)} for row in rows],
    }  # fmt: skip
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")


def plot(path: Path, problem: Problem, rows: Sequence[Row]) -> None:
    """Median drift and error against mean calls, one line a method; bars are the bootstrap intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True, dpi=150)
    found = [(row, summary(row)) for row in rows]
    base = next((s for row, s in found if row.method == "uncached Euler"), None)
    for axes, key, title in zip(panels, ("drift", "error"), ("to the N-step run", "to the fine solution"), strict=True):
        for name, (colour, marker, dashes) in STYLE.items():
            mine = sorted(((s["calls"], s[key]) for row, s in found if row.method == name), key=lambda each: each[0])
            if not mine:
                continue
            median = np.array([value["median"] for _, value in mine])
            ends = np.array([value["interval"] for _, value in mine]).T
            axes.errorbar(
                [calls for calls, _ in mine], median, np.maximum([median - ends[0], ends[1] - median], 0), label=name,
                color=colour, marker=marker, linestyle=dashes, linewidth=1.3, markersize=5, elinewidth=0.7, capsize=2,
            )  # fmt: skip
        if key == "error" and base is not None:
            axes.axhline(base[key]["median"], color="0.5", linewidth=1)
            axes.annotate(
                f"uncached, {base['calls']:.0f} calls", (0.99, base[key]["median"]), xycoords=("axes fraction", "data"),
                ha="right", va="bottom", fontsize=7, color="0.35",
            )  # fmt: skip
        axes.set(yscale="log", xlabel="network calls (mean)", title=f"distance {title}")
        axes.grid(True, which="both", color="0.9", linewidth=0.5)
    panels[0].set_ylabel("median relative distance")
    figure.suptitle(problem.title, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="center right", fontsize=7, frameon=False)
    figure.subplots_adjust(left=0.07, right=0.81, bottom=0.12, top=0.86, wspace=0.05)
    figure.savefig(path)
    plt.close(figure)
