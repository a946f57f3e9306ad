"""``forecache bench``: a generator over a folder of pictures, methods beside the uncached run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from forecache_lab.errors import UserError
from forecache_lab.generators.registry import GENERATORS

from ..console import complain, ended_as_by_ctrl_c, extra, progress, say

if TYPE_CHECKING:
    from forecache_lab.generators.generated import Generator

SAMPLES = 12


def known(name: str | None) -> str | None:
    """A generator's name as it was given.

    Raises:
        typer.BadParameter: there is none of that name.
    """
    if name is not None and name not in GENERATORS:
        raise typer.BadParameter(f"must be one of {', '.join(GENERATORS)}, got {name!r}")
    return name


def bench(
    generator: Annotated[str | None, typer.Argument(help=f"One of {', '.join(GENERATORS)}.", callback=known)] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures, one object each: png, jpg, webp; sub-folders too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same command goes on in it.")] = None,
    checkout: Annotated[Path | None, typer.Option(help="Patched checkout of the upstream.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Real weights, a name or a folder; needs a CUDA device (default: small networks)."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="dmd:interval=5, auto:calls=12, wrong-dmd:interval=5, plan=FILE, uncached:steps=13; repeat."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the noise: 0,1,2 or 0-3.")] = "0",
    limit: Annotated[int | None, typer.Option(min=1, help="The first pictures only.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of every stage (default: the generator's own).")] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Later stages on their own voxels, not on the uncached run's.")
    ] = False,
    shown: Annotated[
        int, typer.Option(min=0, help="Pictures on the page with meshes and steps (the first seed).")
    ] = 12,
    sample_images: Annotated[
        Path | None, typer.Option(help="Write pictures to try it with into this folder, and nothing else.")
    ] = None,
) -> None:
    """Run a generator over a folder of pictures with every method. Interrupted, the same command goes on."""
    with extra("GENERATOR", "bench needs"):
        from forecache_cli.generate import read_seeds
        from forecache_lab import bench as lab
        from forecache_lab import report

    if sample_images is not None:
        written = lab.write_samples(sample_images, limit or SAMPLES)
        say(f"wrote {len(written)} pictures of solids to {sample_images}: --images {sample_images}")
        return
    for option, value in (("GENERATOR", generator), ("--images", images), ("--out", out), ("--checkout", checkout)):
        if value is None:
            raise typer.BadParameter(f"{option} is missing")
    assert generator is not None and images is not None and out is not None and checkout is not None
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out must be a folder, got the file {out}")
        rows = lab.parse(method or lab.DEFAULT)
        numbers = read_seeds(seeds)
        folder = lab.read_folder(images, limit)
        subject = load(generator, checkout, weights)
        measured = lab.Bench(subject, rows, folder, numbers, out, steps, end_to_end, shown)
        say(f"{subject.title}\n{subject.conditions}")
        for file, reason in folder.skipped.items():
            complain(f"skipped: {file}: {reason}")
        bar = progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with bar, ended_as_by_ctrl_c():
            task = bar.add_task("", total=None)
            lost = measured.run(
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
            )
        text = lab.write(measured)
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command makes what is missing", err=True)
        raise typer.Exit(130) from None
    say(f"\n{text}\n\nwritten to {out}: bench.md, bench.json, run.json")
    try:
        say(f"wrote {report.write(out)}")
    except UserError as error:
        raise UserError(f"{error}; the same command with a smaller --shown makes the page again") from None
    if lost:
        raise UserError(f"{lost} runs failed by an error, see {out / lab.LOG}; the same command tries them again")


def load(name: str, checkout: Path, weights: str | None) -> Generator:
    """The subject, with its real weights where they were asked for and can be.

    Raises:
        UserError: no checkout, an unpatched one, a package is missing; weights that this command cannot load.
    """
    row = GENERATORS[name]
    options: dict[str, Any] = {}
    if weights is not None:
        import torch

        if not row.weights:
            raise UserError(f"--weights {weights}: of {name} only the small networks can be run with this command")
        if torch.cuda.is_available():
            options["weights"] = weights
        else:
            say(
                f"left out: the real weights {weights}, because this machine has no CUDA device; small networks instead"
            )
    try:
        with extra(name, f"{name} needs"):
            made: Generator = row.make(checkout, **options)
    except (FileNotFoundError, RuntimeError) as error:
        if options:  # loading real weights can fail in many ways: keep the traceback
            raise
        lock = next(iter(row.pins.values()))
        commands = f"forecache upstream checkout {lock} DIR; forecache patch apply {lock} DIR"
        raise UserError(f"{error} (a patched checkout: {commands})") from None
    return made
