"""Making patches from an edited checkout, exporting them, moving a pin."""

from __future__ import annotations

import pytest
from toy_upstream import CRLF, FILES, LOOP, TAIL, Toy, commit_all, edit, edit_first, git, snapshot

import forecache_patches as patches


def test_export_is_an_ordinary_patch(toy: Toy) -> None:
    root = toy.checkout()
    content = patches.export(toy.series, root)
    assert b"diff --git a/pkg/loop.py b/pkg/loop.py" in content and b"\n     for i in range(n):\n" in content
    file = toy.folder / "export.patch"
    file.write_bytes(content)
    git(root, "apply", str(file))
    exported = snapshot(root)
    assert patches.status(toy.series, root).text == "patched, 2 of 2"
    assert patches.export(toy.series, root) == content  # also from a patched tree
    git(root, "apply", "--reverse", str(file))
    patches.apply(toy.series, root)
    assert snapshot(root) == exported


def test_export_refuses_an_unknown_tree(toy: Toy) -> None:
    root = toy.checkout(source="wheel")
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    with pytest.raises(patches.TreeError):
        patches.export(toy.series, root)


def test_a_stored_patch_holds_no_upstream_line(toy: Toy) -> None:
    upstream = {line.strip() for content in FILES.values() for line in content.splitlines() if line.strip()}
    for file in toy.series.folder.glob("*.patch"):
        body = file.read_bytes().split(b"\n--- ", 1)[1]
        assert not upstream & {line[1:].strip() for line in body.splitlines() if line[:1] in (b"+", b"-", b" ")}


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (LOOP, b"END = 1\n", b"END = 2\n", "line 10 of the pre-image is changed or removed"),
        (LOOP, b"END = 1\n", b"", "changed or removed"),
        (TAIL, b"last = 2", b"last = 2\nours = 1\n", "changed or removed"),
        (CRLF, b"c = 3\r\n", b"c = 3\r\nours", "lacks the newline"),
    ],
)
def test_make_takes_insertions_only(bare_toy: Toy, path: str, old: bytes, new: bytes, message: str) -> None:
    root = bare_toy.checkout()
    edit(root / path, old, new)
    with pytest.raises(patches.SeriesError, match=message):
        patches.make(bare_toy.series, root, "Wrong")
    assert not bare_toy.series_root.exists()


def test_make_needs_something_to_store_and_a_title(bare_toy: Toy) -> None:
    root = bare_toy.checkout()
    with pytest.raises(patches.SeriesError, match="nothing to store"):
        patches.make(bare_toy.series, root, "Nothing")
    edit_first(root)
    for title, description in (("", ""), ("a\nb", ""), ("a", "text\n--- a/x")):
        with pytest.raises(patches.SeriesError):
            patches.make(bare_toy.series, root, title, description)
    assert not bare_toy.series_root.exists()
    patches.make(bare_toy.series, root, "a", "text")  # control
    with pytest.raises(patches.SeriesError, match="nothing to store"):
        patches.make(bare_toy.series, root, "again")


def test_make_from_a_wheel_needs_an_unedited_checkout(bare_toy: Toy) -> None:
    root, clean = bare_toy.checkout("edited", "wheel"), bare_toy.checkout("clean", "wheel")
    edit_first(root)
    with pytest.raises(patches.TreeError, match="--against"):
        patches.make(bare_toy.series, root, "First")
    with pytest.raises(patches.TreeError, match="the lock says"):
        patches.make(bare_toy.series, root, "First", against=root)
    patches.make(bare_toy.series, root, "First", against=clean)
    assert patches.apply(bare_toy.series, clean).changed and snapshot(clean) == snapshot(root)


def test_redo_replaces_the_last_patch(toy: Toy) -> None:
    root = toy.checkout()
    patches.apply(toy.series, root)
    edit(root / LOOP, b"    hook = hook or 0\n", b"    hook = hook or 7\n")
    patches.make(toy.series, root, "Another second", redo=True)
    assert [patch.name for patch in toy.series.patches] == ["0001-first-hook.patch", "0002-another-second.patch"]
    assert patches.status(toy.series, root).text == "patched, 2 of 2"


def next_commit(toy: Toy, path: str, old: bytes, new: bytes) -> str:
    edit(toy.repository / path, old, new)
    return commit_all(toy.repository, "next")


def test_bump_with_the_same_files_writes_a_new_pin_only(toy: Toy) -> None:
    root = toy.checkout()
    before = snapshot(toy.series_root)
    commit = next_commit(toy, "LICENSE", b"toy", b"new")
    result = patches.bump(toy.series, commit, root, toy.series_root / "toy")
    assert result.moved == ()
    toy.write_lock(commit=commit)
    assert toy.series.folder == result.folder and len(toy.series) == 2
    assert before.items() <= snapshot(toy.series_root).items()  # the old pin stays
    assert f'commit = "{commit}"' in patches.lock_lines(result.upstream)


def test_bump_re_anchors_on_files_that_moved(toy: Toy) -> None:
    root = toy.checkout()
    commit = next_commit(toy, LOOP, b"def run(n):\n", b"import os\n\n\ndef run(n):\n")
    result = patches.bump(toy.series, commit, root, toy.series_root / "toy")
    assert result.moved == (LOOP,)
    toy.write_lock(commit=commit, loop=result.upstream.blobs[LOOP].id)
    fresh = toy.checkout("fresh")
    patches.check(toy.upstream, toy.series_root, fresh)
    patches.apply(toy.series, fresh)
    text = (fresh / LOOP).read_text()
    assert text.startswith("import os\n") and text.count("hook = None") == text.count("x += hook") == 1


def test_bump_that_does_not_fit_writes_nothing(toy: Toy) -> None:
    root = toy.checkout()
    before = snapshot(toy.series_root)
    commit = next_commit(toy, LOOP, b"        y = x\n", b"        y = 2 * x\n")
    with pytest.raises(patches.ConflictError, match=r"0002-second-hook\.patch hunk 2"):
        patches.bump(toy.series, commit, root, toy.series_root / "toy")
    for wrong, message in (("4" * 40, "no commit"), ("abc", "full commit id"), (toy.upstream.commit, "exists")):
        with pytest.raises(patches.CheckoutError, match=message):
            patches.bump(toy.series, wrong, root, toy.series_root / "toy")
    assert snapshot(toy.series_root) == before
