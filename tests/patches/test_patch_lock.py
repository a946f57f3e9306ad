"""The lock: what it accepts, and that a complaint names key, value and what is allowed."""

from __future__ import annotations

import pytest
from toy_upstream import Toy

import forecache_patches as patches


def test_shipped_lock_is_valid_and_every_series_chains() -> None:
    lock = patches.load_lock()
    assert "hunyuan21" in lock
    for upstream in lock.values():
        patches.check(upstream, patches.SERIES_ROOT)


@pytest.mark.parametrize(("folder", "version"), [("hunyuan21", "2.1"), ("hunyuan2", "2.0")])
def test_shipped_licence_notes_stand_beside_the_patches(folder: str, version: str) -> None:
    notice = (patches.SERIES_ROOT / folder / "NOTICE").read_text(encoding="utf-8")
    assert f"licensed under the Tencent Hunyuan 3D {version} Community License Agreement" in notice
    assert all(territory in notice for territory in ("European Union", "United Kingdom", "South Korea"))


def test_a_licence_that_asks_for_a_copy_has_one_beside_the_patches() -> None:
    licence = patches.SERIES_ROOT / "sam3d" / "LICENSE"
    assert patches.blobs.blob_id(licence.read_bytes()) == "e58d758cc3d92e6d1a57b52f7e4d203d02a67e98"  # as in the pin
    notice = licence.with_name("NOTICE").read_text(encoding="utf-8")
    assert "SAM License" in notice and "adds a copy of it" in notice and "Trade controls" in notice


def test_files_under_two_licences_have_both_beside_the_patches() -> None:
    folder = patches.SERIES_ROOT / "fastsam3d"
    # the MIT text as in the pin; the SAM License, which its repository lacks, as in that of SAM 3D Objects
    assert patches.blobs.blob_id((folder / "LICENSE").read_bytes()) == "8df7ae10fcbb7ca78dc32c41978dc776ea51c18c"
    assert (folder / "LICENSE-SAM").read_bytes() == (patches.SERIES_ROOT / "sam3d" / "LICENSE").read_bytes()
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) 2026 wlfeng0509" in notice and "SAM License" in notice and "MIT License" in notice


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"commit": "abc"}, r"toy\.commit = 'abc': must be a full commit id"),
        ({"url": "ext::sh -c id"}, r"toy\.url = .*: must be an https"),
        ({"mode": "100666"}, r"mode = '100666': must be '100644' or '100755'"),
        ({"sha256": "00"}, r"toy\.wheel\.sha256 = '00': must be 64"),
        ({"prefix": "../x"}, r"toy\.wheel\.prefix = '\.\./x': must be"),
        ({"extra": "colour = 1"}, r"toy\.colour = 1: unknown key; known: .*title"),
        ({"extra": "modified_notice = 1"}, r"toy\.modified_notice = 1: must be true or false"),
    ],
)
def test_wrong_values_are_named(toy: Toy, changed: dict[str, str], message: str) -> None:
    assert toy.upstream.name == "toy"  # control: the lock is valid without the change
    toy.write_lock(**changed)
    with pytest.raises(patches.LockError, match=message):
        patches.load_lock(toy.lock)


def test_a_hooked_file_must_lie_in_the_sparse_paths(toy: Toy) -> None:
    toy.lock.write_text(toy.lock.read_text().replace('sparse = ["pkg"]', 'sparse = ["pk"]'))
    with pytest.raises(patches.LockError, match=r"pkg/loop\.py: must lie in one of the sparse paths"):
        patches.load_lock(toy.lock)


def test_missing_key_and_unknown_upstream(toy: Toy) -> None:
    with pytest.raises(patches.LockError, match="unknown upstream 'tyo'; known: toy"):
        patches.find(patches.load_lock(toy.lock), "tyo")
    toy.lock.write_text(toy.lock.read_text().replace('title = "Toy"', ""))
    with pytest.raises(patches.LockError, match=r"toy\.title = None: must be one line"):
        patches.load_lock(toy.lock)


def test_two_pins_of_one_upstream_share_a_folder(toy: Toy) -> None:
    text = toy.lock.read_text()
    second = text.replace("[toy", "[toy-next").replace('title = "Toy"', 'title = "Toy"\nupstream = "toy"')
    second = second.replace(toy.upstream.commit, "f" * 40)
    toy.lock.write_text(text + second)
    lock = patches.load_lock(toy.lock)
    first, other = lock["toy"].series_folder(), lock["toy-next"].series_folder()
    assert first.parent == other.parent and first != other and other.name == "f" * 12
