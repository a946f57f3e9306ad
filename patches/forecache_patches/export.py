"""An ordinary patch, with context, made from the user's own checkout: for ``git apply`` or a look."""

from __future__ import annotations

from pathlib import Path

from .apply import require_level
from .blobs import git_mode
from .gitrepo import diff
from .series import Series
from .state import read_state

CONTEXT = 3


def export(series: Series, root: Path) -> bytes:
    """``git diff`` with 3 lines of context from the unpatched to the fully patched files of ``root``.

    It holds lines of the upstream, and so falls under the upstream's licence.

    Raises:
        TreeError: a file is in no known state.
        ConflictError: a fork changed the lines next to ours.
    """
    state = read_state(series, root)
    require_level(state)
    parts = []
    for file in state.files:
        executable = git_mode(root / file.path) == "100755"
        parts.append(diff(file.path, file.at(0), file.at(len(series)), context=CONTEXT, executable=executable))
    return b"".join(parts)
