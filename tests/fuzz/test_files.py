"""Files from outside, damaged in every way: each is read as it was meant, or refused by an error of the package."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forecache_patches as patches
from forecache import Forecaster, Plan
from forecache.calibration import recording
from forecache.plan import Weights
from forecache_adapters.settings import Settings
from forecache_patches import edits, lock, patchfile, wheel
from forecache_patches.errors import CheckoutError, DraftError, LockError, SeriesError
from fuzz.cases import CASES

PLAN = Plan(tuple(map(float, range(7))), (0, 1, 3, 5), {2: Weights((-1.0, 2.0)), 4: Weights((1.0,), 0.1)})
VALUES = st.sampled_from(
    ["NaN", "Infinity", "-1", "1e400", "9" * 5000, "2.5", "true", "null", '"3"', "[]", "{}", "[" * 3000, "[[0]]", "{"]
)
LOCK = b"""
[toy]
title = "Toy"
url = "https://example.org/toy"
commit = "0123456789012345678901234567890123456789"
licence = "MIT"
licence_files = ["LICENSE"]
sparse = ["pkg"]
[toy.blobs]
"pkg/a.py" = { id = "0123456789012345678901234567890123456789", mode = "100644" }
[toy.wheel]
package = "toy"
version = "1.0"
sha256 = "0123456789012345678901234567890123456789012345678901234567890123"
prefix = "toy"
"""
ID = "0123456789012345678901234567890123456789"
PATCH = f"""Subject: A hook
Upstream: toy
Commit: {ID}
Pre-image: pkg/a.py {ID}
Post-image: pkg/a.py {ID}

Why.

--- a/pkg/a.py
+++ b/pkg/a.py
@@ -1,0 +2,1 @@
+ours
""".encode()
EDITS = f"""[[edit]]
path = "pkg/a.py"
insert = '''
    x = 1
'''
[edit.at]
{ID} = {{ delete = "1-2", sha256 = "{"0" * 64}" }}
""".encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some bytes cut, doubled, replaced by others or by what readers stumble over."""
    for _ in range(draw(st.integers(1, 3))):
        a = draw(st.integers(0, len(content)))
        b = min(a + draw(st.sampled_from([0, 1, 1, 3, 20])), len(content))
        odd = [b"", b"\0", b"\xff", b"..", b"/", b"\n", b"\r", b'"', b"9" * 5000, b"[" * 3000, b"-1", b"+", b"\\"]
        content = content[:a] + draw(st.sampled_from([*odd, content[a:b] * 2])) + content[b:]
    return content


# --- plans ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file.json"


def read_plan(file: Path, content: bytes) -> None:
    """Loaded, it is of the kinds it promises, and runs; or it is refused and the file is named."""
    file.write_bytes(content)
    try:
        plan = Plan.load(file)
    except ValueError as error:
        assert str(file) in str(error)
        return
    assert all(type(t) is float for t in plan.times) and all(type(i) is int for i in plan.computed)
    try:
        cache = Forecaster("linear", times=plan.times, plan=plan, made_for=plan.made_for)
    except ValueError:  # a schedule that this grid cannot have, a history that is too short
        return
    for i in range(len(plan.times) - 1):
        cache.step(i, lambda i=i: torch.full((1, 2), 1.0 + i), state=torch.ones(1, 2))


@settings(max_examples=CASES["plan_text"])
@given(data=st.data())
def test_plans_with_values_of_any_kind(file: Path, data: st.DataObject) -> None:
    fields: dict[str, Any] = {
        "forecache_plan": "3", "times": "[0, 1, 2, 3, 4, 5, 6]", "computed": "[0, 1, 3, 5]", "edges": "[]",
        "made_for": "{}",
        "weights": '{"2": {"velocity": [-1, 2]}}', "statistics": "{}", "groups": "{}",
    }  # fmt: skip
    name = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(VALUES)
    forms = ["%s", "[%s]", "[0, 1, %s]", '{"2": %s}', '{"2": {"velocity": %s}}', '{"2": {"velocity": [1, %s]}}']
    fields[name] = data.draw(st.sampled_from(forms)) % value
    if data.draw(st.booleans()):
        del fields[data.draw(st.sampled_from(sorted(fields)))]
    read_plan(file, ("{" + ", ".join(f'"{k}": {v}' for k, v in fields.items()) + "}").encode())


