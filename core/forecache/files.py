"""Files that are never half-written."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """``write(partial)`` beside ``path``, then a rename: the file is the old one or the new one, whole, and alone.

    Each call has a partial file of its own, so that threads and processes may write to one path: the last one that
    ends stays. A symbolic link stays one, and the file that it names is replaced; a file that was there keeps its mode.
    What is no regular file (a device, a pipe) cannot be replaced and is written to as it is.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except OSError:  # not there yet; what else is wrong with the path is said where it is opened
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        write(target)
        return
    # the name is cut: with what is added it must not be longer than a file system takes
    partial = target.with_name(f"{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    # never readable by more people than the old file, not even while it is written
    first = 0o666 if mode is None else mode & 0o777 | stat.S_IWUSR
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, first))
    try:
        write(partial)
        if mode is not None and partial.stat().st_mode != mode:
            partial.chmod(stat.S_IMODE(mode))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
