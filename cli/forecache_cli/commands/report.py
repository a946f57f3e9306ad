"""``forecache report``: one HTML file about a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import SpinnerColumn

from ..console import extra, progress, say


def report(
    folder: Annotated[Path, typer.Argument(help="What a session wrote: its --out.", metavar="RUN_DIR")],
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The page (default: report.html in RUN_DIR).")
    ] = None,
) -> None:
    """Write a page about a run folder: plots, tables, timeline and meshes in one file that works offline."""
    with extra("report", "the report needs"):
        from forecache_lab import report as lab

    with progress(SpinnerColumn()) as bar:
        task = bar.add_task("reading", total=None)
        file = lab.write(folder, out, lambda what: bar.update(task, description=what))
    say(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB; it opens in any browser, without a network")
