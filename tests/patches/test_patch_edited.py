"""Files that were edited around the hooks: merged so that ours is found and taken out again, or not touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_upstream import commit_all, git

import forecache_patches as patches
from forecache_patches.blobs import blob_id
from forecache_patches.insertion import insert, split_lines
from forecache_patches.merge import Carrier

UPSTREAMS = [name for name, upstream in patches.load_lock().items() if len(patches.load_series(upstream))]
REACH = 4  # lines on either side of a hook that are edited


@dataclass(frozen=True)
class Subject:
    """A series on files that have a place for each of its hooks: ``originals`` by path."""

    series: patches.Series
    originals: dict[str, bytes]

    def carrier(self, path: str) -> Carrier:
        return Carrier(self.series, path, self.originals[path])


def on_toy_files(name: str) -> Subject:
    """The series of ``name``, hook by hook as it is stored, on invented files with blank and repeated lines."""
    series = patches.load_series(patches.find(patches.load_lock(), name))
    paths = dict.fromkeys(file.path for patch in series.patches for file in patch.files)
    originals = {path: toy_file(max(one.after for one in hunks(series, path)) + 2 * REACH) for path in paths}
    current, chain = dict(originals), []
    for patch in series.patches:
        files = []
        for file in patch.files:
            made = insert(current[file.path], file.insertions)
            files.append(replace(file, pre=blob_id(current[file.path]), post=blob_id(made)))
            current[file.path] = made
        chain.append(replace(patch, files=tuple(files)))
    blobs = {path: replace(series.upstream.blobs[path], id=blob_id(originals[path])) for path in paths}
    return Subject(replace(series, upstream=replace(series.upstream, blobs=blobs), patches=tuple(chain)), originals)


def toy_file(count: int) -> bytes:
    lines = (
        b"\n" if n % 4 == 1 else b"    return x\n" if n % 7 == 3 else b"    x = f(x, %d)\n" % n for n in range(count)
    )
    return b"".join(lines)


def hunks(series: patches.Series, path: str) -> list[patches.insertion.Insertion]:
    return [one for patch in series.patches for file in patch.files if file.path == path for one in file.insertions]


@st.composite
def edited(draw: st.DrawFn, carrier: Carrier) -> bytes:
    """The original with a few edits next to hooks: lines inserted, removed, changed and repeated, ours among them."""
    lines = split_lines(carrier.images[0])
    ours = [line for one in hunks(carrier.series, carrier.path) for line in one.lines]
    places = [one.after for one in hunks(carrier.series, carrier.path)]
    new = st.sampled_from([b"import pdb\n", b"\n", b"    return x\n", b"        pass\n", *ours])
    for _ in range(draw(st.integers(1, 4))):
        at = max(0, min(len(lines) - 1, draw(st.sampled_from(places)) + draw(st.integers(-REACH, REACH))))
        match draw(st.sampled_from(["insert", "insert", "change", "remove", "repeat", "end"])):
            case "insert":
                lines[at:at] = draw(st.lists(new, min_size=1, max_size=3))
            case "change":
                lines[at] = draw(new)
            case "remove":
                del lines[at : at + draw(st.integers(1, 3))]
            case "repeat":
                lines[at:at] = lines[at : at + draw(st.integers(1, 3 * REACH))]
            case _:
                lines[-1] = lines[-1].rstrip(b"\n")
    return b"".join(lines)


def check_carried(carrier: Carrier, fork: bytes) -> bool:
    """Every level is put into ``fork``, found there and taken out again, or refused; True: none was refused."""
    merged = 0
    for level, image in enumerate(carrier.images):
        try:
            made = carrier.put(fork, level)
        except patches.ConflictError:
            continue
        merged += 1
        found = carrier.find(made)
        assert found is not None
        assert (carrier.images[found[0]], found[1]) == (image, fork)
    return merged == len(carrier.images)


@pytest.mark.parametrize("name", UPSTREAMS)
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_put_is_found_and_taken_out_again(name: str, data: st.DataObject) -> None:
    subject = on_toy_files(name)
    carrier = subject.carrier(data.draw(st.sampled_from(list(subject.originals))))
    check_carried(carrier, data.draw(edited(carrier)))


@pytest.mark.parametrize("name", UPSTREAMS)
@settings(max_examples=40)
@given(data=st.data())
def test_what_leaves_the_neighbours_alone_is_merged(name: str, data: st.DataObject) -> None:
    subject = on_toy_files(name)
    carrier = subject.carrier(data.draw(st.sampled_from(list(subject.originals))))
    lines = split_lines(carrier.images[0])
    taken = {hunk.after for hunk in carrier.ours[-1]}
    for n in sorted(data.draw(st.sets(st.integers(1, len(lines)), max_size=6)), reverse=True):
        if n not in taken:  # not between two neighbours
            lines.insert(n, b"import module_%d\n" % n)
    assert check_carried(carrier, b"".join(lines))


@pytest.mark.parametrize("name", UPSTREAMS)
def test_real_files(name: str, checkouts: Callable[..., Path]) -> None:
    series, root = patches.load_series(patches.find(patches.load_lock(), name)), checkouts(name)
    paths = dict.fromkeys(file.path for patch in series.patches for file in patch.files)
    subject = Subject(series, {path: (root / path).read_bytes() for path in paths})
    merged = []

    @settings(max_examples=25)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        carrier = subject.carrier(data.draw(st.sampled_from(list(paths))))
        merged.append(check_carried(carrier, data.draw(edited(carrier))))

    run()
    assert all(check_carried(subject.carrier(path), b"import pdb\n" + subject.originals[path]) for path in paths)


@pytest.fixture(scope="module", params=UPSTREAMS)
def fork(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    """A repository whose history has the pinned files."""
    subject, root = on_toy_files(request.param), tmp_path_factory.mktemp("fork")
    git(root, "init", "-q")
    write(root, subject.originals)
    commit_all(root, "pinned")
    return subject, root


def write(root: Path, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def read(root: Path, subject: Subject) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in subject.originals}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), committed=st.booleans())
def test_apply_status_revert(fork: tuple[Subject, Path], data: st.DataObject, committed: bool) -> None:
    subject, root = fork
    files = {path: data.draw(edited(subject.carrier(path))) for path in subject.originals}
    write(root, files)
    git(root, "commit", "-q", "-a", "--allow-empty", "-m", "edited")
    check_round(subject, root, committed)


def check_round(subject: Subject, root: Path, committed: bool) -> bool:
    """Applied, seen to be, and reverted to the same bytes; or refused with nothing written (False)."""
    before, total = read(root, subject), len(subject.series)
    try:
        patches.apply(subject.series, root)
    except patches.PatchError:
        assert read(root, subject) == before
        return False
    made = read(root, subject)
    if committed:
        git(root, "commit", "-q", "-a", "--allow-empty", "-m", "patched")
    assert patches.status(subject.series, root).level == total
    assert not patches.apply(subject.series, root).changed and read(root, subject) == made
    patches.revert(subject.series, root)
    assert read(root, subject) == before
    assert patches.status(subject.series, root).level == 0
    return True


@pytest.mark.parametrize("committed", [False, True])
def test_an_import_one_line_above_a_hook(fork: tuple[Subject, Path], committed: bool) -> None:
    subject, root = fork
    for path, content in subject.originals.items():
        lines = split_lines(content)
        lines.insert(hunks(subject.series, path)[0].after - 1, b"import pdb\n")
        write(root, {path: b"".join(lines)})
    git(root, "commit", "-q", "-a", "--allow-empty", "-m", "edited")
    assert check_round(subject, root, committed), "not refused"


def test_our_lines_in_another_form_are_not_inserted_again(fork: tuple[Subject, Path]) -> None:
    subject, root = fork
    write(root, subject.originals)
    git(root, "commit", "-q", "-a", "--allow-empty", "-m", "original")
    patches.apply(subject.series, root)
    for path in subject.originals:
        lines = split_lines((root / path).read_bytes())
        first = hunks(subject.series, path)[0]
        lines[first.after] = lines[first.after].rstrip() + b"  # mine\n"
        write(root, {path: b"".join(lines)})
    git(root, "commit", "-q", "-a", "-m", "edited ours")
    before = read(root, subject)
    assert patches.status(subject.series, root).text == "modified"
    for operation in (patches.apply, patches.revert):
        with pytest.raises(patches.TreeError, match=r"has lines of 000\d-.*but not as the patches put them"):
            operation(subject.series, root)
    assert read(root, subject) == before
