"""Two trees of a hub's files, without and with the change of a draft.

A tree is the pin, or the pin with the package of the newest wheel on the Python index in the place of its own (wheels
carry no tests). Both trees hold our tests, so that these can be seen to fail without the change.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import gitrepo, wheel
from .checkout import checkout
from .drafts import Draft, Hub
from .errors import CheckoutError, DraftError
from .lock import Wheel

BASES = ("pin", "newest")
Fetch = Callable[[str, Path], Path]


@dataclass(frozen=True)
class Trees:
    """The same files ``without`` and ``with_`` the change, both with our tests.

    ``base`` says which files, ``checkout`` is the git checkout at the pin that they come from.
    """

    base: str
    checkout: Path
    without: Path
    with_: Path

    @property
    def both(self) -> tuple[Path, Path]:
        """Without and with the change."""
        return self.without, self.with_


@contextmanager
def trees(draft: Draft, base: str, pinned: Path | None = None, fetch: Fetch = wheel.fetch) -> Iterator[Trees]:
    """The two trees, in a folder of their own that goes at the end.

    Args:
        draft: what makes the difference.
        base: ``"pin"`` or ``"newest"``.
        pinned: a git checkout of the hub at the pin, read only; None fetches one.
        fetch: how a wheel is downloaded.

    Raises:
        CheckoutError: the repository or the index cannot be reached, or ``pinned`` is not at the pin.
        DraftError: the draft does not fit these files.
    """
    if base not in BASES:
        raise DraftError(f"base = {base!r}: must be {' or '.join(map(repr, BASES))}")
    with TemporaryDirectory(prefix="forecache-draft-") as temporary:
        folder = Path(temporary)
        source = pinned or checkout(draft.hub.upstream, folder / "checkout", "git").root
        _require_clean(draft.hub, source)
        without, with_ = folder / "without", folder / "with"
        shutil.copytree(source, without, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        label = f"pin {draft.hub.upstream.pin}"
        if base == "newest":
            shutil.rmtree(without / draft.hub.root)
            label = overlay(draft.hub, without, folder, fetch)
        tests, change = draft.tests(without), draft.change(without)
        _write(without, tests)
        shutil.copytree(without, with_)
        _write(with_, change)
        yield Trees(label, source, without, with_)


def require_head(hub: Hub, root: Path) -> None:
    """Check that ``root`` is at the pin.

    Raises:
        CheckoutError: it is not.
    """
    if gitrepo.head(root) != hub.upstream.commit:
        raise CheckoutError(f"{root} is not at {hub.upstream.pin}, the pin of {hub.name}")


def _require_clean(hub: Hub, root: Path) -> None:
    """Check that ``root`` is at the pin and that its files are as committed there."""
    require_head(hub, root)
    if changed := gitrepo.call(root, "status", "--porcelain"):
        what = changed.decode(errors="replace").splitlines()[0].strip()
        raise CheckoutError(f"{root} has changes that are not committed: {what}")


def overlay(hub: Hub, root: Path, folder: Path, fetch: Fetch) -> str:
    """Put the package of the newest wheel where the repository has it; returns its name and version.

    Raises:
        CheckoutError: the hub is not on the index, or the index cannot be reached.
    """
    if not hub.package:
        raise CheckoutError(f"{hub.name} is not on the Python index: there is no newest version to check against")
    (folder / "wheel").mkdir()
    file = fetch(hub.package, folder / "wheel")
    package, version = file.name.split("-")[:2]
    whole = Wheel(package, version, "", prefix=hub.wheel, root=hub.root, licence_files=(), differs=())
    wheel.extract(file, hub.upstream, whole, root)
    return f"{hub.package} {version}"


def _write(root: Path, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
