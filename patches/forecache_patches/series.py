"""A series: the patches of one upstream at one pin, in the order of the file ``series``, and the chain of blob ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .blobs import blob_id
from .errors import SeriesError
from .insertion import insert, remove
from .lock import SERIES_ROOT, Upstream
from .patchfile import FilePatch, Patch, format_patch, parse_patch
from .writing import write_new

SERIES_FILE = "series"
_NUMBERED = re.compile(r"(\d{4})-[a-z0-9][a-z0-9.-]*\.patch")


@dataclass(frozen=True)
class Series:
    """``patches`` in order; level k of a tree means: the first k of them are applied."""

    upstream: Upstream
    folder: Path
    patches: tuple[Patch, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def step(self, level: int, path: str) -> FilePatch | None:
        """What patch ``level`` (from 1) does to ``path``."""
        return next((file for file in self.patches[level - 1].files if file.path == path), None)

    def ids(self, path: str) -> list[str]:
        """Blob id of ``path`` at levels 0 to n; the first is that of the lock."""
        chain = [self.upstream.blobs[path].id]
        for level in range(1, len(self) + 1):
            step = self.step(level, path)
            chain.append(step.post if step else chain[-1])
        return chain

    def contents(self, path: str, known: bytes, level: int = 0) -> list[bytes]:
        """Content of ``path`` at levels 0 to n, from its content at one level.

        Raises:
            SeriesError: a computed content has not the blob id that the patches record.
        """
        ids = self.ids(path)
        chain: list[bytes] = [known] * (len(self) + 1)
        for at in range(level, 0, -1):
            step = self.step(at, path)
            chain[at - 1] = remove(chain[at], step.insertions) if step else chain[at]
        for at in range(level + 1, len(self) + 1):
            step = self.step(at, path)
            chain[at] = insert(chain[at - 1], step.insertions) if step else chain[at - 1]
        for at, content in enumerate(chain):
            if blob_id(content) != ids[at]:
                name = self.patches[at - 1].name if at else "the lock"
                raise SeriesError(f"{path} at level {at} is blob {blob_id(content)}, {name} says {ids[at]}")
        return chain


def load_series(upstream: Upstream, root: Path = SERIES_ROOT) -> Series:
    """Read the series of ``upstream`` below ``root`` and validate it; empty if there is none.

    Raises:
        SeriesError: a patch is not valid, files and the file ``series`` disagree, or the blob ids do not chain.
    """
    folder = upstream.series_folder(root)
    names = _names(folder)
    patches = tuple(parse_patch(name, _read(folder / name)) for name in names)
    _check_chain(upstream, patches)
    return Series(upstream, folder, patches)


def write_series(folder: Path, kept: Sequence[str], new: Sequence[Patch]) -> None:
    """Write the ``new`` patches into ``folder`` and list them behind those that are ``kept``.

    Raises:
        SeriesError: a patch cannot be stored; nothing was written. PatchError: a file cannot be written.
    """
    texts = {patch.name: format_patch(patch) for patch in new}
    for name, text in texts.items():
        write_new(folder / name, text)
    write_new(folder / SERIES_FILE, "".join(f"{name}\n" for name in (*kept, *texts)).encode())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SeriesError(f"cannot read {file}: {error.strerror or error}") from None


def _names(folder: Path) -> list[str]:
    listing = folder / SERIES_FILE
    try:
        lines = _read(listing).decode("utf-8").splitlines() if listing.is_file() else []
    except UnicodeDecodeError:
        raise SeriesError(f"{folder.name}/{SERIES_FILE} is not UTF-8") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    present = {file.name for file in folder.glob("*.patch")}
    if len(set(names)) != len(names) or set(names) != present:
        odd = sorted(set(names) ^ present) or sorted(name for name in names if names.count(name) > 1)
        raise SeriesError(f"{folder.name}/{SERIES_FILE} and the patches beside it disagree on {', '.join(odd)}")
    for number, name in enumerate(names, start=1):
        match = _NUMBERED.fullmatch(name)
        if match is None or int(match.group(1)) != number:
            raise SeriesError(
                f"{folder.name}/{SERIES_FILE}: {name} in place {number} must be called {number:04d}-*.patch"
            )
    return names


def _check_chain(upstream: Upstream, patches: tuple[Patch, ...]) -> None:
    current = {path: blob.id for path, blob in upstream.blobs.items()}
    for patch in patches:
        if (patch.upstream, patch.commit) != (upstream.name, upstream.commit):
            raise SeriesError(f"{patch.name} is for {patch.upstream} at {patch.commit[:12]}, not {_at(upstream)}")
        for file in patch.files:
            if file.path not in current:
                raise SeriesError(f"{patch.name}: {file.path} is not a hooked file of {upstream.name} in the lock")
            if file.pre != current[file.path]:
                expected = current[file.path]
                raise SeriesError(
                    f"{patch.name}: pre-image of {file.path} is {file.pre}, but {expected} comes before it"
                )
            current[file.path] = file.post


def _at(upstream: Upstream) -> str:
    return f"{upstream.name} at {upstream.pin}"
