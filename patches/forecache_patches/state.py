"""In which state the hooked files of a checkout are: the level (patches applied), exactly or merged into a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import gitrepo
from .blobs import blob_id, read_hooked
from .errors import ConflictError, TreeError
from .marker import read_marker
from .merge import merge
from .series import Series


@dataclass(frozen=True)
class FileState:
    """One hooked file.

    ``levels`` are those that it agrees with: more than one if some patches do not touch it, none if it is in no state
    that the tool knows (``problem`` says why). ``at(k)`` is its content with the first k patches.
    """

    path: str
    current: bytes
    levels: frozenset[int]
    at: Callable[[int], bytes]
    merged: bool = False
    problem: str = ""


@dataclass(frozen=True)
class TreeState:
    """All hooked files; ``level`` is None if they do not agree on one."""

    level: int | None
    files: tuple[FileState, ...]

    @property
    def merged(self) -> bool:
        """Whether a file is that of a fork, reached by three-way merges."""
        return any(file.merged for file in self.files)

    @property
    def problem(self) -> str:
        """Why there is no level."""
        if self.level is not None:
            return ""
        problems = [file.problem for file in self.files if file.problem]
        levels = (f"{file.path} has {max(file.levels)}" for file in self.files if file.levels)
        return "; ".join(problems) or f"the hooked files do not have the same number of patches: {', '.join(levels)}"


def read_state(series: Series, root: Path) -> TreeState:
    """Examine the hooked files in ``root``. Nothing is written.

    Raises:
        TreeError: a file is missing or a link, or ``root`` is a checkout of something else.
    """
    marker = read_marker(root)
    if marker is not None and marker.upstream != series.upstream.name:
        raise TreeError(f"{root} is a checkout of {marker.upstream}, not of {series.upstream.name}")
    files = tuple(_file_state(series, root, path) for path in series.upstream.blobs)
    common = frozenset.intersection(*(file.levels for file in files))
    return TreeState(max(common) if common else None, files)


def _file_state(series: Series, root: Path, path: str) -> FileState:
    current = read_hooked(root, path)
    actual = blob_id(current)
    levels = frozenset(level for level, blob in enumerate(series.ids(path)) if blob == actual)
    if levels:
        known = min(levels)
        return FileState(path, current, levels, lambda level: series.contents(path, current, known)[level])
    pinned = series.upstream.blobs[path].id
    if blob_id(current.replace(b"\r\n", b"\n")) in series.ids(path):
        return _unknown(path, current, f"{path} differs in its line ends only; check it out with core.autocrlf=false")
    original = gitrepo.blob_content(root, pinned)
    if original is not None:
        return _forked(series, root, path, current, series.contents(path, original))
    why = "its history does not hold that blob" if gitrepo.is_repository(root) else "this is not a git repository"
    return _unknown(
        path, current, f"{path} is blob {actual}, the lock says {pinned}, and {why}, so nothing can be merged"
    )


def _forked(series: Series, root: Path, path: str, current: bytes, images: list[bytes]) -> FileState:
    """A fork is at level k if merging the first k patches into it changes nothing, and k is the largest such."""
    level = 0
    for candidate in range(len(images) - 1, 0, -1):
        if images[candidate] != images[0] and _merges_to_itself(series, path, current, images[0], images[candidate]):
            level = candidate
            break
    levels = frozenset(k for k, image in enumerate(images) if image == images[level])

    def at(wanted: int) -> bytes:
        if images[wanted] == images[level]:
            return current
        return merge(series, path, current, images[level], images[wanted])

    if gitrepo.is_dirty(root, path) and not _only_ours(at, len(images), gitrepo.blob_at(root, "HEAD", path)):
        return _unknown(path, current, f"{path} has changes that are not committed; commit or undo them first")
    return FileState(path, current, levels, at, merged=True)


def _merges_to_itself(series: Series, path: str, current: bytes, base: bytes, theirs: bytes) -> bool:
    try:
        return merge(series, path, current, base, theirs) == current
    except ConflictError:
        return False


def _only_ours(at: Callable[[int], bytes], count: int, committed: str) -> bool:
    """Whether the file differs from the committed one by patches of the series only."""
    for level in range(count):
        try:
            if blob_id(at(level)) == committed:
                return True
        except ConflictError:
            continue
    return False


def _unknown(path: str, current: bytes, problem: str) -> FileState:
    def at(_: int) -> bytes:
        raise TreeError(problem)

    return FileState(path, current, frozenset(), at, problem=problem)
