"""``forecache report``: one HTML file about a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import SpinnerColumn

from ..console import complain, progress, say


def report(
    folder: Annotated[Path, typer.Argument(help="What a session wrote: its --out.", metavar="RUN_DIR")],
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The page (default: report.html in RUN_DIR).")
    ] = None,
) -> None:
    """Write a page about a run folder: plots, tables, timeline and meshes in one file that works offline."""
    try:
        from forecache_lab import report as lab
    except ModuleNotFoundError as error:
        typer.echo(f"error: the report needs {error.name}: pip install '.[report]' in forecache's checkout", err=True)
        raise typer.Exit(1) from None

    try:
        with progress(SpinnerColumn()) as bar:
            task = bar.add_task("reading", total=None)
            file = lab.write(folder, out, lambda what: bar.update(task, description=what))
    except lab.ReportError as error:
        complain(f"error: {error}")
        raise typer.Exit(1) from None
    say(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB; it opens in any browser, without a network")
