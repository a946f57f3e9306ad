"""Upstream files out of a wheel: download, hash, and extraction of nothing but what the lock names."""

from __future__ import annotations

import hashlib
import lzma
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .errors import CheckoutError
from .lock import Upstream, Wheel, is_inside

Download = Callable[[Wheel, Path], Path]

LIMIT = 256 << 20  #: bytes that the members to be extracted may have in all: they are source files
# what zipfile raises for a damaged, encrypted or unknown member
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError,
)  # fmt: skip


def download(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel from the Python index with pip into ``folder`` (pip's own settings apply).

    Raises:
        CheckoutError: pip is missing, the index is not reachable, or has no such wheel.
    """
    return fetch(f"{wheel.package}=={wheel.version}", folder)


def fetch(requirement: str, folder: Path) -> Path:
    """As :func:`download`, for any requirement; a bare name gets the newest version."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Never a source archive: pip would run its build. The Python version does not matter, only text is read.
    command += ["--no-binary", ":none:", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
    result = subprocess.run([*command, requirement], capture_output=True, text=True)
    files = sorted(folder.glob("*.whl"))
    if result.returncode or len(files) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip() and "WARNING" not in line]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no wheel")
        raise CheckoutError(f"cannot download {requirement} from the Python index: {reason.strip()}")
    return files[0]


def check_hash(file: Path, wheel: Wheel) -> None:
    """Compare the sha256 of ``file`` with the lock.

    Raises:
        CheckoutError: they differ.
    """
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != wheel.sha256:
        raise CheckoutError(f"{file.name} has sha256 {actual}, the lock says {wheel.sha256}")


def extract(file: Path, upstream: Upstream, wheel: Wheel, root: Path) -> None:
    """Write the sparse paths and licence files that lie below the prefix into ``root``, with the modes of the lock.

    Every member of the archive is examined, and those to be extracted are read, before the first file is written.

    Raises:
        CheckoutError: not a wheel, or a damaged one; a member is absolute, holds ``..`` or is a link; two members for
            one file; more than :data:`LIMIT` bytes; nothing lies below the prefix; a file that cannot be written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            contents = {path: archive.read(member) for path, member in _plan(archive, upstream, wheel)}
    except DAMAGED as error:
        raise CheckoutError(f"{file.name} is not a wheel, or a damaged one: {error}; nothing was extracted") from None
    except OSError as error:
        raise CheckoutError(f"cannot read {file}: {error.strerror or error}") from None
    try:
        for path, content in contents.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            blob = upstream.blobs.get(path)
            if blob is not None and blob.mode == "100755":
                target.chmod(target.stat().st_mode | 0o111)
    except OSError as error:  # also a member that lies below another one
        raise CheckoutError(f"cannot write {error.filename or root}: {error.strerror or error}") from None


def _plan(archive: zipfile.ZipFile, upstream: Upstream, wheel: Wheel) -> list[tuple[str, zipfile.ZipInfo]]:
    """Pairs (path in the checkout, member), after every member has been found harmless."""
    plan: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        # The name as stored: zipfile cuts at NUL and, on Windows, turns backslashes round, for `filename`.
        name = member.orig_filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or ".." in parts or ":" in name or "\0" in name:
            raise CheckoutError(f"{_name(archive)} holds a member that points outside, {name!r}; nothing was extracted")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise CheckoutError(f"{_name(archive)} holds a link, {name!r}; nothing was extracted")
        path = _path(name, upstream, wheel)
        if path is None or name.endswith("/"):
            continue
        if path in plan or not is_inside(path):
            raise CheckoutError(f"{_name(archive)} holds two members for one file, {name!r}; nothing was extracted")
        plan[path] = member
    if all(member.orig_filename in wheel.licence_files for member in plan.values()):
        raise CheckoutError(f"{_name(archive)} holds nothing below {wheel.prefix}")
    size = sum(member.file_size for member in plan.values())  # zipfile reads no more than that of a member
    if size > LIMIT:
        raise CheckoutError(
            f"{_name(archive)} would extract to {size} bytes, of {LIMIT} allowed; nothing was extracted"
        )
    return list(plan.items())


def _path(name: str, upstream: Upstream, wheel: Wheel) -> str | None:
    """Where the member ``name`` belongs in the checkout; None: nowhere."""
    if name in wheel.licence_files:
        return PurePosixPath(name).name
    below = name.removeprefix(f"{wheel.prefix}/")
    path = f"{wheel.root}/{below}" if wheel.root else below
    inside = below != name and any(path == one or path.startswith(f"{one}/") for one in upstream.sparse)
    return path if inside else None


def _name(archive: zipfile.ZipFile) -> str:
    return Path(archive.filename or "the wheel").name
