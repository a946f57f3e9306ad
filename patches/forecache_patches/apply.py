"""Apply, revert and inspect a series. Every new content is computed before the first file is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import TreeError
from .series import Series
from .state import TreeState, read_state
from .writing import alone, tidy, write_all


@dataclass(frozen=True)
class Outcome:
    """Level before and after, files written, and whether a three-way merge was needed.

    ``before`` is None where the files did not have the same number of patches.
    """

    before: int | None
    after: int
    written: tuple[str, ...]
    merged: bool

    @property
    def changed(self) -> bool:
        """False: there was nothing to do."""
        return bool(self.written)


@dataclass(frozen=True)
class Status:
    """``text`` is ``unpatched``, ``patched, k of n``, ``patched in part`` or ``modified``.

    ``problem`` explains the last two. Patched in part: an apply or revert was broken off; another apply or revert
    finishes it. Modified: a file has content that the tool does not know.
    """

    level: int | None
    total: int
    merged: bool
    problem: str
    known: bool

    @property
    def text(self) -> str:
        """One short line."""
        if self.level is None:
            return "patched in part" if self.known else "modified"
        fork = ", on a fork (three-way)" if self.merged else ""
        return (f"patched, {self.level} of {self.total}" if self.level else "unpatched") + fork


def apply(series: Series, root: Path) -> Outcome:
    """Apply the patches that are not applied yet, to each file those that it lacks.

    Raises:
        TreeError: a file is in no known state, or has changes that are not committed.
        ConflictError: a fork changed the lines next to ours, or ours could not be taken out again.
        PatchError: a file cannot be written, or another command is at work. In every case nothing has changed.
    """
    return _move(series, root, len(series))


def revert(series: Series, root: Path) -> Outcome:
    """Take all patches out again: exact bytes and mode of before.

    Raises:
        TreeError, ConflictError, PatchError: as :func:`apply`.
    """
    return _move(series, root, 0)


def status(series: Series, root: Path) -> Status:
    """State of the hooked files.

    Raises:
        TreeError: a hooked file is missing or is a link.
    """
    state = read_state(series, root)
    return Status(state.level, len(series), state.merged, state.problem, known=not state.unknown)


def require_level(state: TreeState) -> int:
    """The level of a tree.

    Raises:
        TreeError: it has none; the message says why.
    """
    if state.level is None:
        raise TreeError(state.problem)
    return state.level


def _move(series: Series, root: Path, level: int) -> Outcome:
    with alone(root):
        tidy(root, series.upstream.blobs)
        state = read_state(series, root)
        if state.unknown:
            raise TreeError(state.unknown)
        changed = {file.path: file.at(level) for file in state.files if level not in file.levels}
        write_all(root, changed)
        return Outcome(state.level, level, tuple(changed), state.merged)
