"""Three-way merges with ``git merge-file``, for forks whose hooked file has moved on from the pinned blob."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import ConflictError, PatchError
from .gitrepo import run
from .insertion import split_lines
from .series import Series

_MARKER_SIZE = 43  # no source file has a line of that many equal signs followed by our labels
_OURS, _BASE, _THEIRS = "forecache-fork", "forecache-pinned", "forecache-patched"


def merge(series: Series, path: str, current: bytes, base: bytes, theirs: bytes) -> bytes:
    """Carry the change from ``base`` to ``theirs`` over to ``current``.

    Raises:
        ConflictError: the fork changed lines next to ours; names the hunk.
        PatchError: git failed, for instance on a binary file.
    """
    with TemporaryDirectory() as folder:
        for name, content in (("ours", current), ("base", base), ("theirs", theirs)):
            Path(folder, name).write_bytes(content)
        labels = ["-L", _OURS, "-L", _BASE, "-L", _THEIRS]
        status, stdout, reason = run(
            ["merge-file", "-p", "-q", "--diff3", f"--marker-size={_MARKER_SIZE}", *labels, "ours", "base", "theirs"],
            Path(folder),
        )
    if status == 0:
        _check_python(path, current, stdout)
        return stdout
    if 0 < status < 128:
        raise ConflictError(f"{path}: {_explain(series, path, stdout)}; nothing was changed")
    raise PatchError(f"git merge-file failed on {path}: {reason}")


def _explain(series: Series, path: str, merged: bytes) -> str:
    """Which of our hunks lies in the first conflict of ``merged``, and what the fork has there."""
    ours, theirs, total = _first_conflict(merged)
    more = f" (and {total - 1} more)" if total > 1 else ""
    fork = next((line.strip() for line in ours if line.strip()), b"").decode("utf-8", "replace")
    why = (
        f"the fork changed the lines next to it, it has {fork!r} there"
        if fork
        else "the fork removed the lines next to it"
    )
    for patch in series.patches:
        for file in patch.files:
            for number, insertion in enumerate(file.insertions, start=1):
                first = next((line for line in insertion.lines if line.strip()), insertion.lines[0])
                if file.path == path and first in theirs:
                    text = first.strip().decode("utf-8", "replace")
                    return f"{patch.name} hunk {number} ({text!r}) conflicts{more}: {why}"
    return f"a hunk conflicts{more}: {why}"


def _first_conflict(merged: bytes) -> tuple[list[bytes], list[bytes], int]:
    """Lines of the fork, and lines of base and patch, in the first conflict; number of conflicts."""
    marks = {
        b"<" * _MARKER_SIZE + f" {_OURS}".encode(): "ours",
        b"|" * _MARKER_SIZE + f" {_BASE}".encode(): "theirs",
        b"=" * _MARKER_SIZE: "theirs",
        b">" * _MARKER_SIZE + f" {_THEIRS}".encode(): "",
    }
    found: dict[str, list[bytes]] = {"ours": [], "theirs": []}
    side, total = "", 0
    for line in split_lines(merged):
        bare = line.rstrip(b"\r\n")
        if bare in marks:
            total += marks[bare] == "ours"
            side = marks[bare]
        elif side and total == 1:
            found[side].append(line)
    return found["ours"], found["theirs"], total


def _check_python(path: str, before: bytes, after: bytes) -> None:
    """A merge without conflicts can still be wrong; at least what was Python must stay Python."""
    if path.endswith(".py") and compiles(before) and not compiles(after):
        raise ConflictError(f"{path}: the three-way merge is not valid Python; nothing was changed")


def compiles(source: bytes) -> bool:
    """Whether ``source`` is Python that this interpreter can compile. Nothing is run."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<patched>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    return True
