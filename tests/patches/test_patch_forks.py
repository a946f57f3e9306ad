"""Forks whose hooked file has moved on: three-way merges that keep both sides, or change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_upstream import FILES, LOOP, Toy, commit_all, edit, git, snapshot

import forecache_patches as patches


def far(root: Path) -> None:
    """A change that has nothing to do with ours: lines above and below move."""
    edit(root / LOOP, b"END = 1\n", b"END = 2\n\n\ndef more():\n    return 3\n")
    (root / LOOP).write_bytes(b"import os\n\n\n" + (root / LOOP).read_bytes())


def near(root: Path) -> None:
    """A change of the line that the second hunk of patch 2 follows."""
    edit(root / LOOP, b"        y = x\n", b"        y = 2 * x\n")


def test_a_fork_is_merged_and_reverted(toy: Toy) -> None:
    root = toy.fork(far)
    before = snapshot(root)
    outcome = patches.apply(toy.series, root)
    assert outcome.merged and outcome.changed
    text = (root / LOOP).read_text()
    assert text.startswith("import os\n") and "def more" in text and "    hook = None\n    hook = hook or 0\n" in text
    assert patches.status(toy.series, root).text == "patched, 2 of 2, on a fork (three-way)"
    assert not patches.apply(toy.series, root).changed
    patches.revert(toy.series, root)
    assert snapshot(root) == before
    assert git(root, "status", "--porcelain") == ""


def test_a_fork_that_committed_the_patches(toy: Toy) -> None:
    root = toy.fork(far)
    before = snapshot(root)
    patches.apply(toy.series, root)
    commit_all(root, "with patches")
    assert patches.status(toy.series, root).level == 2
    patches.revert(toy.series, root)
    assert snapshot(root) == before


def test_a_conflict_names_the_hunk_and_changes_nothing(toy: Toy) -> None:
    root = toy.fork(near)
    before = snapshot(root)
    with pytest.raises(patches.ConflictError) as caught:
        patches.apply(toy.series, root)
    message = str(caught.value)
    assert "0002-second-hook.patch hunk 2 ('x += hook') conflicts" in message
    assert "the fork changed the lines next to it, it has 'y = 2 * x' there" in message
    assert snapshot(root) == before and git(root, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("old", "new", "has"),
    [
        (b"        y = x\n", b"        y = x\n        y += 1\n", "it has 'y += 1' there"),  # at our place
        (b"        y = x\n    return", b"        y = x\n    if x:\n        pass\n    return", "it has 'if x:' there"),
        (b"        y = x\n", b"", "removed the lines next to it"),
    ],
)
def test_a_fork_that_writes_at_our_place_conflicts(toy: Toy, old: bytes, new: bytes, has: str) -> None:
    root = toy.fork(lambda root: edit(root / LOOP, old, new))
    before = snapshot(root)
    with pytest.raises(
        patches.ConflictError, match=rf"0002-second-hook\.patch hunk 2 .* conflicts: the fork .*{re.escape(has)}"
    ):
        patches.apply(toy.series, root)
    assert snapshot(root) == before


def test_uncommitted_changes_on_a_fork_are_refused(toy: Toy) -> None:
    root = toy.fork(far)
    edit(root / LOOP, b"import os\n", b"import sys\n")
    with pytest.raises(patches.TreeError, match="not committed"):
        patches.apply(toy.series, root)
    commit_all(root, "mine")
    patches.apply(toy.series, root)  # control
    edit(root / LOOP, b"import sys\n", b"import re\n")
    with pytest.raises(patches.TreeError, match="not committed"):
        patches.revert(toy.series, root)


def test_a_history_without_the_pinned_blob_is_refused(toy: Toy) -> None:
    root = toy.folder / "squashed"
    (root / "pkg/deep").mkdir(parents=True)
    for path, content in FILES.items():
        (root / path).write_bytes(content)
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    git(root, "init", "-q")
    commit_all(root, "squashed")
    with pytest.raises(patches.TreeError, match="its history does not hold that blob"):
        patches.apply(toy.series, root)


def test_a_merge_that_is_not_python_is_refused(toy: Toy) -> None:
    def late_global(root: Path) -> None:  # valid, until a line further up assigns the name
        edit(root / LOOP, b"[x, n, n])[0]\n", b"[x, n, n])[0]\n    global hook\n")
        compile((root / LOOP).read_bytes(), LOOP, "exec")

    root = toy.fork(late_global)
    before = snapshot(root)
    with pytest.raises(patches.ConflictError, match="the three-way merge is not valid Python"):
        patches.apply(toy.series, root)
    assert snapshot(root) == before


def test_export_on_a_fork_fits_the_fork(toy: Toy) -> None:
    root = toy.fork(far)
    file = toy.folder / "export.patch"
    file.write_bytes(patches.export(toy.series, root))
    git(root, "apply", str(file))
    exported = snapshot(root)
    git(root, "checkout", "-q", ".")
    patches.apply(toy.series, root)
    assert snapshot(root) == exported


def blank_line(root: Path) -> None:
    edit(root / LOOP, b"END = 1\n", b"\nEND = 1\n")


def lines_of_theirs(root: Path) -> None:
    edit(root / LOOP, b"        x += i\n", b"        x += i\n        y = x\n")


@pytest.mark.parametrize("hook", [blank_line, lines_of_theirs])
def test_a_hook_that_could_not_be_told_from_the_forks_own_lines_is_refused(
    bare_toy: Toy, hook: Callable[[Path], None]
) -> None:
    root = bare_toy.checkout("edited")
    hook(root)
    patches.make(bare_toy.series, root, "Nothing of its own")
    assert patches.apply(
        bare_toy.series, bare_toy.checkout()
    ).changed  # control: on the pinned file it is known by its id

    def twice(root: Path) -> None:
        (root / LOOP).write_bytes(b"\n        x += i\n        y = x\n" + FILES[LOOP])

    fork = bare_toy.fork(twice)
    before = snapshot(fork)
    with pytest.raises(patches.ConflictError, match=r"could not be told from the fork's and taken out again; nothing"):
        patches.apply(bare_toy.series, fork)
    assert snapshot(fork) == before and patches.status(bare_toy.series, fork).level == 0


def test_a_fork_that_has_one_of_our_lines_already_is_refused(toy: Toy) -> None:
    root = toy.fork(lambda root: edit(root / LOOP, b"END = 1\n", b"END = 1\n\n\ndef f():\n    hook = None\n"))
    before = snapshot(root)
    assert "has lines of 0001-first-hook.patch hunk 1 ('hook = None')" in patches.status(toy.series, root).problem
    for operation in (patches.apply, patches.revert):
        with pytest.raises(patches.TreeError, match="but not as the patches put them; take them out first"):
            operation(toy.series, root)
    assert snapshot(root) == before
