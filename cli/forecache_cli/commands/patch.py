"""``forecache patch``: apply the series of an upstream, take it out, prove it, export it, make it."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

import forecache_patches as patches

from ..console import say
from ..options import LOCK, SERIES, Folder, LockOption, Name, SeriesOption, Source, open_series, open_upstream
from .upstream import tell_licence, tell_status

app = typer.Typer(help="The patches that put inert hooks into upstream samplers.", no_args_is_help=True)


@app.command("list")
def list_patches(
    name: Annotated[str, typer.Argument(help="One upstream; all if left out.")] = "",
    lock: LockOption = LOCK,
    series: SeriesOption = SERIES,
) -> None:
    """List the patches of every upstream, or of one."""
    known = patches.load_lock(lock)
    for upstream in [patches.find(known, name)] if name else known.values():
        found = patches.load_series(upstream, series)
        say(f"{upstream.name} at {upstream.pin}: {len(found)} patches")
        for patch in found.patches:
            say(f"  {patch.name}  {patch.title} ({', '.join(file.path for file in patch.files)})")


@app.command()
def apply(name: Name, folder: Folder, lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """Apply the series to the checkout DIR."""
    found = open_series(name, lock, series)
    result = patches.apply(found, folder)
    if not result.changed:
        say(f"nothing to do: {result.before} of {len(found)} patches are applied")
        return
    how = ", merged three-way" if result.merged else ""
    count = "what was left" if result.before is None else f"{result.after - result.before}"
    say(f"applied {count} of {len(found)} patches to {', '.join(result.written)}{how}")
    tell_licence(found.upstream)


@app.command()
def revert(name: Name, folder: Folder, lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """Take the series out of the checkout DIR again."""
    result = patches.revert(open_series(name, lock, series), folder)
    if result.changed:
        count = "what there was of the" if result.before is None else f"{result.before}"
        say(f"took {count} patches out of {', '.join(result.written)}")
    else:
        say("nothing to do: no patch is applied")


@app.command()
def status(name: Name, folder: Folder, lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """Say which patches DIR has, also a fork from elsewhere. Exit status 1: it is in no known state."""
    tell_status(f"{name}: ", patches.status(open_series(name, lock, series), folder))


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="One upstream; all if left out.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--checkout", help="Check against this checkout.", metavar="DIR")
    ] = None,
    source: Annotated[Source | None, typer.Option(help="Check against a fresh checkout from there.")] = None,
    lock: LockOption = LOCK,
    series: SeriesOption = SERIES,
) -> None:
    """Validate the stored patches, and with files of the upstream that they fit and give valid Python."""
    known = patches.load_lock(lock)
    if folder is not None and source is not None:
        raise patches.PatchError("--checkout and --source exclude one another")
    if folder is not None and not name:
        name = patches.require_marker(folder).upstream
    for upstream in [patches.find(known, name)] if name else known.values():
        with TemporaryDirectory() as temporary:
            root = folder
            if source is not None:
                root = patches.checkout(upstream, Path(temporary, "checkout"), source.value).root
            report = patches.check(upstream, series, root)
        for fact in report.facts:
            say(f"ok: {fact}")
        for remark in report.remarks:
            say(f"look: {remark}", style="yellow")


@app.command()
def export(
    name: Name,
    folder: Folder,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of the terminal.")] = None,
    lock: LockOption = LOCK,
    series: SeriesOption = SERIES,
) -> None:
    """Write an ordinary patch with context, for `git apply`, made from the checkout DIR."""
    content = patches.export(open_series(name, lock, series), folder)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        raise patches.PatchError(f"cannot write {output}: {error.strerror or error}") from None
    say(f"wrote {output}; it holds upstream lines and falls under the upstream's licence")


@app.command()
def make(
    name: Name,
    folder: Folder,
    title: Annotated[str, typer.Option(help="One line; the patch is named after it.")],
    description: Annotated[str, typer.Option(help="Further text of the header.")] = "",
    against: Annotated[Path | None, typer.Option(help="An unedited checkout, if DIR came from a wheel.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Replace the last patch of the series.")] = False,
    lock: LockOption = LOCK,
    series: SeriesOption = SERIES,
) -> None:
    """(For developers) Store the lines inserted in the checkout DIR as the next patch of the series."""
    upstream = open_upstream(name, lock)
    file = patches.make(patches.load_series(upstream, series), folder, title, description, against, redo)
    say(f"wrote {file}")
