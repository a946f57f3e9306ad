"""Git blob ids, computed without git, and the reading of hooked files."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from .errors import TreeError

LIMIT = 1 << 20  #: bytes that a hooked file may have: it is a source file


def blob_id(content: bytes) -> str:
    """The id that git gives to a file, 40 hex digits: sha1 of "blob", the length in bytes, a NUL, and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def git_mode(path: Path) -> str:
    """``"100755"`` for a file that its owner may execute, else ``"100644"``."""
    return "100755" if path.stat().st_mode & stat.S_IXUSR else "100644"


def read_hooked(root: Path, path: str) -> bytes:
    """Content of ``root/path``.

    Raises:
        TreeError: the file is missing, is a link, lies outside ``root`` (through a linked folder), cannot be read, or
            has more than :data:`LIMIT` bytes.
    """
    file = root / path
    try:
        if file.is_symlink() or not file.resolve().is_relative_to(root.resolve()):
            raise TreeError(f"{path} is a link or lies behind one; patches go to plain files inside {root} only")
        if not file.exists():
            raise TreeError(f"{path} is not in {root}; is this the root folder of the checkout?")
        if not file.is_file():
            raise TreeError(f"{path} in {root} is no plain file")
        if (size := file.stat().st_size) > LIMIT:
            raise TreeError(f"{path} has {size} bytes, of {LIMIT} allowed; it is no source file")
        return file.read_bytes()
    except OSError as error:
        raise TreeError(f"cannot read {file}: {error.strerror or error}") from None
    except RuntimeError:  # of resolve(), before Python 3.13
        raise TreeError(f"{path} lies behind a link that leads to itself") from None
