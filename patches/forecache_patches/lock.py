"""The lock ``upstreams.toml``: which upstreams, at which commit, and how their files are known to be the right ones.

One table per upstream and pin. A second pin of the same upstream is a second table with ``upstream = "<first name>"``;
both then keep their patches below the same folder, ``upstreams/<upstream>/<first 12 digits of the commit>/``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import LockError, PatchError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).parent
LOCK_FILE = PACKAGE / "upstreams.toml"
SERIES_ROOT = PACKAGE / "upstreams"
MODES = ("100644", "100755")


@dataclass(frozen=True)
class Blob:
    """Content (git blob id) and git mode of one hooked file."""

    id: str
    mode: str


@dataclass(frozen=True)
class Wheel:
    """A package on the Python index that carries the same files.

    Attributes:
        prefix: folder of the wheel; what lies below it belongs below ``root`` of the checkout (``""``: its top).
        licence_files: files of the wheel that go to the top of the checkout; what it lacks of the upstream's comes from
            beside the patches.
        differs: files of the checkout that are not those of the commit.
    """

    package: str
    version: str
    sha256: str
    prefix: str
    root: str
    licence_files: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Upstream:
    """One upstream at one pin."""

    name: str
    upstream: str
    title: str
    url: str
    commit: str
    licence: str
    licence_files: tuple[str, ...]
    restriction: str
    modified_notice: bool
    sparse: tuple[str, ...]
    blobs: Mapping[str, Blob]
    wheel: Wheel | None

    @property
    def pin(self) -> str:
        """The first 12 hex digits of the commit; names the folder of the series."""
        return self.commit[:12]

    def series_folder(self, root: Path = SERIES_ROOT) -> Path:
        """Where the series of this pin lives."""
        return root / self.upstream / self.pin


Lock = Mapping[str, Upstream]


def load_lock(path: Path = LOCK_FILE) -> dict[str, Upstream]:
    """Read and validate the lock.

    Raises:
        LockError: not TOML, or a key that is missing, unknown or holds a value that is not allowed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LockError(f"cannot read the lock {path}: {error.strerror or error}") from None
    tables = parse_toml(path.name, content, LockError)
    return {name: _upstream(name, Table(name, table)) for name, table in tables.items()}


def parse_toml(name: str, content: bytes, error: type[PatchError]) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        PatchError: of the class ``error``: not UTF-8, not TOML, or numbers or nesting beyond what Python reads.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as reason:  # TOML's own error is a ValueError too
        raise error(f"{name} is not TOML: {reason}") from None


def find(lock: Lock, name: str) -> Upstream:
    """The upstream of this name.

    Raises:
        LockError: the lock has none; the message lists those it has.
    """
    if name not in lock:
        raise LockError(f"unknown upstream {name!r}; known: {', '.join(sorted(lock)) or 'none'}")
    return lock[name]


