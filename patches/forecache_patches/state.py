"""In which state the hooked files of a checkout are: the level (patches applied), exactly or merged into a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import gitrepo
from .blobs import blob_id, read_hooked
from .errors import ConflictError, TreeError
from .marker import read_marker
from .merge import Carrier
from .series import Series


@dataclass(frozen=True)
class FileState:
    """One hooked file.

    ``levels`` are the levels at which the file has this content: more than one where a patch does not touch it, none
    where the tool does not know the content (``problem`` says why). ``at(k)`` is its content with the first k patches.
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
        levels = (f"{file.path} has {max(file.levels)}" for file in self.files if file.levels)
        return self.unknown or (
            f"the hooked files do not have the same number of patches: {', '.join(levels)}; apply or revert again"
        )

    @property
    def unknown(self) -> str:
        """Why files are in no state that the tool knows, ``""`` if all are in one."""
        return "; ".join(file.problem for file in self.files if file.problem)


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
        return _forked(root, Carrier(series, path, original), current)
    why = "its history does not hold that blob" if gitrepo.is_repository(root) else "this is not a git repository"
    return _unknown(
        path, current, f"{path} is blob {actual}, the lock says {pinned}, and {why}, so nothing can be merged"
    )


def _forked(root: Path, carrier: Carrier, current: bytes) -> FileState:
    path, images = carrier.path, carrier.images
    if _has_crlf(current) != _has_crlf(images[0]):
        ends = [r"\r\n" if _has_crlf(content) else r"\n" for content in (current, images[0])]
        problem = f"{path} has line ends {ends[0]}, the pinned file {ends[1]}; check it out with core.autocrlf=false"
        return _unknown(path, current, problem)
    found = carrier.find(current)
    if gitrepo.is_dirty(root, path) and not (found and _only_ours(carrier, found[1], root)):
        return _unknown(path, current, f"{path} has changes that are not committed; commit or undo them first")
    if found is None:
        name = carrier.remains(current)
        return _unknown(
            path, current, f"{path} has lines of {name}, but not as the patches put them; take them out first"
        )
    level, fork = found
    levels = frozenset(k for k, image in enumerate(images) if image == images[level])

    def at(wanted: int) -> bytes:
        return current if wanted in levels else carrier.put(fork, wanted)

    return FileState(path, current, levels, at, merged=True)


def _has_crlf(content: bytes) -> bool:
    return 2 * content.count(b"\r\n") > content.count(b"\n")


def _only_ours(carrier: Carrier, fork: bytes, root: Path) -> bool:
    """Whether the file differs from the committed one by patches of the series only."""
    committed = gitrepo.entry(root, "HEAD", carrier.path)[1]
    for level in range(len(carrier.images)):
        try:
            if blob_id(carrier.put(fork, level)) == committed:
                return True
        except ConflictError:
            continue
    return False


def _unknown(path: str, current: bytes, problem: str) -> FileState:
    def at(_: int) -> bytes:
        raise TreeError(problem)

    return FileState(path, current, frozenset(), at, problem=problem)
