"""Move a pin: the series, re-anchored on the hooked files of another commit. The old pin stays."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from . import gitrepo
from .errors import CheckoutError
from .lock import MODES, Blob, Upstream
from .make import build_patch
from .merge import Carrier
from .patchfile import Patch
from .series import Series, write_series


@dataclass(frozen=True)
class Bump:
    """Where the new series is, the upstream at its new pin, and the hooked files that differ from the old pin."""

    folder: Path
    upstream: Upstream
    moved: tuple[str, ...]


def bump(series: Series, commit: str, root: Path, output: Path) -> Bump:
    """Write the series for ``commit`` into ``output/<first 12 digits>``.

    If the hooked files are the same, only the pin changes; else each patch is carried over by a three-way merge.

    Args:
        series: the series at the old pin.
        commit: full id, 40 hex digits.
        root: a git checkout of the upstream; the commit is fetched if it is not there.
        output: folder that gets the new pin folder.

    Raises:
        CheckoutError: the commit or a hooked file is not there, or the pin folder exists.
        ConflictError: a patch does not fit the new file. Nothing is written.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise CheckoutError(f"commit = {commit!r}: must be a full commit id, 40 lower-case hex digits")
    if not gitrepo.is_repository(root):
        raise CheckoutError(f"{root} is not a git checkout; a pin is moved with one (--source git)")
    if not gitrepo.has_commit(root, commit):
        gitrepo.fetch_commit(root, commit)
    old = series.upstream
    blobs = {path: _blob(root, commit, path) for path in old.blobs}
    new = replace(series, upstream=replace(old, commit=commit, blobs=blobs, wheel=None))
    folder = output / new.upstream.pin
    if folder.exists():
        raise CheckoutError(f"{folder} exists; old pins are not overwritten")
    moved = tuple(path for path in old.blobs if blobs[path].id != old.blobs[path].id)
    patches = [replace(patch, commit=commit) for patch in series.patches] if not moved else _reanchor(series, new, root)
    write_series(folder, [], patches)
    return Bump(folder, new.upstream, moved)


def lock_lines(upstream: Upstream) -> str:
    """What changes in the table of ``upstream`` in the lock: commit and blobs."""
    blobs = (f'"{path}" = {{ id = "{blob.id}", mode = "{blob.mode}" }}' for path, blob in upstream.blobs.items())
    return "\n".join([f'commit = "{upstream.commit}"', "", f"[{upstream.name}.blobs]", *blobs])


def _reanchor(series: Series, new: Series, root: Path) -> list[Patch]:
    blobs = series.upstream.blobs
    carriers = {path: Carrier(series, path, _content(root, blob.id, path)) for path, blob in blobs.items()}
    forks = {path: _content(root, blob.id, path) for path, blob in new.upstream.blobs.items()}
    current, patches = forks, []
    for level, patch in enumerate(series.patches, start=1):
        merged = {path: carriers[path].put(fork, level) for path, fork in forks.items()}
        made = build_patch(new, level, patch.title, patch.description, current, merged)
        patches.append(replace(made, name=patch.name))
        current = merged
    return patches


def _blob(root: Path, commit: str, path: str) -> Blob:
    mode, blob = gitrepo.entry(root, commit, path)
    if mode not in MODES:
        raise CheckoutError(f"{path} is not there at {commit[:12]}" + (", or no plain file" if blob else ""))
    return Blob(blob, mode)


def _content(root: Path, blob: str, path: str) -> bytes:
    content = gitrepo.blob_content(root, blob)
    if content is None:
        raise CheckoutError(f"{path}: blob {blob} is not in the git objects of {root}")
    return content
