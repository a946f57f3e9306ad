"""Edits: lines of an upstream file replaced by ours, without a line of the upstream in our repository.

An edit names a file, and for every version of it that is supported (its git blob id) the lines that go; ours come in
their place. The sha256 of the lines that go guards the numbers. On file, ``edits.toml``::

    [[edit]]
    path = "src/pkg/loop.py"
    insert = '''
        x += 2 * i
    '''
    [edit.at]
    <blob id> = { delete = "12-13", sha256 = "<of lines 12 and 13>" }
    <another> = { delete = "15-16", sha256 = "<the same>" }     # or { after = 11 }: nothing goes
    <a third> = { absent = "fixed there since 1.2" }            # this version is left as it is, for a reason
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import gitrepo
from .blobs import blob_id
from .check import repeated
from .errors import DraftError
from .insertion import split_lines
from .lock import Table, is_inside, parse_toml
from .patchfile import hunk_head

_RANGE = re.compile(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?", re.ASCII)  # Python converts no endless row of digits


@dataclass(frozen=True)
class Place:
    """Lines ``after + 1 .. after + count`` of one blob go; ``sha256`` is theirs, ``""`` if they are not guarded.

    With a text in ``absent`` nothing of the edit is done there.
    """

    after: int
    count: int
    sha256: str
    absent: str = ""


@dataclass(frozen=True)
class Edit:
    """Our ``lines`` in place of others of ``path``; ``places`` by blob id."""

    path: str
    places: Mapping[str, Place]
    lines: bytes


def parse_edits(name: str, text: str) -> tuple[Edit, ...]:
    """Read the text of an ``edits.toml``.

    Raises:
        DraftError: not TOML, or a key that is missing, unknown or holds a value that is not allowed.
    """
    document = Table(name, parse_toml(name, text.encode("utf-8", "surrogatepass"), DraftError), DraftError)
    entries = document.rest.pop("edit", None)
    document.finish("edit")
    if not isinstance(entries, list) or not entries:
        raise document.refuse("edit", entries, "a list of tables [[edit]]")
    return tuple(_edit(Table(f"{name}: edit {n}", entry, DraftError)) for n, entry in enumerate(entries, start=1))


def _edit(table: Table) -> Edit:
    path = table.text("path", r"[^\r\n]+", "a path of the repository")
    if not is_inside(path):
        raise table.refuse("path", path, "a path of the repository, with / and without ..")
    lines = table.text("insert", r"(?s)(.*\n)?", "whole lines, or nothing").encode()
    places = {}
    at = table.table("at")
    table.finish("path, insert, at")
    for blob in list(at.rest):
        if not re.fullmatch(r"[0-9a-f]{40}", blob):
            raise DraftError(f"{at.where}.{blob}: must be a git blob id, 40 lower-case hex digits")
        places[blob] = _place(at.table(blob), lines)
    if not places:
        raise DraftError(f"{at.where} = {{}}: must name at least one blob id")
    return Edit(path, places, lines)


def _place(table: Table, lines: bytes) -> Place:
    if "absent" in table.rest:
        reason = table.text("absent", r"[^\r\n\"]+", "why this version needs nothing")
        table.finish("absent")
        return Place(0, 0, "", reason)
    if "after" in table.rest:
        after = table.rest.pop("after")
        table.finish("after, or delete and sha256")
        if type(after) is not int or after < 0 or not lines:
            raise table.refuse("after", after, "the number of a line, with lines to insert")
        return Place(after, 0, "")
    given = table.text("delete", r"\d+(-\d+)?", "'m-n' or 'm', lines counted from 1")
    match = _RANGE.fullmatch(given)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < first <= last:
        raise table.refuse("delete", given, "'m-n' or 'm', lines counted from 1")
    sha256 = table.text("sha256", r"[0-9a-f]{64}|", "64 lower-case hex digits", default="")
    table.finish("after, or delete and sha256")
    return Place(first - 1, last - first + 1, sha256)


def format_edits(edits: Sequence[Edit]) -> str:
    """The text of an ``edits.toml``; :func:`parse_edits` reads it back.

    Raises:
        DraftError: lines, a path or a reason that the file cannot hold.
    """
    parts = []
    for edit in edits:
        try:
            text = edit.lines.decode()
        except UnicodeDecodeError:
            raise DraftError(f"{edit.path}: a line to insert is not UTF-8") from None
        if "'''" in text or "\r" in text:
            raise DraftError(f"{edit.path}: a line to insert holds ''' or a carriage return, which cannot be stored")
        text = f"'''\n{text}'''" if text else '""'
        head = f'[[edit]]\npath = "{edit.path}"\ninsert = {text}\n[edit.at]\n'
        parts.append(head + "".join(f"{blob} = {_format(place)}\n" for blob, place in edit.places.items()))
    content = "\n".join(parts)
    try:
        same = parse_edits("edits", content) == tuple(edits)
    except DraftError:
        same = False
    if not same:  # for instance a form feed in a line, a quotation mark in a path
        names = ", ".join(dict.fromkeys(edit.path for edit in edits))
        raise DraftError(f"{names}: a path, a line to insert or a reason holds a character that cannot be stored")
    return content


def _format(place: Place) -> str:
    if place.absent:
        return f'{{ absent = "{place.absent}" }}'
    if not place.count:
        return f"{{ after = {place.after} }}"
    last = f"-{place.after + place.count}" if place.count > 1 else ""
    return f'{{ delete = "{place.after + 1}{last}", sha256 = "{place.sha256}" }}'


def edit_file(path: str, content: bytes, edits: Sequence[Edit]) -> bytes:
    """``content`` of ``path`` with those of ``edits`` that are for it.

    Raises:
        DraftError: the blob id is none that an edit knows, the lines that go are not the expected ones, or edits
            overlap.
    """
    blob = blob_id(content)
    lines = split_lines(content)
    result: list[bytes] = []
    done = 0
    for edit in (edit for edit in edits if edit.path == path):
        if blob not in edit.places:
            known = ", ".join(known[:12] for known in edit.places)
            raise DraftError(f"{path} is blob {blob[:12]}, the edits are for {known}: they have to be anchored anew")
        place = edit.places[blob]
        if place.absent:
            continue
        end = place.after + place.count
        if place.after < done or end > len(lines):
            raise DraftError(f"{path}: lines {place.after + 1} to {end} overlap an earlier edit or lie behind the end")
        gone = b"".join(lines[place.after : end])
        if place.sha256 and _sha256(gone) != place.sha256:
            raise DraftError(f"{path}: lines {place.after + 1} to {end} have not the sha256 that the edit expects")
        result += [*lines[done : place.after], edit.lines]
        done = end
    return b"".join(result + lines[done:])


def make_edits(path: str, old: bytes, new: bytes, others: Sequence[bytes] = ()) -> tuple[Edit, ...]:
    """The edits from ``old`` to ``new``, anchored also in ``others``, further versions of ``old``.

    Raises:
        DraftError: a version has not the lines that go, or not their neighbours; a line that goes comes again with
            other white space, which would store it.
    """
    for after, count, lines in _hunks(path, old, new):
        if again := repeated(split_lines(lines), split_lines(old)[after : after + count]):
            raise DraftError(f"{path}: {again[0].decode()!r} goes and comes with other white space; leave it as it is")
    made = tuple(
        Edit(path, {blob_id(old): _place_at(split_lines(old), after, count)}, lines)
        for after, count, lines in _hunks(path, old, new)
    )
    if edit_file(path, old, made) != new:
        raise DraftError(f"{path}: the difference cannot be stored as edits of whole lines")
    for other in others:
        made = anchor(made, old, other)
    return made


def anchor(edits: Sequence[Edit], old: bytes, other: bytes) -> tuple[Edit, ...]:
    """``edits`` of ``old`` with places in ``other`` too: between the same neighbours, whatever goes there.

    Raises:
        DraftError: ``other`` has not the neighbours, or has lines between them where nothing is to go.
    """
    before, after = split_lines(old), split_lines(other)
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    same = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
    same |= {-1: -1, len(before): len(after)}
    moved = []
    for edit in edits:
        place = edit.places[blob_id(old)]
        first, end = same.get(place.after - 1), same.get(place.after + place.count)
        if first is None or end is None or (end - first > 1) != (place.count > 0):
            raise DraftError(f"{edit.path}: what is around line {place.after} differs between the versions")
        there = _place_at(after, first + 1, end - first - 1)
        moved.append(Edit(edit.path, {**edit.places, blob_id(other): there}, edit.lines))
    return tuple(moved)


def _hunks(path: str, old: bytes, new: bytes) -> list[tuple[int, int, bytes]]:
    """Of every hunk: lines before it, lines that go, lines that come."""
    found = []
    lines = split_lines(gitrepo.diff(path, old, new, context=0))
    for at, line in enumerate(lines):
        if head := hunk_head(line):
            start, gone, _, come, _ = head
            body = lines[at + 1 + gone : at + 1 + gone + come]
            found.append((start - 1 if gone else start, gone, b"".join(line[1:] for line in body)))
    return found


def _place_at(lines: Sequence[bytes], after: int, count: int) -> Place:
    return Place(after, count, _sha256(b"".join(lines[after : after + count])) if count else "")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
