"""Insertions: the only change that a patch may hold. Pure functions on bytes, the inverse of one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SeriesError


@dataclass(frozen=True)
class Insertion:
    """Our ``lines`` (with their line ends), put in after line ``after`` (1-based; 0: at the top) of the pre-image."""

    after: int
    lines: tuple[bytes, ...]


def split_lines(content: bytes) -> list[bytes]:
    r"""Lines with their ends, as git sees them: only ``\n`` ends a line, ``\r`` is content."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def insert(content: bytes, insertions: Sequence[Insertion]) -> bytes:
    """Post-image of ``content``.

    Raises:
        SeriesError: an insertion lies behind the end, or after a last line that has no newline.
    """
    lines = split_lines(content)
    result: list[bytes] = []
    done = 0
    for insertion in insertions:
        if insertion.after > len(lines):
            raise SeriesError(f"insertion after line {insertion.after} of a file of {len(lines)} lines")
        result += lines[done : insertion.after]
        if result and not result[-1].endswith(b"\n"):
            raise SeriesError(
                f"insertion after line {insertion.after}, which has no newline: that would change the line"
            )
        result += insertion.lines
        done = insertion.after
    return b"".join(result + lines[done:])


def together(count: int, rounds: Sequence[Sequence[Insertion]]) -> tuple[Insertion, ...]:
    """What ``rounds`` of insertions, one on top of the other, put into a file of ``count`` lines, as one round."""
    lines: list[bytes | None] = [None] * count  # None: a line of the file
    for insertions in rounds:
        for insertion in reversed(insertions):
            lines[insertion.after : insertion.after] = insertion.lines
    result: list[Insertion] = []
    after, ours = 0, list[bytes]()
    for line in [*lines, None]:
        if line is not None:
            ours.append(line)
            continue
        if ours:
            result.append(Insertion(after, tuple(ours)))
        after, ours = after + 1, []
    return tuple(result)


def remove(content: bytes, insertions: Sequence[Insertion]) -> bytes:
    """Pre-image of ``content``: the inverse of :func:`insert`.

    Raises:
        SeriesError: our lines are not where they should be.
    """
    lines = split_lines(content)
    result: list[bytes] = []
    done = shift = 0
    for insertion in insertions:
        start = insertion.after + shift
        end = start + len(insertion.lines)
        if tuple(lines[start:end]) != insertion.lines:
            raise SeriesError(f"the lines inserted after line {insertion.after} are not at line {start + 1}")
        result += lines[done:start]
        done = end
        shift += len(insertion.lines)
    return b"".join(result + lines[done:])
