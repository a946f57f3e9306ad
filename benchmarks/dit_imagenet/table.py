"""Rows, as JSON, as a Markdown table and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from forecache import files

from .. import tables
from .chunks import Chunk
from .methods import CONTROL, FEWER, FLOOR, UNCACHED, Method
from .statistics import Array, Gaussian, frechet

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, apart for colour-blind readers; markers and dashes tell them apart in print.
STYLE: dict[str, tuple[str, str, str]] = {
    FEWER: ("#000000", "s", ":"),
    "reuse": ("#999999", "P", "--"),
    "linear": ("#999999", "o", "-"),
    "taylor": ("#E69F00", "D", "-"),
    "hermite": ("#E69F00", "v", "--"),
    "dmd": ("#009E73", "^", "-"),
    "chebyshev": ("#CC79A7", "X", "--"),
    "exponential": ("#D55E00", "o", "-"),
    "auto": ("#56B4E9", "o", "-."),
    "plan": ("#0072B2", "*", "-"),
    CONTROL: ("#CC0000", "x", ":"),
}


def reference_statistics(path: Path, width: int) -> Gaussian:
    """``mu [D]`` and ``sigma [D, D]`` of an ``.npz`` file.

    Raises:
        ValueError: no such file or arrays, or another width than the features'.
    """
    try:
        with np.load(path) as body:
            mean, covariance = (np.asarray(body[name], dtype=np.float64) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"reference: {path} must be an .npz file with mu and sigma: {error}") from error
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise ValueError(
            f"reference: {path} has mu {list(mean.shape)} and sigma {list(covariance.shape)}, but the features are"
            f" {width} wide; statistics and features must come from one network"
        )
    return Gaussian(mean, covariance)


def psnr(mse: Array) -> Array:
    """``10 log10(255^2 / mse)`` dB; infinite for equal pictures."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255**2 / mse))


def summaries(rows: Sequence[Method], found: Mapping[str, Chunk], reference: Gaussian | None) -> list[dict[str, Any]]:
    """Per row: calls, FID, Inception Score, and ``[median, p95]`` of what is measured per picture or per batch.

    p95 is the bad tail: the 5th percentile of the PSNR, where more is better.
    """
    base = found[UNCACHED]
    near, made = base.moments.gaussian(), []
    for method in rows:
        chunk = found[method.key]
        own = chunk.moments.gaussian()
        calls, cond, uncond = chunk.calls.mean(axis=0).tolist()
        quality = psnr(chunk.mse)
        whole, denoise = ([float(np.median(v)), float(np.percentile(v, 95))] for v in chunk.seconds.T)
        made.append(
            {
                "method": method.label, "group": method.group, "n": chunk.moments.count, "batches": len(chunk.seconds),
                "calls": calls, "cond": cond, "uncond": uncond, "fid_drift": frechet(own, near),
                "fid": None if reference is None else frechet(own, reference),
                "inception_score": chunk.predictions.score(),
                "latent_drift": [float(np.median(chunk.drift)), float(np.percentile(chunk.drift, 95))],
                "psnr": [_finite(float(np.median(quality))), _finite(float(np.percentile(quality, 5, method="lower")))],
                "seconds": whole, "denoise_seconds": denoise,
                "speedup": float(np.median(base.seconds[:, 0])) / whole[0],
            }
        )  # fmt: skip
    return made


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def caption(settings: Mapping[str, Any], made: Sequence[Mapping[str, Any]], reference: Path | None, width: int) -> str:
    """The conditions, in words."""
    n, batches = made[0]["n"], made[0]["batches"]
    lines = (
        f"{settings['model']}; {settings['scheduler']}, {settings['steps']} steps, guidance {settings['guidance']:g}, "
        f"{settings['dtype']}, {settings['device']}, batches of {settings['batch']}. Features: {settings['features']}. "
        f"n = {n} pictures, paired: each row starts from the same noise and classes. FID drift: to the uncached row"
        + (f"; FID: to {reference.name}. " if reference else ". ")
        + f"Latent drift and PSNR: median / p95 over n against the uncached picture; s/image: over {batches} batches."
    )
    if n <= width:
        lines += f" With {n} pictures for {width} features the covariances are singular: compare FID within this table."
    return lines


