"""``forecache upstream``: what the lock knows, and checkouts of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import forecache_patches as patches

from ..console import say
from ..options import LOCK, SERIES, Folder, LockOption, Name, SeriesOption, Source, open_series, open_upstream

app = typer.Typer(help="Checkouts of the upstream repositories, at the pins of the lock.", no_args_is_help=True)


@app.command("list")
def list_upstreams(lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """List the upstreams of the lock."""
    table = Table("name", "pin", "patches", Column("wheel", no_wrap=True), "licence", box=None)
    for name, upstream in patches.load_lock(lock).items():
        wheel = f"{upstream.wheel.package}=={upstream.wheel.version}" if upstream.wheel else "-"
        licence = f"{upstream.licence}; {upstream.restriction}" if upstream.restriction else upstream.licence
        row = (name, upstream.pin, str(len(patches.load_series(upstream, series))), wheel, licence)
        table.add_row(*map(Text, row))  # brackets are not markup
    Console().print(table)


@app.command()
def checkout(
    name: Name,
    folder: Folder,
    source: Annotated[Source, typer.Option(help="auto: git, and if that fails the wheel.")] = Source.auto,
    lock: LockOption = LOCK,
) -> None:
    """Fetch the files of an upstream at its pin into DIR."""
    upstream = open_upstream(name, lock)
    result = patches.checkout(upstream, folder, source.value)
    if result.note:
        say(result.note, style="yellow")
    origin = f"from {result.marker.source} ({result.marker.origin})"
    if not result.fresh:
        say(f"{folder} already holds {name} at {upstream.pin} {origin}; nothing was done")
        return
    say(f"{folder} holds {name} at {upstream.pin} {origin}; hooked files verified")
    if result.marker.source == "wheel" and upstream.wheel and upstream.wheel.differs:
        say(f"not those of the commit, and not hooked: {', '.join(upstream.wheel.differs)}")
    tell_licence(upstream, result.marker.source)


@app.command()
def status(folder: Folder, lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """Say what the checkout DIR is and which patches it has. Exit status 1: it is in no known state."""
    marker = patches.require_marker(folder)
    found = patches.status(open_series(marker.upstream, lock, series), folder)
    tell_status(f"{marker.upstream} at {marker.commit[:12]} from {marker.source} ({marker.origin}): ", found)


@app.command()
def verify(folder: Folder, lock: LockOption = LOCK, series: SeriesOption = SERIES) -> None:
    """Verify marker, commit, blob ids and modes of the checkout DIR."""
    found = open_series(patches.require_marker(folder).upstream, lock, series)
    say(patches.verify(found.upstream, found, folder))


@app.command()
def bump(
    name: Name,
    commit: Annotated[str, typer.Argument(help="The new pin, a full commit id.")],
    folder: Annotated[Path, typer.Option("--checkout", help="A git checkout of the upstream.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", help="Gets the new pin folder.", metavar="DIR")],
    lock: LockOption = LOCK,
    series: SeriesOption = SERIES,
) -> None:
    """Carry the series over to another commit; the old pin stays."""
    result = patches.bump(open_series(name, lock, series), commit, folder, output)
    how = f"re-anchored on {', '.join(result.moved)}" if result.moved else "the hooked files are the same"
    say(f"wrote {result.folder}: {how}")
    say("for the lock:")
    say(patches.lock_lines(result.upstream))


def tell_status(what: str, found: patches.Status) -> None:
    """Say which patches it has; exit status 1 if that is no number of them, in all files the same."""
    say(f"{what}{found.text}")
    if found.problem:
        say(found.problem, style="yellow")
        raise typer.Exit(1)


def tell_licence(upstream: patches.Upstream, source: str = "git") -> None:
    """Say under which licence the files are, and where its text is."""
    limit = f" ({upstream.restriction})" if upstream.restriction else ""
    files = upstream.wheel.licence_files if source == "wheel" and upstream.wheel else ()
    names = ", ".join(dict.fromkeys(Path(file).name for file in (*files, *upstream.licence_files)))
    say(f"licence: {upstream.licence}{limit}; read {names} there")