class Table:
    """Takes typed, checked values out of a TOML table and complains about what is left over."""

    def __init__(self, where: str, table: object, error: type[PatchError] = LockError) -> None:
        self.where, self.error = where, error
        if not isinstance(table, dict):
            raise error(f"{where} = {table!r}: must be a table")
        self.rest: dict[str, Any] = dict(table)

    def refuse(self, key: str, value: object, allowed: str) -> PatchError:
        return self.error(f"{self.where}.{key} = {value!r}: must be {allowed}")

    def text(self, key: str, pattern: str, allowed: str, default: str | None = None) -> str:
        value = self.rest.pop(key, default)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.refuse(key, value, allowed)
        return value

    def flag(self, key: str) -> bool:
        value = self.rest.pop(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def paths(self, key: str, required: bool = False) -> tuple[str, ...]:
        value = self.rest.pop(key, None if required else [])
        allowed = "a list of paths relative to the repository, with / and without .."
        if not isinstance(value, list) or (required and not value):
            raise self.refuse(key, value, allowed)
        for path in value:
            if not is_inside(path):
                raise self.refuse(key, path, allowed)
        return tuple(value)

    def table(self, key: str) -> Table:
        return Table(f"{self.where}.{key}", self.rest.pop(key, None), self.error)

    def finish(self, known: str) -> None:
        for key, value in self.rest.items():
            raise self.error(f"{self.where}.{key} = {value!r}: unknown key; known: {known}")


def is_inside(path: object) -> bool:
    """Whether ``path`` is a plain relative path with ``/`` that cannot leave its folder."""
    if not isinstance(path, str) or not path or "\\" in path or ":" in path or "\0" in path:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and str(pure) == path and path != "."


_ONE_LINE = r"[^\r\n]+"
_NAME = r"[a-z0-9][a-z0-9._-]*"


def _upstream(name: str, table: Table) -> Upstream:
    if not re.fullmatch(_NAME, name):
        raise LockError(f"[{name}]: the name of an upstream must be lower-case letters, digits, '.', '_' or '-'")
    upstream = Upstream(
        name=name,
        upstream=table.text("upstream", _NAME, "the name of an upstream", default=name),
        title=table.text("title", _ONE_LINE, "one line of text"),
        url=table.text("url", r"(https|file)://\S+", "an https:// or file:// address"),
        commit=table.text("commit", r"[0-9a-f]{40}", "a full commit id, 40 lower-case hex digits"),
        licence=table.text("licence", _ONE_LINE, "one line of text"),
        licence_files=table.paths("licence_files", required=True),
        restriction=table.text("restriction", r"[^\r\n]*", "one line of text", default=""),
        modified_notice=table.flag("modified_notice"),
        sparse=table.paths("sparse", required=True),
        blobs=_blobs(table.table("blobs")),
        wheel=_wheel(table.table("wheel")) if "wheel" in table.rest else None,
    )
    table.finish(", ".join(Upstream.__dataclass_fields__))
    for path in upstream.blobs:
        if not any(path == folder or path.startswith(f"{folder}/") for folder in upstream.sparse):
            raise LockError(f"{name}.blobs.{path}: must lie in one of the sparse paths {list(upstream.sparse)}")
    return upstream


def _blobs(table: Table) -> dict[str, Blob]:
    blobs: dict[str, Blob] = {}
    for path in list(table.rest):
        if not is_inside(path):
            raise LockError(f"{table.where}.{path}: must be a path relative to the repository, without ..")
        entry = table.table(path)
        blobs[path] = Blob(
            id=entry.text("id", r"[0-9a-f]{40}", "a git blob id, 40 lower-case hex digits"),
            mode=entry.text("mode", "|".join(MODES), " or ".join(repr(mode) for mode in MODES)),
        )
        entry.finish("id, mode")
    if not blobs:
        raise LockError(f"{table.where} = {{}}: must name at least one hooked file")
    return blobs


def _wheel(table: Table) -> Wheel:
    wheel = Wheel(
        package=table.text("package", r"[A-Za-z0-9][A-Za-z0-9._-]*", "the name of a package on the Python index"),
        version=table.text("version", r"[A-Za-z0-9][A-Za-z0-9.+!_-]*", "an exact version"),
        sha256=table.text("sha256", r"[0-9a-f]{64}", "64 lower-case hex digits"),
        prefix=table.text("prefix", _ONE_LINE, "a folder in the wheel"),
        root=table.text("root", r"[^\r\n]*", "a folder of the checkout", default=""),
        licence_files=table.paths("licence_files"),
        differs=table.paths("differs"),
    )
    if not is_inside(wheel.prefix):
        raise table.refuse("prefix", wheel.prefix, "a folder in the wheel: relative, with / and without ..")
    if wheel.root and not is_inside(wheel.root):
        raise table.refuse("root", wheel.root, "a folder of the checkout: relative, with / and without ..")
    table.finish(", ".join(Wheel.__dataclass_fields__))
    return wheel
