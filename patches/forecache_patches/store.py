"""A draft's change and tests taken from an edited checkout of the hub."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from . import gitrepo, wheel
from .blobs import read_hooked
from .drafts import EDITS, Hub
from .edits import Edit, format_edits, make_edits
from .errors import DraftError
from .trees import Fetch, overlay, require_head
from .writing import write_new


def store(hub: Hub, root: Path, folder: Path, fetch: Fetch = wheel.fetch) -> list[Path]:
    """Write what the checkout ``root`` has on top of the pin into ``change/`` and ``tests/`` of the draft ``folder``.

    Edits are anchored in the newest wheel too, where it has the file in another version.

    Returns:
        The files written.

    Raises:
        CheckoutError: ``root`` is not at the pin, or the index cannot be reached.
        DraftError: nothing was changed, a file was removed, or an edit cannot be anchored in the newest version.
    """
    require_head(hub, root)
    listing = gitrepo.call(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    states = {entry[3:]: entry[:2].strip() for entry in os.fsdecode(listing).split("\0") if entry}
    if not states or set(states.values()) - {"M", "??", "A"}:
        raise DraftError(f"{root} must have edited and new files, and no others; git status names {states or 'none'}")
    written: list[Path] = []
    with TemporaryDirectory() as temporary:
        newest = Path(temporary, "newest")
        if hub.package:
            overlay(hub, newest, Path(temporary), fetch)
        edits: dict[str, list[Edit]] = {"change": [], "tests": []}
        for path, state in states.items():
            part = "tests" if path.startswith("tests/") else "change"
            content = read_hooked(root, path)
            if state == "M":
                old = gitrepo.call(root, "cat-file", "blob", f"HEAD:{path}")
                others = [(newest / path).read_bytes()] if (newest / path).is_file() else []
                edits[part] += make_edits(path, old, content, [other for other in others if other != old])
            else:
                written.append(folder / part / path.removeprefix("tests/"))
                write_new(written[-1], content)
        for part, made in edits.items():
            if made:
                written.append(folder / part / EDITS)
                write_new(written[-1], format_edits(made).encode())
    return written
