"""A checkout of an upstream at its pin, from its repository or from a wheel, complete or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from . import gitrepo, wheel
from .blobs import blob_id, git_mode, read_hooked
from .errors import CheckoutError, PatchError
from .lock import SERIES_ROOT, Upstream
from .marker import MARKER, Marker, make_marker, read_marker

SOURCES = ("auto", "git", "wheel")


@dataclass(frozen=True)
class Checkout:
    """Result of :func:`checkout`; ``fresh``: it was not there before; ``note``: why a source was not used."""

    root: Path
    marker: Marker
    fresh: bool
    note: str


def checkout(
    upstream: Upstream,
    root: Path,
    source: str = "auto",
    download: wheel.Download = wheel.download,
    series_root: Path = SERIES_ROOT,
) -> Checkout:
    """Put the sparse paths of ``upstream`` at its pin into ``root``.

    It is built in a folder beside ``root`` and renamed, so an interrupted checkout leaves nothing half-written.

    Args:
        upstream: what to get.
        root: destination: must not exist, be empty, or already be this checkout (then nothing is done).
        source: ``"git"``, ``"wheel"``, or ``"auto"``: git, and if that fails the wheel.
        download: replaces the download of the wheel; ``(wheel, folder) -> file``.
        series_root: where the licence texts are that a wheel lacks, beside the patches.

    Where another command makes the same checkout meanwhile, its result is taken.

    Raises:
        CheckoutError: destination taken or not writable, source not reachable, commit missing, hash or blob id wrong,
            unsafe archive, a licence text that is nowhere to be had.
    """
    if source not in SOURCES:
        raise CheckoutError(f"source = {source!r}: must be one of {', '.join(SOURCES)}")
    existing = _existing(upstream, root)
    if existing is not None:
        return Checkout(root, existing, fresh=False, note="")
    if source == "git":
        return _build(upstream, root, "git", lambda folder: gitrepo.checkout_commit(upstream, folder))
    if source == "wheel":
        return _build(upstream, root, "wheel", lambda folder: _from_wheel(upstream, folder, download, series_root))
    try:
        return checkout(upstream, root, "git")
    except PatchError as failure:
        if upstream.wheel is None:
            raise
        try:
            result = checkout(upstream, root, "wheel", download, series_root)
        except PatchError as second:
            raise CheckoutError(f"neither source works: git: {failure}; wheel: {second}") from None
        return Checkout(result.root, result.marker, result.fresh, note=f"git was tried first: {failure}")


def _existing(upstream: Upstream, root: Path) -> Marker | None:
    try:
        if not root.exists() and not root.is_symlink():
            return None
        if not root.is_dir():
            raise CheckoutError(f"{root} exists and is not a folder")
        if not any(root.iterdir()):
            return None
    except OSError as error:
        raise CheckoutError(f"cannot read {root}: {error.strerror or error}") from None
    marker = read_marker(root)
    if marker is None:
        raise CheckoutError(f"{root} exists and is not empty; choose another folder")
    if (marker.upstream, marker.commit) != (upstream.name, upstream.commit):
        raise CheckoutError(f"{root} already holds {marker.upstream} at {marker.commit[:12]}; choose another folder")
    return marker


def _from_wheel(upstream: Upstream, root: Path, download: wheel.Download, series_root: Path) -> None:
    if upstream.wheel is None:
        raise CheckoutError(f"the lock names no wheel for {upstream.name}; use the source git")
    with TemporaryDirectory() as folder:
        file = download(upstream.wheel, Path(folder))
        wheel.check_hash(file, upstream.wheel)
        wheel.extract(file, upstream, upstream.wheel, root)
    for name in upstream.licence_files:
        kept = series_root / upstream.upstream / name
        if (root / name).is_file():
            continue
        if not kept.is_file():
            raise CheckoutError(f"the wheel of {upstream.name} has no {name}, and there is none beside the patches")
        (root / name).write_bytes(kept.read_bytes())


def _build(upstream: Upstream, root: Path, source: str, fill: Callable[[Path], None]) -> Checkout:
    parent = root.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        building = Path(mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=parent))
    except OSError as error:
        raise CheckoutError(f"cannot make a folder in {parent}: {error.strerror or error}") from None
    try:
        fill(building)
        check_blobs(upstream, building)
        marker = make_marker(upstream, source)
        marker.write(building)
        if source == "git":
            with (building / ".git" / "info" / "exclude").open("a", encoding="utf-8") as exclude:
                exclude.write(f"/{MARKER}\n")  # the tree stays clean for `git status`
        building.chmod(0o755)  # mkdtemp makes it private
        if root.is_dir():
            root.rmdir()  # empty, as was checked; Windows does not rename onto a folder
        building.rename(root)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        other = _existing(upstream, root)
        if other is None:
            raise CheckoutError(f"cannot write {error.filename or root}: {error.strerror or error}") from None
        return Checkout(root, other, fresh=False, note="")
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Checkout(root, marker, fresh=True, note="")


def check_blobs(upstream: Upstream, root: Path) -> None:
    """Compare blob id and mode of every hooked file in ``root`` with the lock.

    Raises:
        CheckoutError: one differs.
        TreeError: one is missing or is a link.
    """
    for path, blob in upstream.blobs.items():
        actual = blob_id(read_hooked(root, path))
        if actual != blob.id:
            raise CheckoutError(f"{path} is blob {actual}, the lock of {upstream.name} says {blob.id}")
        if git_mode(root / path) != blob.mode:
            raise CheckoutError(
                f"{path} has mode {git_mode(root / path)}, the lock of {upstream.name} says {blob.mode}"
            )
