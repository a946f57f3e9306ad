"""Is this checkout what its marker and the lock say?"""

from __future__ import annotations

from pathlib import Path

from . import gitrepo
from .apply import require_level
from .blobs import git_mode
from .errors import CheckoutError
from .lock import Upstream
from .marker import make_marker, require_marker
from .series import Series
from .state import read_state


def verify(upstream: Upstream, series: Series, root: Path) -> str:
    """Check marker, commit, and blob id and mode of every hooked file; a patched file counts by its pinned blob.

    Returns:
        One line that says what it is.

    Raises:
        CheckoutError: no marker, or something differs from the lock.
        TreeError: a hooked file is missing, a link, or neither the pinned one nor that with patches.
    """
    marker = require_marker(root)
    expected = make_marker(upstream, "wheel" if marker.source == "wheel" and upstream.wheel else "git")
    for key in ("upstream", "commit", "source", "origin", "sha256", "blobs"):
        found, wanted = getattr(marker, key), getattr(expected, key)
        if found != wanted:
            raise CheckoutError(f"{root}: the marker says {key} = {found!r}, the lock says {wanted!r}")
    if marker.source == "git" and gitrepo.head(root) != upstream.commit:
        raise CheckoutError(f"{root} is at commit {gitrepo.head(root) or 'none'}, the lock says {upstream.commit}")
    state = read_state(series, root)
    level = require_level(state)
    if state.merged:  # possible only after someone committed on top of the pin
        raise CheckoutError(f"{root}: a hooked file is not the one of the lock")
    for path, blob in upstream.blobs.items():
        if git_mode(root / path) != blob.mode:
            raise CheckoutError(f"{path} has mode {git_mode(root / path)}, the lock says {blob.mode}")
    count = len(upstream.blobs)
    return (
        f"{upstream.name} at {upstream.pin} from {marker.source} ({marker.origin}): {count} hooked "
        f"file{'s' * (count != 1)} verified, {level} of {len(series)} patches applied"
    )
