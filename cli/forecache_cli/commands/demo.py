"""``forecache demo``: what forecasting costs and buys, in seconds, without an upstream or weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import extra, say


def demo(
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for demo.png, the meshes side by side.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=4, help="Samples per rule.")] = 12,
) -> None:
    """Sample solids from a flow with a known velocity: all 50 calls, then 14 of them with each rule."""
    with extra("report", "the demo needs"):
        from forecache_lab import demo as lab

    say(lab.main(out, seeds))
    if out is not None:
        say(f"wrote {out / 'demo.png'}")
