"""Checkouts from a repository and from a wheel: verified, complete, or not there at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_upstream import CRLF, FILES, LOOP, PREFIX, Toy, commit_all, git, snapshot

import forecache_patches as patches
from forecache_patches import wheel as wheels


def leftovers(toy: Toy) -> list[str]:
    return [path.name for path in toy.folder.iterdir() if path.name == "checkout" or ".partial" in path.name]


def from_wheel(toy: Toy) -> Path:
    return toy.checkout(source="wheel")


@pytest.mark.parametrize("source", ["git", "wheel"])
def test_checkout_holds_the_sparse_paths_exactly(toy: Toy, source: str) -> None:
    root = toy.checkout(source=source)
    assert {path: (root / path).read_bytes() for path in FILES} == FILES
    assert (root / "LICENSE").is_file() and not (root / "other").exists()
    assert (root / CRLF).stat().st_mode & 0o100 and not (root / LOOP).stat().st_mode & 0o100
    marker = json.loads((root / ".forecache-upstream.json").read_text())
    assert (marker["source"], marker["commit"]) == (source, toy.upstream.commit)
    assert "toy at" in patches.verify(toy.upstream, toy.series, root)
    assert leftovers(toy) == ["checkout"]


def test_git_checkout_is_sparse_clean_and_at_the_pin(toy: Toy) -> None:
    pin = toy.upstream
    (toy.repository / LOOP).write_bytes(b"moved = 1\n")
    commit_all(toy.repository, "the branch has moved on")
    root = patches.checkout(pin, toy.folder / "checkout", "git").root
    assert git(root, "rev-parse", "HEAD") == pin.commit
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "rev-list", "--count", "HEAD") == "1"


def test_checkout_again_does_nothing_and_says_so(toy: Toy) -> None:
    root = toy.checkout()
    before = snapshot(root)
    toy.repository.rename(toy.folder / "gone")  # control: it would fail if it fetched
    assert not patches.checkout(toy.upstream, root, "git").fresh
    assert snapshot(root) == before


def test_taken_destination_is_refused(toy: Toy) -> None:
    root = toy.folder / "checkout"
    root.mkdir()
    (root / "mine.txt").write_text("mine")
    with pytest.raises(patches.CheckoutError, match="not empty"):
        toy.checkout()
    assert [file.name for file in root.iterdir()] == ["mine.txt"]
    (root / "mine.txt").unlink()
    assert toy.checkout() == root  # control: an empty folder is fine


def test_destination_at_another_pin_is_refused(toy: Toy) -> None:
    root = toy.checkout()
    (toy.repository / "LICENSE").write_text("new")
    commit_all(toy.repository, "next")
    toy.write_lock()
    with pytest.raises(patches.CheckoutError, match="already holds toy at"):
        patches.checkout(toy.upstream, root, "git")


def test_missing_commit_and_unreachable_repository(toy: Toy) -> None:
    toy.write_lock(commit="1" * 40)
    with pytest.raises(patches.CheckoutError, match=f"no commit {'1' * 40}"):
        toy.checkout()
    toy.write_lock(url=(toy.folder / "nowhere").as_uri())
    with pytest.raises(patches.CheckoutError, match="cannot fetch from file:"):
        toy.checkout()
    assert leftovers(toy) == []


@pytest.mark.parametrize("source", ["git", "wheel"])
def test_wrong_blob_leaves_nothing(toy: Toy, source: str) -> None:
    toy.write_lock(loop="2" * 40)
    with pytest.raises(patches.CheckoutError, match=rf"{LOOP} is blob \w{{40}}, the lock of toy says 2222"):
        toy.checkout(source=source)
    assert leftovers(toy) == []


def test_wrong_hash_leaves_nothing(toy: Toy) -> None:
    toy.write_lock(sha256="0" * 64)
    with pytest.raises(patches.CheckoutError, match=r"has sha256 .*, the lock says 000"):
        from_wheel(toy)
    assert leftovers(toy) == []


@pytest.mark.parametrize(
    "name",
    ["../evil.py", f"{PREFIX}/pkg/../../../../evil.py", "/evil.py", "..\\evil.py", "C:\\evil.py", f"{PREFIX}/../e"],
)
def test_member_that_points_outside_is_refused(toy: Toy, name: str) -> None:
    toy.write_wheel({name: b"evil"})
    before = snapshot(toy.folder)
    with pytest.raises(patches.CheckoutError, match="points outside"):
        from_wheel(toy)
    assert snapshot(toy.folder) == before and leftovers(toy) == []


def test_member_that_is_a_link_is_refused(toy: Toy) -> None:
    toy.write_wheel(link=f"{PREFIX}/pkg/link.py")
    with pytest.raises(patches.CheckoutError, match="holds a link"):
        from_wheel(toy)
    assert leftovers(toy) == []
    toy.write_wheel({f"{PREFIX}/pkg/link.py": b"plain"})  # control: the same member as a plain file
    assert (from_wheel(toy) / "pkg/link.py").read_bytes() == b"plain"


def test_not_a_wheel_and_wrong_prefix(toy: Toy) -> None:
    toy.write_lock(prefix="elsewhere")
    with pytest.raises(patches.CheckoutError, match="holds nothing below elsewhere"):
        from_wheel(toy)
    toy.wheel.write_bytes(b"no archive")
    toy.write_lock()
    with pytest.raises(patches.CheckoutError, match="is not a wheel"):
        from_wheel(toy)


def test_auto_falls_back_to_the_wheel_and_says_why(toy: Toy) -> None:
    assert patches.checkout(toy.upstream, toy.folder / "first", "auto").marker.source == "git"  # control
    toy.write_lock(url=(toy.folder / "nowhere").as_uri())
    result = patches.checkout(toy.upstream, toy.folder / "checkout", "auto", download=lambda _, __: toy.wheel)
    assert result.marker.source == "wheel" and "git was tried first: cannot fetch" in result.note
    toy.write_lock(url=(toy.folder / "nowhere").as_uri(), sha256="0" * 64)
    with pytest.raises(patches.CheckoutError, match=r"neither source works: git: .*; wheel: .*sha256"):
        patches.checkout(toy.upstream, toy.folder / "second", "auto", download=lambda _, __: toy.wheel)


def test_interrupted_checkout_leaves_nothing(toy: Toy) -> None:
    def interrupted(_: object, __: object) -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patches.checkout(toy.upstream, toy.folder / "checkout", "wheel", download=interrupted)
    assert leftovers(toy) == []


def test_verify_notices_every_difference(toy: Toy) -> None:
    root = toy.checkout()
    (root / CRLF).chmod(0o644)
    with pytest.raises(patches.CheckoutError, match="has mode 100644"):
        patches.verify(toy.upstream, toy.series, root)
    (root / CRLF).chmod(0o755)
    patches.verify(toy.upstream, toy.series, root)  # control
    git(root, "commit", "-q", "--allow-empty", "-m", "mine")
    with pytest.raises(patches.CheckoutError, match="is at commit"):
        patches.verify(toy.upstream, toy.series, root)
    marker = root / ".forecache-upstream.json"
    marker.write_text(marker.read_text().replace(toy.upstream.commit, "3" * 40))
    with pytest.raises(patches.CheckoutError, match="the marker says commit"):
        patches.verify(toy.upstream, toy.series, root)
    marker.write_text("[]")
    with pytest.raises(patches.CheckoutError, match="not a marker file"):
        patches.verify(toy.upstream, toy.series, root)
    marker.unlink()
    with pytest.raises(patches.CheckoutError, match="it has no"):
        patches.verify(toy.upstream, toy.series, root)


def test_real_wheel_from_the_index(tmp_path: Path) -> None:
    upstream = patches.find(patches.load_lock(), "hunyuan21")
    assert upstream.wheel is not None
    try:
        file = wheels.download(upstream.wheel, tmp_path)
    except patches.CheckoutError as error:
        pytest.skip(f"needs the Python index, which is not reachable: {error}")
    root = patches.checkout(upstream, tmp_path / "real", "wheel", download=lambda _, __: file).root
    report = patches.check(upstream, patches.SERIES_ROOT, root)
    assert any("every level compiles" in fact for fact in report.facts)
    series = patches.load_series(upstream)
    before = snapshot(root)
    patches.apply(series, root)
    patches.revert(series, root)
    assert snapshot(root) == before


def test_a_wheel_may_hold_the_package_under_another_name(toy):
    toy.write_lock(prefix=f"{PREFIX}/pkg", root="pkg")
    root = toy.checkout(source="wheel")
    assert sorted(snapshot(root)) == sorted([*FILES, "LICENSE", ".forecache-upstream.json"])
    toy.write_lock(prefix=f"{PREFIX}/pkg", root="other")
    with pytest.raises(patches.CheckoutError, match="holds nothing below"):
        toy.checkout("second", source="wheel")


def test_a_wheel_without_the_licence_gets_the_copy_beside_the_patches_or_none(toy: Toy) -> None:
    text = toy.lock.read_text()
    toy.lock.write_text("".join(line for line in text.splitlines(True) if "/LICENSE" not in line))
    assert not toy.upstream.wheel.licence_files and toy.upstream.licence_files == ("LICENSE",)

    def get(name: str) -> Path:
        return patches.checkout(
            toy.upstream, toy.folder / name, "wheel", lambda _, __: toy.wheel, toy.series_root
        ).root  # fmt: skip

    with pytest.raises(patches.CheckoutError, match="the wheel of toy has no LICENSE, and there is none beside"):
        get("none")
    assert not (toy.folder / "none").exists()
    kept = toy.series_root / "toy" / "LICENSE"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"the text\n")
    assert (get("kept") / "LICENSE").read_bytes() == b"the text\n"
