"""The first patch of a series as the change of a draft: stored once, in the series.

Its lines are inserted as they are, but for one thing. The comments of a stored patch speak to whoever holds a modified
copy; in the upstream's own file they would be odd. So, in a submission, :func:`in_upstream` takes ``This file was
modified by forecache:`` and ``forecache:`` from the front of a comment, and says ``unchanged, bit for bit`` for
``bit-identical to the original file``. Where the lock has ``modified_notice`` all comments stay: the branch that is
sent is a modified copy too, and the licence wants it to say so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from .blobs import blob_id
from .edits import Edit, Place
from .errors import DraftError
from .insertion import insert
from .lock import SERIES_ROOT, Upstream
from .patchfile import Patch
from .series import load_series

_SPEAKER = re.compile(rb"(?m)^([ \t]*# )(?:This file was modified by forecache|forecache): (.)")
_COPY = re.compile(rb"(?m)^([ \t]*# .*)\bbit-identical to the original file\b")


def load_hook(where: str, upstream: Upstream, name: str, root: Path = SERIES_ROOT) -> Patch:
    """The patch ``name`` of ``upstream``'s series.

    Raises:
        DraftError: the series does not begin with it; the message begins with ``where``.
        SeriesError: the series is not valid.
    """
    series = load_series(upstream, root)
    first = series.patches[0].name if len(series) else "no patch"
    if name != first:
        raise DraftError(f"{where} = {name!r}: the series of {upstream.name} at {upstream.pin} begins with {first}")
    return series.patches[0]


def hook_edits(upstream: Upstream, patch: Patch) -> tuple[Edit, ...]:
    """``patch`` as edits of the pinned files, its comments as in :func:`in_upstream`."""
    return tuple(
        Edit(file.path, {file.pre: Place(one.after, 0, "")}, in_upstream(upstream, b"".join(one.lines)))
        for file in patch.files
        for one in file.insertions
    )


def in_upstream(upstream: Upstream, lines: bytes) -> bytes:
    """``lines`` with the comments that they have in a file of the upstream's own."""
    if upstream.modified_notice:
        return lines
    lines = _SPEAKER.sub(lambda match: match[1] + match[2].upper(), lines)
    return _COPY.sub(rb"\1unchanged, bit for bit", lines)


def check_hook(patch: Patch, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Check that ``after`` is what the series makes of ``before``, comments apart.

    Raises:
        DraftError: the stored lines do not give the blob id that the series records, or code differs.
        SeriesError: they do not fit.
    """
    for file in patch.files:
        stored = insert(before[file.path], file.insertions)
        if blob_id(stored) != file.post:
            raise DraftError(f"{file.path} becomes blob {blob_id(stored)}, {patch.name} says {file.post}")
        if after[file.path] != stored and _code(after[file.path]) != _code(stored):
            raise DraftError(f"{file.path}: the submission differs from {patch.name} in more than comments")


def _code(content: bytes) -> str:
    return ast.dump(ast.parse(content))
