"""Writing several files so that either all are new or all are old."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from .errors import PatchError


def write_all(root: Path, contents: Mapping[str, bytes]) -> None:
    """Replace ``root/path`` by its new content, for every path, keeping mode, owner and extended attributes.

    Each file is written beside the old one and renamed over it. If a rename fails, those already done are undone. A
    signal that would end the process waits until all is done: between two renames it would leave a mixture.

    Raises:
        PatchError: a file cannot be written; all files hold what they held before.
    """
    with signals_wait():
        _write_all(root, contents)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other commands from changing files in ``root`` until the end of the block, where the system has such locks.

    Raises:
        PatchError: another one is at work there.
    """
    try:
        import fcntl

        handle = os.open(root, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; a folder that is not there, of which the block will say more
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PatchError(
                    f"another command is changing the files of {root}; try again when it is done"
                ) from None
        yield
    finally:
        os.close(handle)


def tidy(root: Path, paths: Iterable[str]) -> None:
    """Remove the temporary files that a killed :func:`write_all` left beside the files.

    To be called inside :func:`alone` only: there no other command is using them.
    """
    for path in paths:
        name = re.compile(re.escape(f".{Path(path).name}.") + r"\w{8}\.partial")
        with contextlib.suppress(OSError):
            for file in (root / path).parent.iterdir():
                if name.fullmatch(file.name):
                    file.unlink()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the end of the block; in the main thread, which alone may do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, frame: Any) -> None:
        came.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # None: a handler that was not set from Python, which could not be set again
    held = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    try:
        for number in held:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _write_all(root: Path, contents: Mapping[str, bytes]) -> None:
    ready: list[tuple[Path, Path]] = []
    undo: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            target = root / path
            undo.append((_beside(target, target.read_bytes()), target))
            ready.append((_beside(target, content), target))
        for number, (new, target) in enumerate(ready):
            try:
                new.replace(target)
            except OSError:
                _restore(undo, number)
                raise
    except OSError as error:
        raise PatchError(
            f"cannot write {error.filename or root}: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        for temporary, _ in (*ready, *undo):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _restore(undo: list[tuple[Path, Path]], count: int) -> None:
    """Undo the first ``count`` replacements.

    Raises:
        PatchError: one cannot be undone; its old content stays beside it.
    """
    for old, target in undo[:count]:
        try:
            old.replace(target)
        except OSError as error:
            undo.remove((old, target))  # so that it is not cleaned up
            raise PatchError(f"cannot restore {target} ({error.strerror}); its old content is in {old}") from None


def _beside(target: Path, content: bytes) -> Path:
    """A temporary file in the folder of ``target``, with its mode, owner and attributes and this content, on disk."""
    handle, name = mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):  # only root may give files away
                os.chown(temporary, target.stat().st_uid, target.stat().st_gid)
        shutil.copystat(target, temporary)
        os.utime(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_new(file: Path, content: bytes) -> None:
    """Write one file that may not exist yet, folders included: complete, or not at all.

    Raises:
        PatchError: it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        raise PatchError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
