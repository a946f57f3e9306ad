"""Proofs about the stored patches: against the lock alone, and against the real files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .apply import require_level
from .errors import SeriesError
from .insertion import split_lines
from .lock import Upstream
from .merge import compiles
from .patchfile import FilePatch
from .series import Series, load_series
from .state import read_state

# Shorter lines (`continue`, `else:`, `return x`) are nobody's.
OWN_LINE = 24


@dataclass(frozen=True)
class Report:
    """``facts``: what was shown to hold. ``remarks``: what a person should look at."""

    facts: tuple[str, ...]
    remarks: tuple[str, ...]


def check(upstream: Upstream, series_root: Path, root: Path | None = None) -> Report:
    """Validate the series of ``upstream``; with a checkout also that it fits the files and gives valid Python.

    Raises:
        SeriesError: a patch is not insert-only, files and series or blob ids disagree, a required notice is missing,
            a patched file does not compile.
        TreeError: ``root`` is not a checkout of the pinned files (patched or not).
    """
    series = load_series(upstream, series_root)
    total = sum(
        len(insertion.lines) for patch in series.patches for file in patch.files for insertion in file.insertions
    )
    size = f"{len(series)} patches, {total} inserted lines"
    facts = [f"{upstream.name} at {upstream.pin}: {size}, insert-only, blob ids chain from the lock"]
    if upstream.modified_notice:
        _check_notice(series)
    if root is None:
        return Report(tuple(facts), ())
    remarks: list[str] = []
    for path, chain in _real_contents(series, root).items():
        for level, content in enumerate(chain[1:], start=1):
            if path.endswith(".py") and compiles(chain[0]) and not compiles(content):
                raise SeriesError(f"{series.patches[level - 1].name}: {path} is not valid Python after it")
        facts.append(f"{path}: pre- and post-images match, every level compiles")
        remarks += _upstream_lines(series, path, chain[0])
    return Report(tuple(facts), tuple(remarks))


def _real_contents(series: Series, root: Path) -> dict[str, list[bytes]]:
    state = read_state(series, root)
    require_level(state)
    if state.merged:
        raise SeriesError(f"{root} is a fork; patches are checked against the pinned files")
    # One pass over the chain from the unpatched content: it compares every blob id.
    return {file.path: series.contents(file.path, file.at(0)) for file in state.files}


def _check_notice(series: Series) -> None:
    """The licence wants a notice in each modified file: an inserted line that contains the word 'modified'."""
    for path in sorted({file.path for patch in series.patches for file in patch.files}):
        lines = (line for patch in series.patches for file in patch.files if file.path == path for line in _lines(file))
        if not any(b"modified" in line.lower() for line in lines):
            raise SeriesError(
                f"{path}: the licence asks for a notice in modified files; no inserted line says 'modified'"
            )


def _lines(file: FilePatch) -> list[bytes]:
    return [line for insertion in file.insertions for line in insertion.lines]


def _upstream_lines(series: Series, path: str, original: bytes) -> list[str]:
    """Inserted lines that repeat a line of the upstream: a patch should hold our lines only."""
    theirs = split_lines(original)
    return [
        f"{patch.name}: {line.decode('utf-8', 'replace')!r} is also a line of {path}"
        for patch in series.patches
        for file in patch.files
        if file.path == path
        for line in repeated(_lines(file), theirs)
    ]


def repeated(ours: Iterable[bytes], theirs: Iterable[bytes]) -> list[bytes]:
    """Longer lines of ours that are lines of theirs too, white space aside."""
    known = {line.strip() for line in theirs}
    return [own for line in ours if len(own := line.strip()) >= OWN_LINE and own in known]
