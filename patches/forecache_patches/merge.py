"""A series on a file that has moved on from the pinned one: its lines carried over, and found there again.

A patch only inserts, so the three-way merge is simple: a hunk goes between the same two lines as in the pinned file, if
the fork has both of them unchanged and side by side; else it is a conflict. A merge is accepted only if it can be
undone: ``find`` must read the level and the very bytes of the fork from the result.
"""

from __future__ import annotations

import difflib
from functools import cached_property

from .errors import ConflictError
from .insertion import Insertion, insert, split_lines, together
from .series import Series


class Carrier:
    """Puts the patches of ``series`` into versions of ``path``, whose pinned content is ``original``."""

    def __init__(self, series: Series, path: str, original: bytes) -> None:
        self.series, self.path = series, path
        self.images = series.contents(path, original)
        self._base = split_lines(original)
        self.ours = [self._together(level) for level in range(len(self.images))]

    def _together(self, level: int) -> tuple[Insertion, ...]:
        steps = (self.series.step(number, self.path) for number in range(1, level + 1))
        return together(len(self._base), [step.insertions for step in steps if step])

    def put(self, fork: bytes, level: int) -> bytes:
        """``fork``, which has no patch, with the first ``level`` of them.

        Raises:
            ConflictError: it has lines of theirs already, has changed the lines next to ours, is not valid Python
                afterwards, or ours could not be taken out again.
        """
        if remains := self.remains(fork):
            raise ConflictError(f"{self.path} has lines of {remains} already; nothing was changed")
        made = self._carry(fork, level)
        if self.path.endswith(".py") and compiles(fork) and not compiles(made):
            raise ConflictError(f"{self.path}: the three-way merge is not valid Python; nothing was changed")
        found = self.find(made)
        if found is None or (self.images[found[0]], found[1]) != (self.images[level], fork):
            raise ConflictError(
                f"{self.path}: after the three-way merge the lines of the patches could not be told from the fork's "
                "and taken out again; nothing was changed"
            )
        return made

    def find(self, current: bytes) -> tuple[int, bytes] | None:
        """The level of ``current``, and what it was before; None if it is not what :meth:`put` makes of anything."""
        for level in range(len(self.images) - 1, 0, -1):
            before = _taken_out(current, self.ours[level]) if self.ours[level] else None
            if before is not None and not self.remains(before) and self._gives(before, level, current):
                return level, before
        return None if self.remains(current) else (0, current)

    def remains(self, content: bytes) -> str:
        """The first hunk of which ``content`` has more than half of the lines, ``""`` if it has none.

        Lines that the pinned file has too, and blank ones, do not count.
        """
        here, theirs = set(split_lines(content)), set(self._base)
        for name, hunk in self._hunks:
            own = [line for line in hunk.lines if line.strip() and line not in theirs]
            if 2 * sum(line in here for line in own) > len(own):
                return name
        return ""

    @cached_property
    def _hunks(self) -> list[tuple[str, Insertion]]:
        """Every hunk of the series, by a name for messages."""
        hunks = []
        for level, patch in enumerate(self.series.patches, start=1):
            step = self.series.step(level, self.path)
            for number, hunk in enumerate(step.insertions if step else (), start=1):
                hunks.append((f"{patch.name} hunk {number} ({_first(hunk.lines)!r})", hunk))
        return hunks

    def _gives(self, fork: bytes, level: int, made: bytes) -> bool:
        try:
            return self._carry(fork, level) == made
        except ConflictError:
            return False

    def _carry(self, fork: bytes, level: int) -> bytes:
        lines = split_lines(fork)
        place = _same_lines(self._base, lines)
        moved, conflicts = [], []
        for hunk in self.ours[level]:
            before, behind = place.get(hunk.after - 1), place.get(hunk.after)
            if before is None or behind != before + 1:
                conflicts.append(hunk)
            else:
                moved.append(Insertion(before + 1, hunk.lines))
        if conflicts:
            # what the fork has between the next lines that it left as they were
            after = conflicts[0].after
            start = max(there for here, there in place.items() if here < after) + 1
            end = min(there for here, there in place.items() if here >= after)
            raise ConflictError(f"{self.path}: {self._explain(conflicts, lines[start:end])}; nothing was changed")
        return insert(fork, moved)

    def _explain(self, conflicts: list[Insertion], theirs: list[bytes]) -> str:
        own = conflicts[0].lines
        name = next((name for name, hunk in self._hunks if set(hunk.lines) <= set(own)), "a hunk")
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        fork = _first(theirs)
        why = (
            f"the fork changed the lines next to it, it has {fork!r} there"
            if fork
            else "the fork removed the lines next to it"
        )
        return f"{name} conflicts{more}: {why}"


def _first(lines: tuple[bytes, ...] | list[bytes]) -> str:
    """The first line that is not blank, ``""`` if all are."""
    return next((line.strip() for line in lines if line.strip()), b"").decode("utf-8", "replace")


def _taken_out(content: bytes, insertions: tuple[Insertion, ...]) -> bytes | None:
    """``content`` without our lines, wherever they stand, in their order; None if they are not all there."""
    lines = split_lines(content)
    kept: list[bytes] = []
    done = 0
    for insertion in insertions:
        size = len(insertion.lines)
        places = range(done, len(lines) - size + 1)
        start = next((at for at in places if tuple(lines[at : at + size]) == insertion.lines), None)
        if start is None:
            return None
        kept += lines[done:start]
        done = start + size
    return b"".join(kept + lines[done:])


def _same_lines(base: list[bytes], fork: list[bytes]) -> dict[int, int]:
    """For every line of ``base`` that ``fork`` kept, its number there. Their starts and ends correspond."""
    shorter = min(len(base), len(fork))
    head = next((at for at in range(shorter) if base[at] != fork[at]), shorter)
    rest = shorter - head
    tail = next((at for at in range(rest) if base[-1 - at] != fork[-1 - at]), rest)
    same = {at: at for at in range(-1, head)}
    same |= {len(base) - at: len(fork) - at for at in range(tail + 1)}
    middle = base[head : len(base) - tail], fork[head : len(fork) - tail]
    for block in difflib.SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
        same |= {head + block.a + at: head + block.b + at for at in range(block.size)}
    return same


def compiles(source: bytes) -> bool:
    """Whether ``source`` is Python that this interpreter can compile. Nothing is run."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<patched>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
            return False
    return True
