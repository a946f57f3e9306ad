"""``forecache generate``: prompts x seeds through a pipeline of diffusers, on one or many GPUs, resumable."""

from __future__ import annotations

import functools
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from forecache_lab.errors import UserError

from ..console import complain, ended_as_by_ctrl_c, extra, progress, say

SHOWN = 5  # names of jobs


class Engine(str, Enum):
    """Who runs the workers."""

    processes = "processes"
    ray = "ray"


def generate(
    model: Annotated[str, typer.Option(help="Identifier on the hub, a folder, or tiny:NAME to try without weights.")],
    prompts: Annotated[Path, typer.Option(help=".txt: a prompt a line; .jsonl: an object a line.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on in it.")],
    seeds: Annotated[str, typer.Option(help="Of the noise: 0,1,2 or 0-3.")] = "0",
    basis: Annotated[str | None, typer.Option(help="Forecast rule (default: auto).")] = None,
    interval: Annotated[int | None, typer.Option(help="Compute every n-th step; 1: all.")] = None,
    warmup: Annotated[int | None, typer.Option(help="First steps that are computed, with --interval.")] = None,
    calls: Annotated[int | None, typer.Option(help="Computed steps in all, instead of --interval.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan's file, instead of all that.")] = None,
    few_steps: Annotated[bool, typer.Option("--few-steps", help="Cache runs of at most 8 steps too.")] = False,
    steps: Annotated[int | None, typer.Option(help="Default: the pipeline's, as the next three.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The call's guidance_scale.")] = None,
    height: Annotated[int | None, typer.Option()] = None,
    width: Annotated[int | None, typer.Option()] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another argument of the pipeline's call.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Uncached samples too, and compare.")] = False,
    file_format: Annotated[str, typer.Option("--format", help="auto, png, mp4, npy or latent.")] = "auto",
    fps: Annotated[int, typer.Option(help="Frames a second of an mp4.")] = 16,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 (default: bfloat16 with a GPU, else float32).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    offload: Annotated[str, typer.Option(help="none, model or sequential: diffusers' CPU offload.")] = "none",
    gpus: Annotated[str | None, typer.Option(help="A worker on each, such as 0,1 (default: all).")] = None,
    workers: Annotated[int | None, typer.Option(help="How many, instead of --gpus.")] = None,
    threads: Annotated[int, typer.Option(help="Of a worker on the CPU; its sums depend on it.")] = 1,
    engine: Annotated[Engine, typer.Option(help="One machine, or a Ray cluster.")] = Engine.processes,
    ray_address: Annotated[str | None, typer.Option(help="Of a cluster (default: RAY_ADDRESS, else local).")] = None,
) -> None:
    """Generate every prompt with every seed, with the cache. Interrupted, the same command makes what is missing."""
    with extra("generate", "generate needs"):
        from forecache_cli.generate import Settings, processes, ray_engine, read_jobs, read_seeds, report
        from forecache_cli.generate import generate as run
        from forecache_cli.generate.pipeline import OFFLOADS, check, kind_of
        from forecache_cli.generate.settings import read_arguments

    if offload not in OFFLOADS:
        raise UserError(f"--offload must be one of {', '.join(OFFLOADS)}, got {offload!r}")
    jobs = read_jobs(prompts, read_seeds(seeds))
    if engine is Engine.ray and gpus is not None:
        raise UserError(f"--gpus {gpus}: Ray hands out the GPUs; give --workers")
    devices = processes.devices(gpus, workers)
    local_model = Path(model).expanduser()
    settings = Settings.with_plan(
        plan, model=str(local_model.resolve()) if local_model.exists() else model, revision=revision,
        dtype=dtype or ("float32" if devices[0] == "cpu" else "bfloat16"), format=file_format, fps=fps,
        basis=basis, interval=interval, warmup=warmup, calls=calls, few_steps=few_steps, steps=steps,
        guidance=guidance, height=height, width=width, call=read_arguments(arguments or []), threads=threads,
    )  # fmt: skip
    check(kind_of(settings.model, revision), settings, jobs)
    if engine is Engine.ray:
        ray_engine.require()
        chosen = functools.partial(ray_engine.spread, workers=workers, address=ray_address)
    elif len(devices) == 1:
        chosen = functools.partial(processes.here, device=devices[0])
    else:
        chosen = functools.partial(processes.processes, devices=devices)
    bar = progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with bar, ended_as_by_ctrl_c():
        task = bar.add_task("samples", total=None)
        summary = run(
            settings, jobs, out, chosen, baseline=baseline, offload=offload,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip

    for line in (*summary.remarks, *report.lines(summary.entries)):
        say(line)
    say(f"{len(jobs) - len(summary.missing)} of {len(jobs)} samples are in {out}, listed in manifest.json")
    for name, reason in list(summary.failures.items())[:SHOWN]:
        complain(f"failed: {name}: {reason}")
    if summary.missing:
        shown = ", ".join(summary.missing[:SHOWN]) + (", ..." if len(summary.missing) > SHOWN else "")
        complain(f"error: {summary.stopped or 'some jobs failed'}")
        complain(f"{len(summary.missing)} missing: {shown}\nthe same command makes what is missing")
        raise typer.Exit(130 if summary.stopped == "interrupted" else 1)
