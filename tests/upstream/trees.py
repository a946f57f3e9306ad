"""Checkouts of upstreams for the tests: from the repository if it is reachable, else from the wheel; else a skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecache_patches import PatchError, apply, checkout, find, load_lock, load_series


def tree(name: str, root: Path, source: str = "auto", patched: bool = True) -> Path:
    """``name`` at its pin in ``root``; skips the test, and says why, where no source is reachable."""
    upstream = find(load_lock(), name)
    try:
        checkout(upstream, root, source=source)
    except PatchError as error:
        pytest.skip(f"{upstream.title} is not reachable: {error}")
    if patched:
        apply(load_series(upstream), root)
    return root
