"""Drafts of submissions to an upstream: what is stored, and what it makes of a tree of upstream files.

Below the folder of drafts::

    upstreams.toml          the lock of the hubs, in the form of lock.py; a generator is in that of the patches
    <hub>/hub.toml          package and folders of the hub, its formatter and linters
    <hub>/<slug>/
        PR.md               title and sections; title and "What changes" are the commit message
        change/             edits.toml (see edits.py), and new files at their paths in the repository
        tests/              our tests, new files below the repository's tests/; edits.toml for a test file that exists
        verify.toml         the pin it was verified on, the hub's own tests of the area, which of ours must fail without
        figures.py          prints the numbers of PR.md; called with two trees, without and with the change

The draft of a hook has no ``change/``: its ``verify.toml`` names the first patch of the generator's series instead
(see hook.py). These upstreams have no tests, and packages that do not import everywhere: our tests prove and are not
submitted, and load the hooked files by their paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .blobs import read_hooked
from .edits import Edit, edit_file, parse_edits
from .errors import DraftError
from .hook import check_hook, hook_edits, load_hook
from .lock import SERIES_ROOT, Table, Upstream, find, load_lock, parse_toml
from .patchfile import Patch

LOCK_NAME = "upstreams.toml"
SECTIONS = ("Motivation", "What changes", "Numbers", "Risks", "How reviewed", "Not measured")
EDITS = "edits.toml"


@dataclass(frozen=True)
class Hub:
    """What all drafts of one hub share.

    Attributes:
        name: folder of the hub.
        upstream: repository and pin.
        package: name on the Python index, ``""`` if it is not there.
        wheel: folder of the package in its wheel.
        root: where that folder lies in the repository.
        style: commands of its formatter and linters by name; the touched Python files come behind.
    """

    name: str
    upstream: Upstream
    package: str
    wheel: str
    root: str
    style: Mapping[str, tuple[str, ...]]

    @property
    def module(self) -> str:
        """What a program imports."""
        return self.wheel.replace("/", ".")

    @property
    def python_path(self) -> str:
        """The folder of the repository that holds the package."""
        return self.root.removesuffix(self.wheel).rstrip("/")


@dataclass(frozen=True)
class Draft:
    """One submission.

    Attributes:
        hub: where it goes.
        slug: name of its folder and of the branch.
        folder: where it is stored.
        title: first line of the commit message.
        body: the rest of it.
        own_tests: tests of the hub that cover the touched area, files or ``file::class``; none if it has none.
        must_fail: names of test functions of ours that fail without the change; the others are controls.
        hook: the patch of a series that is the change; None: it is in ``change/``.
    """

    hub: Hub
    slug: str
    folder: Path
    title: str
    body: str
    own_tests: tuple[str, ...]
    must_fail: tuple[str, ...]
    hook: Patch | None = None

    @property
    def name(self) -> str:
        """``hub/slug``."""
        return f"{self.hub.name}/{self.slug}"

    def change(self, root: Path) -> dict[str, bytes]:
        """Content by path of every file that the change writes, for the files in ``root``.

        Raises:
            DraftError: a file has another blob id than an edit or a series knows, or a new file is there already.
            TreeError: a file is missing or is a link.
        """
        contents = self._contents("change", "", root)
        if self.hook is not None:
            check_hook(self.hook, {path: read_hooked(root, path) for path in contents}, contents)
        return contents

    def tests(self, root: Path) -> dict[str, bytes]:
        """Content by path of our tests, likewise."""
        return self._contents("tests", "tests/", root)

    def submission(self, root: Path) -> dict[str, bytes]:
        """What is committed, likewise: the change with our tests, of a hook the change alone."""
        return self.change(root) | (self.tests(root) if self.hook is None else {})

    def edits(self, part: str) -> tuple[Edit, ...]:
        """The edits of ``"change"`` or ``"tests"``."""
        if part == "change" and self.hook is not None:
            return hook_edits(self.hub.upstream, self.hook)
        file = self.folder / part / EDITS
        if not file.is_file():
            return ()
        return parse_edits(f"{self.name}/{part}/{EDITS}", file.read_text(encoding="utf-8", errors="surrogateescape"))

    def _contents(self, part: str, prefix: str, root: Path) -> dict[str, bytes]:
        edits = self.edits(part)
        paths = dict.fromkeys(edit.path for edit in edits)
        contents = {path: edit_file(path, read_hooked(root, path), edits) for path in paths}
        for file in _files(self.folder / part):
            path = prefix + file.relative_to(self.folder / part).as_posix()
            if (root / path).exists():
                raise DraftError(f"{self.name}: {path} is new in the draft, and already there in {root}")
            contents[path] = file.read_bytes()
        return contents


def load_hub(folder: Path, name: str) -> Hub:
    """The hub ``name`` of the folder of drafts.

    Raises:
        DraftError: there is none, or its ``hub.toml`` is not valid.
        LockError: the lock is not valid or does not know its repository.
    """
    file = folder / name / "hub.toml"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.glob("*/hub.toml")))
        raise DraftError(f"unknown hub {name!r}; below {folder} there are: {known or 'none'}")
    table = _toml(f"{name}/hub.toml", file)
    style = table.table("style")
    lock = load_lock() | load_lock(folder / LOCK_NAME)
    hub = Hub(
        name=name,
        upstream=find(lock, table.text("upstream", r".+", "a name of the lock", default=name)),
        package=table.text("package", r"[A-Za-z0-9._-]*", "a name on the Python index", default=""),
        wheel=table.text("wheel", r"[A-Za-z0-9_/]+", "the folder of the package in its wheel"),
        root=table.text("root", r"[A-Za-z0-9_/]+", "the folder of the package in the repository"),
        style={name: _strings(style, name, required=True) for name in list(style.rest)},
    )
    table.finish("upstream, package, wheel, root, style")
    if not f"/{hub.root}".endswith(f"/{hub.wheel}"):
        raise table.refuse("root", hub.root, f"a folder that ends in {hub.wheel}")
    return hub


def load_draft(folder: Path, name: str, series_root: Path = SERIES_ROOT) -> Draft:
    """The draft ``hub/slug`` below ``folder``; what it takes of a series is below ``series_root``.

    Raises:
        DraftError: there is none, a part of it is missing, or it was verified on another pin than the lock names.
        LockError: see :func:`load_hub`.
        SeriesError: the series is not valid.
    """
    hub_name, _, slug = name.partition("/")
    hub = load_hub(folder, hub_name)
    place = folder / hub_name / slug
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug) or not place.is_dir():
        raise DraftError(f"unknown draft {name!r}; known: {', '.join(draft_names(folder, hub_name)) or 'none'}")
    for part in ("PR.md", "verify.toml", "tests"):
        if not (place / part).exists():
            raise DraftError(f"{name} has no {part}")
    title, sections = _sections(name, (place / "PR.md").read_bytes())
    table = _toml(f"{name}/verify.toml", place / "verify.toml")
    pin = table.text("pin", r"[0-9a-f]{40}", "a full commit id, 40 lower-case hex digits")
    if pin != hub.upstream.commit:
        raise DraftError(f"{name} was verified on {pin[:12]}, the lock names {hub.upstream.pin}: verify it there")
    own_tests = _strings(table, "own_tests")
    must_fail = _strings(table, "must_fail", required=True)
    patch = table.text("patch", r"\S*", "the name of the first patch of the series", default="")
    table.finish("pin, own_tests, must_fail, patch")
    if (place / "change").exists() == bool(patch):
        found = "both" if patch else "neither"
        raise DraftError(f"{name} needs a folder change, or a patch in verify.toml, and has {found}")
    hook = load_hook(f"{table.where}.patch", hub.upstream, patch, series_root) if patch else None
    return Draft(hub, slug, place, title, sections["What changes"], own_tests, must_fail, hook)


def draft_names(folder: Path, hub: str = "") -> list[str]:
    """``hub/slug`` of every draft below ``folder``, of one hub if it is named."""
    return sorted(f"{file.parent.parent.name}/{file.parent.name}" for file in folder.glob(f"{hub or '*'}/*/PR.md"))


def _toml(name: str, file: Path) -> Table:
    return Table(name, parse_toml(name, file.read_bytes(), DraftError), DraftError)


def _strings(table: Table, key: str, required: bool = False) -> tuple[str, ...]:
    value = table.rest.pop(key, [])
    if (
        not isinstance(value, list)
        or not all(isinstance(one, str) and one for one in value)
        or (required > bool(value))
    ):
        raise table.refuse(key, value, "a list of strings")
    return tuple(value)


def _sections(name: str, content: bytes) -> tuple[str, dict[str, str]]:
    """Title and sections of a ``PR.md``."""
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise DraftError(f"{name}: PR.md is not UTF-8") from None
    head, *parts = re.split(r"(?m)^## ", text)
    title = re.fullmatch(r"# ([^\n\[][^\n]*)\n\s*", head)  # git am drops a [...] in front
    if title is None:
        raise DraftError(f"{name}: PR.md must begin with '# <title>' without a '[' in front, then a section '## ...'")
    sections = {heading.strip(): body.strip() for heading, _, body in (part.partition("\n") for part in parts)}
    for section in SECTIONS:
        if not sections.get(section):
            raise DraftError(f"{name}: PR.md has no text in a section '## {section}'")
    return title[1].strip(), sections


def _files(folder: Path) -> Iterable[Path]:
    """New files of a part: all but the edits, and what Python leaves behind."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / EDITS and "__pycache__" not in file.parts:
            yield file
