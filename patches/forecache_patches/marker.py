"""The marker file ``.forecache-upstream.json`` in the root of a checkout: what it is and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import CheckoutError
from .lock import Upstream

MARKER = ".forecache-upstream.json"


@dataclass(frozen=True)
class Marker:
    """``source`` is ``"git"`` or ``"wheel"``; ``origin`` an address or ``package==version``; ``sha256`` the wheel's."""

    upstream: str
    commit: str
    source: str
    origin: str
    sha256: str
    blobs: dict[str, str]

    def write(self, root: Path) -> None:
        """Write the marker into ``root``."""
        text = json.dumps({"format": 1, **asdict(self)}, indent=2, sort_keys=True)
        (root / MARKER).write_text(text + "\n", encoding="utf-8")


def make_marker(upstream: Upstream, source: str) -> Marker:
    """The marker of a checkout of ``upstream`` from ``source``."""
    wheel = upstream.wheel if source == "wheel" else None
    return Marker(
        upstream=upstream.name,
        commit=upstream.commit,
        source=source,
        origin=f"{wheel.package}=={wheel.version}" if wheel else upstream.url,
        sha256=wheel.sha256 if wheel else "",
        blobs={path: blob.id for path, blob in upstream.blobs.items()},
    )


def read_marker(root: Path) -> Marker | None:
    """The marker in ``root``; None if there is none (a checkout that this tool did not make).

    Raises:
        CheckoutError: the file is there but is not a marker.
    """
    file = root / MARKER
    try:
        if not file.is_file():
            return None
        content = file.read_bytes()
    except OSError as error:
        raise CheckoutError(f"cannot read {file}: {error.strerror or error}") from None
    try:
        fields = json.loads(content)
        if fields.pop("format") != 1:
            raise ValueError
        marker = Marker(**fields)
        if not all(isinstance(getattr(marker, key), str) for key in ("upstream", "commit", "source", "origin")):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckoutError(f"{file} is not a marker file of this tool; remove it or make a fresh checkout") from None
    return marker


def require_marker(root: Path) -> Marker:
    """The marker in ``root``.

    Raises:
        CheckoutError: there is none, or it cannot be read.
    """
    marker = read_marker(root)
    if marker is None:
        raise CheckoutError(f"{root} is not a checkout made by this tool: it has no {MARKER}")
    return marker
