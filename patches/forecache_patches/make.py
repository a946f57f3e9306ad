"""Make a patch of a series from an edited checkout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import gitrepo
from .blobs import blob_id, read_hooked
from .errors import SeriesError, TreeError
from .insertion import insert, split_lines
from .patchfile import FilePatch, Patch, parse_hunks
from .series import Series, write_series


def make(
    series: Series, root: Path, title: str, description: str = "", against: Path | None = None, redo: bool = False
) -> Path:
    """Store what the hooked files in ``root`` have on top of the series as its next patch.

    The edited files must hold the lines of all earlier patches and, besides, inserted lines only.

    Args:
        series: the series to extend.
        root: the edited checkout.
        title: one line; the file is named after it.
        description: further text of the header.
        against: an unedited checkout to take the pinned files from; None: the git objects of ``root``.
        redo: replace the last patch instead of adding one.

    Returns:
        The new patch file.

    Raises:
        SeriesError: a line was changed or removed, or there is nothing to store.
        TreeError: the pinned files cannot be found.
    """
    if redo and not len(series):
        raise SeriesError("there is no patch to make again")
    kept = replace(series, patches=series.patches[:-1] if redo else series.patches)
    pinned = {path: _pinned(series, path, root, against) for path in series.upstream.blobs}
    old = {path: kept.contents(path, content)[-1] for path, content in pinned.items()}
    new = {path: read_hooked(root, path) for path in pinned}
    patch = build_patch(series, len(kept) + 1, title, description, old, new)
    write_series(series.folder, [other.name for other in kept.patches], [patch])
    if redo and series.patches[-1].name != patch.name:
        (series.folder / series.patches[-1].name).unlink()
    return series.folder / patch.name


def build_patch(
    series: Series, number: int, title: str, description: str, old: Mapping[str, bytes], new: Mapping[str, bytes]
) -> Patch:
    """The patch from ``old`` to ``new`` contents by path.

    Raises:
        SeriesError: a line was changed or removed, or nothing was inserted.
    """
    files = tuple(_file_patch(path, old[path], new[path]) for path in old if old[path] != new[path])
    if not files:
        raise SeriesError("the hooked files hold nothing beyond the series: there is nothing to store")
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:50].strip("-") or "patch"
    upstream = series.upstream
    return Patch(f"{number:04d}-{slug}.patch", title, description.strip("\n"), upstream.name, upstream.commit, files)


def _file_patch(path: str, old: bytes, new: bytes) -> FilePatch:
    lines = split_lines(gitrepo.diff(path, old, new, context=0))
    start = next((at for at, line in enumerate(lines) if line.startswith(b"@@ ")), len(lines))
    insertions, used = parse_hunks(path, lines[start:], section_text=True)
    if start + used != len(lines) or insert(old, insertions) != new:
        raise SeriesError(f"{path}: the difference cannot be stored as insertions")
    return FilePatch(path, blob_id(old), blob_id(new), insertions)


def _pinned(series: Series, path: str, root: Path, against: Path | None) -> bytes:
    wanted = series.upstream.blobs[path].id
    content = read_hooked(against, path) if against else gitrepo.blob_content(root, wanted)
    if content is None:
        raise TreeError(f"the pinned {path} is not in the git objects of {root}; name an unedited checkout (--against)")
    if blob_id(content) != wanted:
        raise TreeError(f"{path} in {against} is blob {blob_id(content)}, the lock says {wanted}")
    return content