@settings(max_examples=CASES["plan_bytes"])
@given(data=st.data())
def test_plans_with_damaged_bytes(file: Path, data: st.DataObject) -> None:
    PLAN.save(file)
    read_plan(file, data.draw(damaged(file.read_bytes())))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"edges": []', '"edges": [], "edges": []', "keys .'edges'. stand there twice"),  # _once()
        ("0.0,", "1e999,", "times must be at least two finite"),
        ("0.0,", '"0",', "times must be a list of numbers"),  # _numbers(): float("0") is one
        ("0.0,", "9" * 400 + ",", "too large"),  # OverflowError
        ("0.0,", "[" * 9000 + ",", "is not a plan"),  # RecursionError, or not JSON
        ("0.0,", "9.0,", "times must rise or fall"),  # __post_init__
        (
            '"computed": [\n  0,\n  1,',
            '"computed": [\n  0,\n  1.5,',
            "computed must be a list of whole",
        ),  # int(1.5) is 1
        ('"computed": [\n  0,\n  1,', '"computed": [\n  1,\n  0,', "strictly increasing"),
        ('"2": {', '"02": {', "weights must be named by steps"),
    ],
)
def test_what_a_plan_is_refused_for(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "plan.json"
    PLAN.save(file)
    text = file.read_text()
    assert Plan.load(file) == PLAN  # control
    assert text.count(old) >= 1, text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        Plan.load(file)


def test_a_plan_that_is_not_there_is_named_early(tmp_path: Path) -> None:
    for call in (lambda p: Forecaster(steps=4, plan=p), lambda p: Settings(plan=p)):
        with pytest.raises(FileNotFoundError, match=r"plan='.*nowhere\.json' cannot be read: No such file"):
            call(str(tmp_path / "nowhere.json"))
    with pytest.raises(IsADirectoryError, match=r"plan='.*' cannot be read"):
        Forecaster(steps=4, plan=tmp_path)
    with pytest.raises(TypeError, match="plan must be a Plan or the path of its file, got 3"):
        Forecaster(steps=4, plan=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made_for must hold what JSON can"):
        Forecaster(times=PLAN.times, plan=PLAN, made_for={"model": {1, 2}})


# --- recordings -------------------------------------------------------------------------------------------------------
def a_recording() -> tuple[recording.Recording, np.ndarray, list[torch.Tensor]]:
    steps = {i: recording.Velocity(torch.ones(3) * i) for i in range(4)}
    made = recording.Recording(np.arange(5.0), 1.0, steps, final={"": 1.0}, parts={"": slice(None)}, gram=np.eye(4))
    return made, np.ones(2), [torch.zeros(3)] * 5


@settings(max_examples=CASES["recording"])
@given(data=st.data())
def test_damaged_recordings_are_refused_or_whole(file: Path, data: st.DataObject) -> None:
    recording.save(file, *a_recording())
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    try:
        loaded, left, target = recording.load(file)
    except ValueError as error:
        assert str(file) in str(error) and "remove it to record the run again" in str(error)
        return
    assert len(loaded.velocities) == 4 and left.shape == (2,) and len(target) == 5


@pytest.mark.parametrize("fault", ["length", "step", "gram", "nan", "target", "none"])
def test_recordings_of_no_run_are_refused(tmp_path: Path, fault: str) -> None:
    made, left, target = a_recording()
    recording.save(tmp_path / "a", made, left, target)
    recording.load(tmp_path / "a")  # control
    if fault == "length":
        made.velocities[1].cond = torch.ones(4)
    elif fault == "step":
        made.velocities[9] = made.velocities[1]
    elif fault == "gram":
        made.gram = np.eye(3)
    elif fault == "nan":
        made.gram[0, 0] = np.nan
    elif fault == "target":
        target = target[:3]
    else:
        made.velocities.clear()
    recording.save(tmp_path / "a", made, left, target)
    with pytest.raises(ValueError, match="is not a recording"):  # guard: recording._check
        recording.load(tmp_path / "a")


# --- locks, patches, edits --------------------------------------------------------------------------------------------
@settings(max_examples=CASES["lock"])
@given(damaged(LOCK))
def test_damaged_locks(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "lock.toml"
    file.write_bytes(content)
    try:
        for upstream in patches.load_lock(file).values():
            assert all(lock.is_inside(path) for path in (*upstream.blobs, *upstream.sparse))
    except LockError:
        pass


@pytest.mark.parametrize("bad", [b"a = " + b"9" * 5000, b"a = " + b"[" * 3000, b"\xff", b"a = 1\na = 2"])
def test_what_toml_readers_stumble_over_is_a_lock_error(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "lock.toml").write_bytes(LOCK)
    assert "toy" in patches.load_lock(tmp_path / "lock.toml")  # control
    (tmp_path / "lock.toml").write_bytes(bad)
    with pytest.raises(LockError, match=r"lock\.toml is not TOML"):  # guard: parse_toml
        patches.load_lock(tmp_path / "lock.toml")
    with pytest.raises(LockError, match="cannot read the lock"):
        patches.load_lock(tmp_path)


@settings(max_examples=CASES["patch"])
@given(damaged(PATCH))
def test_damaged_patches(content: bytes) -> None:
    try:
        patch = patchfile.parse_patch("0001-a.patch", content)
    except SeriesError as error:
        assert "0001-a.patch" in str(error)
        return
    assert all(lock.is_inside(file.path) and file.insertions for file in patch.files)


@settings(max_examples=CASES["edits"])
@given(damaged(EDITS))
def test_damaged_edits(content: bytes) -> None:
    try:
        found = edits.parse_edits("edits.toml", content.decode("utf-8", "replace"))
    except DraftError:
        return
    assert all(lock.is_inside(each.path) and each.places for each in found)


@settings(max_examples=CASES["edits_round_trip"])
@given(st.text(max_size=8), st.text(max_size=12), st.text(max_size=8))
def test_edits_are_read_back_or_not_written(path: str, line: str, reason: str) -> None:
    made = (edits.Edit(path, {ID: edits.Place(0, 0, "", reason), ID[::-1]: edits.Place(3, 0, "")}, f"{line}\n".encode(
        "utf-8", "surrogatepass")),)  # fmt: skip
    try:
        text = edits.format_edits(made)
    except DraftError:
        assert line != "x = 1" or path != "a" or reason != "r"
        return
    assert edits.parse_edits("edits", text) == made


def test_endless_digits_are_no_number() -> None:
    assert patchfile.parse_patch("p", PATCH).files  # control
    with pytest.raises(SeriesError, match="expected a hunk"):  # guard: {1,9} in _HUNK; int() refuses 5000 digits
        patchfile.parse_patch("p", PATCH.replace(b"-1,0", b"-" + b"1" * 5000 + b",0"))
    with pytest.raises(DraftError, match="delete"):
        edits.parse_edits("e", EDITS.decode().replace('"1-2"', f'"1-{"2" * 5000}"'))


# --- archives ---------------------------------------------------------------------------------------------------------
def a_wheel(file: Path, **members: bytes | str) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"toy/pkg/a.py": b"a = 1\n" * 9, "toy/pkg/b.py": b"b", **members}.items():
            archive.writestr(name, content)
    return file


def extract(file: Path, root: Path, tmp: Path) -> None:
    (tmp / "lock.toml").write_bytes(LOCK)
    upstream = patches.load_lock(tmp / "lock.toml")["toy"]
    assert upstream.wheel is not None
    wheel.extract(file, upstream, upstream.wheel, root)


@settings(max_examples=CASES["wheel"])
@given(data=st.data())
def test_damaged_wheels(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tmp = tmp_path_factory.getbasetemp()
    file = a_wheel(tmp / "toy.whl")
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    root = tmp / "wheel-root"
    with contextlib.suppress(CheckoutError):
        extract(file, root, tmp)
    inside = {"wheel-root/pkg/a.py", "wheel-root/pkg/b.py"}
    found = {str(path.relative_to(tmp)) for path in root.rglob("*") if path.is_file()}
    assert all(path in inside or path.startswith("wheel-root/pkg/") for path in found)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../x": b""}, "points outside"), ({"/x": b""}, "points outside"),
        ({"toy/pkg\\..\\..\\x": b""}, "points outside"),
        ({"toy/pkg/./a.py": b""}, "two members for one file"), ({"toy/pkg/a.py/c": b""}, "cannot write"),
        ({"toy/pkg/huge.py": b"0" * 5000}, "would extract to .* bytes, of 4000 allowed"),
    ],
)  # fmt: skip
def test_archives_that_want_more_than_they_may(tmp_path, monkeypatch, members, message) -> None:
    monkeypatch.setattr(wheel, "LIMIT", 4000)
    extract(a_wheel(tmp_path / "good.whl"), tmp_path / "good", tmp_path)  # control
    with pytest.raises(CheckoutError, match=message):
        extract(a_wheel(tmp_path / "toy.whl", **members), tmp_path / "root", tmp_path)
    assert message == "cannot write" or not (tmp_path / "root").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_twice_a_truncated_and_an_encrypted_archive(tmp_path: Path) -> None:
    twice = a_wheel(tmp_path / "twice.whl")
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("toy/pkg/a.py", b"other")
    with pytest.raises(CheckoutError, match="two members for one file"):
        extract(twice, tmp_path / "root", tmp_path)
    whole = a_wheel(tmp_path / "cut.whl").read_bytes()
    secret = bytearray(whole)
    secret[whole.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted member
    for content in (whole[:-30], whole[:20], b"", bytes(secret), whole.replace(b"PK\3\4", b"PK\3\5")):
        (tmp_path / "cut.whl").write_bytes(content)
        with pytest.raises(CheckoutError, match=r"not a wheel, or a damaged one.*nothing was extracted"):  # DAMAGED
            extract(tmp_path / "cut.whl", tmp_path / "root", tmp_path)
    assert not (tmp_path / "root").exists()
    with pytest.raises(CheckoutError, match="cannot read"):
        extract(tmp_path / "no.whl", tmp_path / "root", tmp_path)


def test_json_of_a_checkout_that_is_too_deep(tmp_path: Path) -> None:
    (tmp_path / ".forecache-upstream.json").write_text("[" * 200_000)
    with pytest.raises(CheckoutError, match="not a marker file"):
        patches.require_marker(tmp_path)
    assert json.loads("[1]")  # control