def markdown(title: str, made: Sequence[Mapping[str, Any]]) -> str:
    """The table; cells with a slash are ``median / p95``."""
    with_fid = made[0]["fid"] is not None
    head = ["method", "calls", "cond + uncond", "FID drift", *(["FID"] if with_fid else []), "IS", "latent drift"]
    head += ["PSNR, dB", "s/image", "of it denoising", "speed-up"]
    lines = []
    for row in made:
        decibels = " / ".join("inf" if v is None else f"{v:.1f}" for v in row["psnr"])
        cells = [row["method"], f"{row['calls']:g}", f"{row['cond']:g} + {row['uncond']:g}", f"{row['fid_drift']:.3g}"]
        cells += [f"{row['fid']:.3g}"] if with_fid else []
        cells += [f"{row['inception_score']:.4g}", "{:.3g} / {:.3g}".format(*row["latent_drift"]), decibels]
        cells += ["{:.3g} / {:.3g}".format(*row[name]) for name in ("seconds", "denoise_seconds")]
        lines.append([*cells, f"{row['speedup']:.2f}"])
    return f"{title}\n\n{tables.markdown(head, lines)}"


def plot(path: Path, settings: Mapping[str, Any], made: Sequence[Mapping[str, Any]]) -> None:
    """FID drift against calls, and against seconds per picture; the grey line is another noise's."""
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True, dpi=150)
    floor = next(row for row in made if row["group"] == FLOOR)
    base = next(row for row in made if row["group"] == UNCACHED)
    for axes, key, name in zip(panels, ("calls", "seconds"), ("transformer calls", "seconds per picture"), strict=True):
        for group, (colour, marker, dashes) in STYLE.items():
            mine = sorted((row for row in made if row["group"] == group), key=lambda row: row["calls"])
            if mine:
                at, drift = [_at(row[key]) for row in mine], [row["fid_drift"] for row in mine]
                look = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.3, "markersize": 5}
                axes.plot(at, drift, label=group, **look)
        axes.axhline(floor["fid_drift"], color="0.6", linewidth=1)
        axes.axvline(_at(base[key]), color="0.6", linewidth=1, linestyle="--")
        axes.set(yscale="log", xlabel=name)
        axes.grid(True, which="both", color="0.9", linewidth=0.5)
    panels[0].annotate(
        "uncached, other noise", (0.01, floor["fid_drift"]), xycoords=("axes fraction", "data"), va="bottom",
        fontsize=7, color="0.35",
    )  # fmt: skip
    panels[1].annotate(
        "uncached", (_at(base["seconds"]), 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=7,
        color="0.35",
    )  # fmt: skip
    panels[0].set_ylabel("FID drift to the uncached pictures")
    figure.suptitle(
        f"{settings['model']}\n{settings['steps']} steps, guidance {settings['guidance']:g}, n = {base['n']}, "
        f"{settings['features']}",
        fontsize=9,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="center right", fontsize=7, frameon=False)
    figure.subplots_adjust(left=0.08, right=0.87, bottom=0.12, top=0.88, wspace=0.05)
    figure.savefig(path)
    plt.close(figure)


def _at(value: Any) -> float:
    return float(value[0] if isinstance(value, list) else value)


def write(
    out: Path, settings: Mapping[str, Any], made: Sequence[Mapping[str, Any]], reference: Path | None, width: int
) -> str:
    """``results.json``, ``results.md``, ``results.png``, ``results.svg``; returns the Markdown."""
    body = {
        "settings": settings, "reference": None if reference is None else reference.name,
        "units": "drift relative, PSNR in dB (null: equal pictures), seconds per picture, pairs are [median, p95]",
        "rows": made,
    }  # fmt: skip
    text = markdown(caption(settings, made, reference, width), made)
    data = json.dumps(body, indent=1, allow_nan=False)
    files.replace(out / "results.json", lambda partial: partial.write_text(data, encoding="utf-8"))
    files.replace(out / "results.md", lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    for suffix in ("png", "svg"):
        plot(out / f"results.{suffix}", settings, made)
    return text
