"""Arguments that several commands share, and the lock and series behind them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from forecache_patches import LOCK_FILE, SERIES_ROOT, Series, Upstream, find, load_lock, load_series


class Source(str, Enum):
    """Where upstream files come from."""

    auto = "auto"
    git = "git"
    wheel = "wheel"


Name = Annotated[str, typer.Argument(help="Name of the upstream in the lock.")]
Folder = Annotated[Path, typer.Argument(help="Root folder of the checkout.", metavar="DIR")]
LockOption = Annotated[Path, typer.Option("--lock", help="Another lock file.", exists=True, dir_okay=False)]
SeriesOption = Annotated[Path, typer.Option("--series", help="Another folder of series.", file_okay=False)]
LOCK, SERIES = LOCK_FILE, SERIES_ROOT


def open_upstream(name: str, lock: Path) -> Upstream:
    """The upstream ``name`` of the lock in file ``lock``."""
    return find(load_lock(lock), name)


def open_series(name: str, lock: Path, series: Path) -> Series:
    """The series of the upstream ``name``."""
    return load_series(open_upstream(name, lock), series)
