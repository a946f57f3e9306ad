"""Apply and revert: exact, repeatable, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_upstream import CRLF, FILES, LOOP, TAIL, Toy, edit, git, snapshot

import forecache_patches as patches


@pytest.fixture
def root(toy: Toy) -> Path:
    """Without git's help: what the tool knows is in the files."""
    return toy.checkout(source="wheel")


@pytest.mark.parametrize("source", ["git", "wheel"])
def test_apply_inserts_and_revert_restores_bytes_and_modes(toy: Toy, source: str) -> None:
    root = toy.checkout(source=source)
    (root / CRLF).chmod(0o755)
    before = snapshot(root)
    outcome = patches.apply(toy.series, root)
    assert outcome.changed and set(outcome.written) == set(FILES) and not outcome.merged
    assert (root / CRLF).read_bytes() == b"a = 1\r\nb = 2\r\nours = 2\r\nc = 3\r\n"
    assert (root / TAIL).read_bytes() == b"first = 1\nours = 1\nlast = 2"
    assert b"    hook = None\n    hook = hook or 0\n" in (root / LOOP).read_bytes()
    assert (root / CRLF).stat().st_mode & 0o777 == 0o755
    assert {name: mode for name, (_, mode) in snapshot(root).items()} == {
        name: mode for name, (_, mode) in before.items()
    }
    assert patches.status(toy.series, root).text == "patched, 2 of 2"
    patches.revert(toy.series, root)
    assert snapshot(root) == before
    assert patches.status(toy.series, root).text == "unpatched"


def test_applying_and_reverting_twice_does_nothing(toy: Toy, root: Path) -> None:
    assert not patches.revert(toy.series, root).changed
    assert patches.apply(toy.series, root).changed
    before = snapshot(root)
    again = patches.apply(toy.series, root)
    assert not again.changed and again.before == 2 and snapshot(root) == before


@pytest.mark.parametrize("source", ["git", "wheel"])
def test_a_partly_applied_series_is_continued_and_reverted(toy: Toy, source: str) -> None:
    root = toy.checkout(source=source)
    original = snapshot(root)
    images = {path: toy.series.contents(path, content) for path, content in FILES.items()}
    for path in FILES:
        (root / path).write_bytes(images[path][1])
    assert patches.status(toy.series, root).text == "patched, 1 of 2"
    outcome = patches.apply(toy.series, root)
    assert (outcome.before, outcome.after, outcome.written) == (1, 2, (LOOP,))
    for path in FILES:
        (root / path).write_bytes(images[path][1])
    patches.revert(toy.series, root)
    assert snapshot(root) == original


@pytest.mark.parametrize("operation", [patches.apply, patches.revert])
def test_what_a_kill_between_two_files_left_is_finished(toy: Toy, root: Path, operation: Callable[..., object]) -> None:
    unpatched = snapshot(root)
    patches.apply(toy.series, root)
    patched = snapshot(root)
    (root / TAIL).write_bytes(FILES[TAIL])
    (root / "pkg/.tail.py.abcd1234.partial").write_bytes(b"half of it")
    (root / "pkg/.tail.py.mine.partial").write_bytes(b"not ours")
    status = patches.status(toy.series, root)
    assert status.text == "patched in part" and "pkg/tail.py has 0; apply or revert again" in status.problem
    for refused in (patches.export, lambda *given: patches.verify(toy.upstream, *given)):
        with pytest.raises(patches.TreeError, match="do not have the same number of patches"):
            refused(toy.series, root)
    operation(toy.series, root)
    assert (root / "pkg/.tail.py.mine.partial").exists()
    (root / "pkg/.tail.py.mine.partial").unlink()
    assert snapshot(root) == (patched if operation is patches.apply else unpatched)


def test_a_file_in_an_unknown_state_is_not_finished(toy: Toy, root: Path) -> None:
    patches.apply(toy.series, root)
    (root / TAIL).write_bytes(FILES[TAIL])
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    before = snapshot(root)
    assert patches.status(toy.series, root).text == "modified"
    for operation in (patches.apply, patches.revert):
        with pytest.raises(patches.TreeError, match="loop"):
            operation(toy.series, root)
    assert snapshot(root) == before


def test_wrong_blob_without_history_is_refused(toy: Toy) -> None:
    root = toy.checkout(source="wheel")
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    before = snapshot(root)
    with pytest.raises(
        patches.TreeError, match=r"pkg/loop\.py is blob \w+, the lock says \w+, and this is not a git repo"
    ):
        patches.apply(toy.series, root)
    assert snapshot(root) == before


def test_a_wheel_checkout_inside_another_repository_is_not_that_repository(toy: Toy) -> None:
    git(toy.folder, "init", "-q")
    root = toy.checkout(source="wheel")
    patches.apply(toy.series, root)
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    with pytest.raises(patches.TreeError, match="this is not a git repository"):
        patches.revert(toy.series, root)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_uncommitted_changes_are_refused(toy: Toy, patched: bool, staged: bool) -> None:
    root = toy.checkout()
    if patched:
        patches.apply(toy.series, root)
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    if staged:
        git(root, "add", LOOP)
    before = snapshot(root)
    assert "not committed" in patches.status(toy.series, root).problem
    for operation in (patches.apply, patches.revert):
        with pytest.raises(patches.TreeError, match="changes that are not committed"):
            operation(toy.series, root)
    assert snapshot(root) == before


def test_changes_elsewhere_do_not_matter(toy: Toy) -> None:
    root = toy.checkout()
    (root / "LICENSE").write_text("changed")
    assert patches.apply(toy.series, root).changed


def test_converted_line_ends_are_recognised(toy: Toy) -> None:
    root = toy.checkout()
    (root / LOOP).write_bytes(FILES[LOOP].replace(b"\n", b"\r\n"))
    with pytest.raises(patches.TreeError, match="line ends only"):
        patches.apply(toy.series, root)


def test_links_and_missing_files_are_refused(toy: Toy, root: Path) -> None:
    target = toy.folder / "elsewhere.py"
    target.write_bytes(FILES[LOOP])
    (root / LOOP).unlink()
    with pytest.raises(patches.TreeError, match="is not in"):
        patches.apply(toy.series, root)
    (root / LOOP).symlink_to(target)
    with pytest.raises(patches.TreeError, match="is a link"):
        patches.apply(toy.series, root)
    assert target.read_bytes() == FILES[LOOP]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_interrupted_write_changes_nothing(
    toy: Toy, root: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before = snapshot(root)
    replace, calls = Path.replace, []

    def broken(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(patches.PatchError, match=r"cannot write .*No space left on device; nothing was changed"):
        patches.apply(toy.series, root)
    monkeypatch.undo()
    assert len(calls) >= failing
    assert snapshot(root) == before  # no temporary file either
    assert patches.apply(toy.series, root).changed  # control


def test_a_checkout_of_something_else_is_refused(toy: Toy, root: Path) -> None:
    edit(root / ".forecache-upstream.json", b'"upstream": "toy"', b'"upstream": "other"')
    with pytest.raises(patches.TreeError, match="is a checkout of other, not of toy"):
        patches.apply(toy.series, root)
