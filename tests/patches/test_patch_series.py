"""Stored patches: what the validator lets through and what not."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_upstream import LOOP, Toy, edit

import forecache_patches as patches
from forecache_patches.blobs import blob_id
from forecache_patches.insertion import Insertion, insert, remove
from forecache_patches.patchfile import Patch, format_patch, parse_patch

HEAD = f"Subject: t\nUpstream: toy\nCommit: {'0' * 40}\n"
HEAD += f"Pre-image: a.py {'1' * 40}\nPost-image: a.py {'2' * 40}\n\nWhy.\n\n"
FILE = "--- a/a.py\n+++ b/a.py\n"


def parse(text: str) -> Patch:
    return parse_patch("0001-t.patch", text.encode())


def test_blob_ids_are_those_of_git() -> None:
    assert blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_valid_patch_is_read_and_written_back_byte_for_byte() -> None:
    text = HEAD + FILE + "@@ -0,0 +1,2 @@\n+x\n+++ y\n@@ -3,0 +6,1 @@\n+z\r\n"
    patch = parse(text)
    assert patch.files[0].insertions == (Insertion(0, (b"x\n", b"++ y\n")), Insertion(3, (b"z\r\n",)))
    assert patch.description == "Why."
    assert format_patch(patch) == text.encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@@ -1,2 +1,3 @@\n one\n+x\n two\n", "line 1 of the pre-image is changed or removed"),
        ("@@ -1 +1 @@\n-one\n+x\n", "changed or removed"),
        ("@@ -1,0 +2,2 @@\n+x\n one\n", "not inserted"),
        ("@@ -1,0 +2,2 @@\n+x\n-one\n", "not inserted"),
        ("@@ -1,0 +2,2 @@\n+x\n", "wrong position or number"),
        ("@@ -1,0 +2,1 @@\n+x\n+y\n", "must be '--- a/PATH'"),
        ("@@ -1,0 +3,1 @@\n+x\n", "wrong position or number"),
        ("@@ -5,0 +6,1 @@\n+x\n@@ -2,0 +4,1 @@\n+y\n", "wrong position or number"),
        ("@@ -1,0 +2,1 @@ def upstream_function():\n+x\n", "text behind the position"),
        ("@@ -1,0 +2,1 @@\n+x\n\\ No newline at end of file\n", "lacks the newline"),
        ("@@ -1,0 +2,1 @@\n+x", "cut off"),
        ("", "expected a hunk"),
    ],
)
def test_anything_but_insertions_is_refused(body: str, message: str) -> None:
    parse(HEAD + FILE + "@@ -1,0 +2,1 @@\n+x\n")  # control
    with pytest.raises(patches.SeriesError, match=message):
        parse(HEAD + FILE + body)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "--- a/b.py\n+++ b/b.py\n@@ -1,0 +2,1 @@\n+x\n",
        HEAD.replace("Subject", "Topic") + FILE + "@@ -1,0 +2,1 @@\n+x\n",
        HEAD.replace("a.py 1", "../a.py 1") + FILE + "@@ -1,0 +2,1 @@\n+x\n",
        HEAD.replace("Commit: ", "Upstream: x\nCommit: ") + FILE + "@@ -1,0 +2,1 @@\n+x\n",
        HEAD,
    ],
)
def test_headers_must_fit_the_diff(text: str) -> None:
    with pytest.raises(patches.SeriesError):
        parse(text)


@pytest.mark.parametrize("content", [b"a\nb\n", b"a\r\nb\r\n", b"a\nb", b"a\rb\n\x0cc\n\n"])
def test_remove_undoes_insert(content: bytes) -> None:
    insertions = (Insertion(0, (b"top\n", b"a\n")), Insertion(1, (b"mid\r\n",)))
    assert remove(insert(content, insertions), insertions) == content
    with pytest.raises(patches.SeriesError, match="are not at line"):
        remove(content, insertions)


def test_nothing_goes_after_a_line_without_newline_or_behind_the_end() -> None:
    with pytest.raises(patches.SeriesError, match="no newline"):
        insert(b"a\nb", [Insertion(2, (b"x\n",))])
    with pytest.raises(patches.SeriesError, match="after line 3 of a file of 2"):
        insert(b"a\nb\n", [Insertion(3, (b"x\n",))])
    assert insert(b"a\nb\n", [Insertion(2, (b"x\n",))]) == b"a\nb\nx\n"  # control


def test_the_series_keeps_the_order_and_the_blob_chain(toy: Toy) -> None:
    assert [patch.name for patch in toy.series.patches] == ["0001-first-hook.patch", "0002-second-hook.patch"]
    ids = toy.series.ids(LOOP)
    assert len(set(ids)) == 3 and ids[0] == toy.upstream.blobs[LOOP].id


def swap(folder: Path) -> None:
    names = (folder / "series").read_text().split()
    (folder / "series").write_text("\n".join(reversed(names)) + "\n")


def swap_and_rename(folder: Path) -> None:
    (folder / "0001-first-hook.patch").rename(folder / "x")
    (folder / "0002-second-hook.patch").rename(folder / "0001-first-hook.patch")
    (folder / "x").rename(folder / "0002-second-hook.patch")


def unlist(folder: Path) -> None:
    (folder / "series").write_text("0001-first-hook.patch\n")


def lose(folder: Path) -> None:
    (folder / "0001-first-hook.patch").unlink()


def other_pin(folder: Path) -> None:
    file = folder / "0002-second-hook.patch"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(f"Commit: {'9' * 40}\n" if line.startswith("Commit") else line for line in lines))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap, "in place 1 must be called 0001"),
        (swap_and_rename, "pre-image of .* comes before it"),
        (unlist, "disagree on 0002-second-hook.patch"),
        (lose, "disagree on 0001-first-hook.patch"),
        (other_pin, "is for toy at 9999"),
    ],
)
def test_series_and_patches_must_agree(toy: Toy, damage: object, message: str) -> None:
    patches.check(toy.upstream, toy.series_root)  # control
    damage(toy.series.folder)  # type: ignore[operator]
    with pytest.raises(patches.SeriesError, match=message):
        patches.check(toy.upstream, toy.series_root)


def test_check_compares_images_with_real_files(toy: Toy) -> None:
    root = toy.checkout()
    assert len(patches.check(toy.upstream, toy.series_root, root).facts) == 4
    edit(toy.series.folder / "0002-second-hook.patch", b"+    hook = hook or 0\n", b"+    hook = hook or 1\n")
    with pytest.raises(patches.SeriesError, match=r"loop\.py at level 2 is blob .*0002-second-hook.patch says"):
        patches.check(toy.upstream, toy.series_root, root)


def test_check_compiles_what_comes_out(toy: Toy) -> None:
    root = toy.checkout()
    patches.apply(toy.series, root)
    edit(root / LOOP, b"END = 1\n", b"END = 1\ndef broken(:\n")
    patches.make(toy.series, root, "Broken")
    patches.check(toy.upstream, toy.series_root)  # control: as a patch it is in order
    with pytest.raises(patches.SeriesError, match=r"0003-broken.patch: pkg/loop.py is not valid Python"):
        patches.check(toy.upstream, toy.series_root, toy.checkout("clean"))


def test_check_asks_for_the_notice_and_points_at_upstream_lines(toy: Toy) -> None:
    toy.write_lock(extra="modified_notice = true")
    with pytest.raises(patches.SeriesError, match="no inserted line says 'modified'"):
        patches.check(toy.upstream, toy.series_root)
    root = toy.checkout()
    patches.apply(toy.series, root)
    for path in ("pkg/loop.py", "pkg/deep/crlf.py", "pkg/tail.py"):
        (root / path).write_bytes(b"# Modified by forecache.\n" + (root / path).read_bytes())
    patches.make(toy.series, root, "Notice")
    clean = toy.checkout("clean")
    assert patches.check(toy.upstream, toy.series_root, clean).remarks == ()
    edit(root / LOOP, b"END = 1\n", b"END = 1\n\n\ndef copied(x, n):\n    return sorted([x, n, n])[0]\n")
    patches.make(toy.series, root, "Copied")
    (remark,) = patches.check(toy.upstream, toy.series_root, clean).remarks
    assert remark == "0004-copied.patch: 'return sorted([x, n, n])[0]' is also a line of pkg/loop.py"
