"""One stored patch: an insert-only unified diff without context, behind a header. It holds our lines and no others.

Subject: <title>
Upstream: <name>
Commit: <pin, 40 hex digits>
Pre-image: <path> <blob id>         one pair a file
Post-image: <path> <blob id>

<description>

--- a/<path>
+++ b/<path>
@@ -<a>,0 +<b>,<n> @@               n lines after line a; b = a + 1 + lines inserted further up
+<line>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SeriesError
from .insertion import Insertion, split_lines
from .lock import is_inside

_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@([^\n]*)\n?")
_ID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FilePatch:
    """What a patch does to one file: blob ids before and after, and the insertions in order."""

    path: str
    pre: str
    post: str
    insertions: tuple[Insertion, ...]


@dataclass(frozen=True)
class Patch:
    """One patch of a series; ``name`` is its file name."""

    name: str
    title: str
    description: str
    upstream: str
    commit: str
    files: tuple[FilePatch, ...]


def parse_patch(name: str, content: bytes) -> Patch:
    """Parse and validate.

    Raises:
        SeriesError: a header is missing, a hunk holds context or removed lines, counts or positions do not agree.
    """
    lines = split_lines(content)
    start = next((i for i, line in enumerate(lines) if line.startswith(b"--- ")), len(lines))
    try:
        head = b"".join(lines[:start]).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise SeriesError(f"{name}: the header is not UTF-8") from None
    blank = head.index("") if "" in head else len(head)
    headers: dict[str, list[str]] = {}
    for line in head[:blank]:
        key, separator, value = line.partition(": ")
        if not separator or key not in ("Subject", "Upstream", "Commit", "Pre-image", "Post-image"):
            raise SeriesError(f"{name}: unknown header line {line!r}")
        headers.setdefault(key, []).append(value)
    for key in ("Subject", "Upstream", "Commit"):
        if len(headers.get(key, [])) != 1 or not headers[key][0].strip():
            raise SeriesError(f"{name}: needs exactly one header line '{key}: ...'")
    pre, post = (_images(name, key, headers.get(key, [])) for key in ("Pre-image", "Post-image"))
    changes = dict(_files(name, lines[start:]))
    if not changes or not pre.keys() == post.keys() == changes.keys():
        raise SeriesError(f"{name}: the files of the diff must be those of the headers Pre-image and Post-image")
    return Patch(
        name=name,
        title=headers["Subject"][0],
        description="\n".join(head[blank:]).strip("\n"),
        upstream=headers["Upstream"][0],
        commit=headers["Commit"][0],
        files=tuple(FilePatch(path, pre[path], post[path], changes[path]) for path in changes),
    )


def _images(name: str, key: str, values: Sequence[str]) -> dict[str, str]:
    images: dict[str, str] = {}
    for value in values:
        path, _, blob = value.rpartition(" ")
        if not is_inside(path) or path in images or not _ID.fullmatch(blob):
            raise SeriesError(
                f"{name}: '{key}: {value}' must be '{key}: <path> <blob id of 40 hex digits>', once a path"
            )
        images[path] = blob
    return images


def _files(name: str, lines: Sequence[bytes]) -> list[tuple[str, tuple[Insertion, ...]]]:
    files: list[tuple[str, tuple[Insertion, ...]]] = []
    at = 0
    while at < len(lines):
        old = lines[at].rstrip(b"\n").decode("utf-8", "replace")
        new = lines[at + 1].rstrip(b"\n").decode("utf-8", "replace") if at + 1 < len(lines) else ""
        path = old.removeprefix("--- a/")
        if not is_inside(path) or path == old or new != f"+++ b/{path}" or path in dict(files):
            raise SeriesError(f"{name}: {old!r}, {new!r} must be '--- a/PATH', '+++ b/PATH', once a path")
        insertions, used = parse_hunks(f"{name}: {path}", lines[at + 2 :])
        files.append((path, insertions))
        at += 2 + used
    return files


def hunk_head(line: bytes) -> tuple[int, int, int, int, bytes] | None:
    """``a, b, c, d`` of ``@@ -a,b +c,d @@`` and what stands behind it; None: another line."""
    match = _HUNK.fullmatch(line)
    if match is None:
        return None
    a, b, c, d = (1 if group is None else int(group) for group in match.groups()[:4])
    return a, b, c, d, match[5]


def parse_hunks(where: str, lines: Sequence[bytes], section_text: bool = False) -> tuple[tuple[Insertion, ...], int]:
    """Hunks from the front of ``lines``: the insertions, and how many lines they took.

    Args:
        where: for messages.
        lines: lines with their ends.
        section_text: accept what git writes behind the second ``@@`` (a line of the file: never in a stored patch).

    Raises:
        SeriesError: anything but insertions in ascending order.
    """
    insertions: list[Insertion] = []
    at = shift = 0
    last = -1
    while at < len(lines) and (head := hunk_head(lines[at])):
        after, removed, target, count, behind = head
        if removed:
            raise SeriesError(
                f"{where}: line {after} of the pre-image is changed or removed; a patch may only insert lines"
            )
        if behind and not section_text:
            raise SeriesError(f"{where}: text behind the position of the hunk after line {after}")
        body = lines[at + 1 : at + 1 + count]
        for line in body:
            if not line.startswith(b"+"):
                raise SeriesError(f"{where}: the hunk after line {after} holds a line that is not inserted (context?)")
            if not line.endswith(b"\n"):
                raise SeriesError(f"{where}: the last line of the hunk after line {after} is cut off")
        if not count or len(body) != count or after <= last or target != after + 1 + shift:
            raise SeriesError(f"{where}: the hunk after line {after} has a wrong position or number of lines")
        at += 1 + count
        if at < len(lines) and lines[at].startswith(b"\\"):
            raise SeriesError(
                f"{where}: the hunk after line {after} lacks the newline at its end; a patch adds whole lines"
            )
        insertions.append(Insertion(after, tuple(line[1:] for line in body)))
        last, shift = after, shift + count
    if not insertions:
        found = lines[0].rstrip().decode("utf-8", "replace") if lines else "the end"
        raise SeriesError(f"{where}: expected a hunk '@@ -a,0 +b,n @@', found {found!r}")
    return tuple(insertions), at


def format_patch(patch: Patch) -> bytes:
    """The text of a patch; :func:`parse_patch` reads it back.

    Raises:
        SeriesError: title or description cannot be stored.
    """
    if not patch.title.strip() or "\n" in patch.title:
        raise SeriesError(f"title = {patch.title!r}: must be one line of text")
    head = [f"Subject: {patch.title}", f"Upstream: {patch.upstream}", f"Commit: {patch.commit}"]
    for file in patch.files:
        head += [f"Pre-image: {file.path} {file.pre}", f"Post-image: {file.path} {file.post}"]
    text = "\n".join([*head, "", *([patch.description.strip("\n"), ""] if patch.description.strip() else [])]) + "\n"
    parts = [text.encode()]
    for file in patch.files:
        parts.append(f"--- a/{file.path}\n+++ b/{file.path}\n".encode())
        shift = 0
        for insertion in file.insertions:
            count = len(insertion.lines)
            parts.append(f"@@ -{insertion.after},0 +{insertion.after + 1 + shift},{count} @@\n".encode())
            parts += [b"+" + line for line in insertion.lines]
            shift += count
    content = b"".join(parts)
    if parse_patch(patch.name, content) != patch:  # for instance a description with a line '--- '
        raise SeriesError(f"{patch.name}: title or description holds text that cannot be stored in a patch")
    return content
