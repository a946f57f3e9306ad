"""``python -m benchmarks.dit_imagenet run --out DIR`` (README.md beside this file)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from forecache_cli.commands.calibrate import seeds_of
from forecache_cli.console import say

from . import features, methods, plans, sampling, table
from .run import Bench

SEEDS = "1000000:1000016"

app = typer.Typer(
    help="Class-conditional DiT-XL/2: FID drift and Inception Score against calls and latency.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

Model = Annotated[
    str, typer.Option(help="'toy', or a DiT pipeline on this machine: facebook/DiT-XL-2-256 or a folder.")
]
Steps = Annotated[int, typer.Option(help="Steps of the uncached sampler.")]
Guidance = Annotated[float, typer.Option(help="s of u + s (c - u); 1: no second branch.")]
Device = Annotated[str, typer.Option(help="'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1'.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16.")]


def resolve_device(device: str) -> str:
    """The device behind ``auto``."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
def run(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of chunks and results; goes on where it was.")],
    model: Model = sampling.TOY,
    network: Annotated[
        str, typer.Option("--features", help="'stub', or a TorchScript Inception file.")
    ] = features.STUB,
    reference: Annotated[Path | None, typer.Option(help=".npz with mu and sigma: adds a column FID.")] = None,
    basis: Annotated[list[str] | None, typer.Option(help="Once per basis (default: all).")] = None,
    calls: Annotated[list[int] | None, typer.Option(help="Budget of calls; once per budget.")] = None,
    interval: Annotated[list[int] | None, typer.Option(help="Fixed interval; once per interval.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Of the intervals.")] = None,
    plan_files: Annotated[list[Path] | None, typer.Option("--plan", help="A plan's file; once per plan.")] = None,
    steps: Steps = 50,
    guidance: Guidance = 1.5,
    images: Annotated[int, typer.Option(help="Pictures per row.")] = 64,
    chunk: Annotated[int, typer.Option(help="Pictures per file; an interrupted one is lost.")] = 32,
    batch: Annotated[int, typer.Option(help="Pictures per call of the pipeline.")] = 8,
    seed: Annotated[int, typer.Option(help="Noise of picture 0.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Make the rows that are missing, and write results.json, .md, .png, .svg over all that were asked for."""
    warnings.simplefilter("ignore", FutureWarning)
    where = resolve_device(device)
    if calls is None and interval is None and plan_files is None:
        calls = [steps // 2, steps * 3 // 10, steps // 5]
    try:
        rows = methods.methods(basis or methods.BASES, calls or [], interval or [], plan_files or [], steps, warmup)
        for path in plan_files or []:
            plans.check(path, guidance, range(seed, seed + 2 * images))
        seen = features.load(network, where)
        width = seen.width()
        statistics = None if reference is None else table.reference_statistics(reference, width)
        bench = Bench(sampling.load(model, where, dtype), seen, steps, guidance, images, chunk, batch, seed)
        with Progress(transient=True) as bar:
            task = bar.add_task("", total=len(rows) * (images // chunk))
            found = bench.run(rows, out, lambda what: bar.update(task, advance=1, description=what))
        text = table.write(out, bench.settings(), table.summaries(rows, found, statistics), reference, width)
    except (ValueError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    say(f"{text}\n\nwritten to {out}")


@app.command()
def plan(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for plan-CALLS.json and the recordings.")],
    calls: Annotated[list[int], typer.Option(help="Calls of a plan; once per plan.")],
    model: Model = sampling.TOY,
    steps: Steps = 50,
    guidance: Guidance = 1.5,
    seeds: Annotated[str, typer.Option(help="Calibration pictures FIRST:END, none that is measured on.")] = SEEDS,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Calibrate plans for `run --plan`. Interrupted, the same command goes on where it was."""
    warnings.simplefilter("ignore", FutureWarning)
    try:
        loaded = sampling.load(model, resolve_device(device), dtype)
        made = plans.make(loaded, steps, guidance, calls, seeds_of(seeds), out / "recordings")
    except (ValueError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for each in made:
        path = out / f"plan-{len(each.computed)}.json"
        each.save(path)
        say(f"{path}: steps {', '.join(map(str, each.computed))}")


if __name__ == "__main__":
    app()
