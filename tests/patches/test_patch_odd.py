"""Odd files, full disks, two commands at once: a sentence, no traceback, nothing half-written, and nobody waits."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_upstream import CRLF, FILES, LOOP, TAIL, Toy, commit_all, edit, git, snapshot
from typer.testing import CliRunner

import forecache_patches as patches
from forecache_cli.main import app
from forecache_patches import blobs, writing

MARKER = ".forecache-upstream.json"


def to_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def to_loop(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.symlink_to(file.parent)


def to_elsewhere(file: Path) -> None:
    file.parent.rename(file.parents[2] / "elsewhere")
    file.parent.symlink_to(file.parents[2] / "elsewhere")


def to_large(file: Path) -> None:
    with file.open("ab") as handle:
        handle.truncate((1 << 20) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (to_fifo, "is no plain file"),
        (to_folder, "is no plain file"),
        (to_loop, "link"),
        (to_elsewhere, "is a link or lies behind one"),
        (to_large, f"has {(1 << 20) + 1} bytes, of {blobs.LIMIT} allowed"),
    ],
)
def test_a_hooked_file_that_is_none(toy: Toy, change: Callable[[Path], None], message: str) -> None:
    root = toy.fork()
    change(root / LOOP)
    rest = {path: (root / path).read_bytes() for path in (CRLF, TAIL) if (root / path).is_file()}
    for operation in (patches.apply, patches.revert, patches.status, patches.export):
        with pytest.raises(patches.TreeError, match=message):
            operation(toy.series, root)
    assert {path: (root / path).read_bytes() for path in rest} == rest


@pytest.mark.parametrize("name", [LOOP, MARKER])
def test_a_file_that_cannot_be_read(toy: Toy, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toy.checkout()
    read = Path.read_bytes

    def failing(file: Path) -> bytes:
        if file == root / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", failing)
    for operation in (patches.apply, patches.revert, patches.status):
        with pytest.raises(patches.PatchError, match=f"cannot read .*{Path(name).name}: Input/output error"):
            operation(toy.series, root)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"[" * 100_000, b'{"format": 1, "upstream": 5}'])
def test_a_marker_that_is_none(toy: Toy, content: bytes) -> None:
    root = toy.checkout()
    (root / MARKER).write_bytes(content)
    with pytest.raises(patches.CheckoutError, match="is not a marker file of this tool"):
        patches.apply(toy.series, root)


def test_mode_owner_and_attributes_are_kept(toy: Toy) -> None:
    root = toy.fork()
    file = root / LOOP
    owner = (1234, 1234) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    file.chmod(0o4755)
    try:
        os.setxattr(file, b"user.note", b"keep")
        noted = True
    except (OSError, AttributeError):  # a file system without them
        noted = False
    assert patches.apply(toy.series, root).changed
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o4755)
    assert not noted or os.getxattr(file, b"user.note") == b"keep"


def test_other_line_ends_are_named_as_such(toy: Toy) -> None:
    root = toy.fork(lambda root: edit(root / LOOP, b"END = 1\n", b"END = 2\n"))
    git(root, "config", "core.autocrlf", "true")
    (root / LOOP).write_bytes((root / LOOP).read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(
        patches.TreeError, match=r"has line ends \\r\\n, the pinned file \\n; check it out with core.aut"
    ):
        patches.apply(toy.series, root)
    git(root, "config", "core.autocrlf", "false")
    (root / LOOP).unlink()
    git(root, "checkout", "--", LOOP)
    assert patches.apply(toy.series, root).changed


def test_no_room_left(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toy.fork()
    before = snapshot(root)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(patches.PatchError, match="No space left on device; nothing was changed"):
        patches.apply(toy.series, root)
    assert snapshot(root) == before


def test_one_command_at_a_time(toy: Toy) -> None:
    root = toy.fork()
    before = snapshot(root)
    with writing.alone(root):
        for operation in (patches.apply, patches.revert):
            with pytest.raises(patches.PatchError, match="another command is changing the files"):
                operation(toy.series, root)
        assert snapshot(root) == before and patches.status(toy.series, root).level == 0  # who only reads, may
    assert patches.apply(toy.series, root).changed


def test_many_at_once_give_one_state(toy: Toy) -> None:
    root = toy.fork()
    before, said = snapshot(root), []

    def work(operation: Callable[..., object]) -> None:
        try:
            operation(toy.series, root)
        except Exception as error:
            said.append(error)

    threads = [threading.Thread(target=work, args=[each]) for each in (patches.apply, patches.revert) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another command" in str(error) for error in said), said
    assert patches.status(toy.series, root).level in (0, 2)
    patches.revert(toy.series, root)
    assert snapshot(root) == before  # no temporary file either


def test_a_checkout_that_another_command_finishes_first(toy: Toy) -> None:
    root = toy.folder / "checkout"

    def overtaken(*_: object) -> Path:
        assert patches.checkout(toy.upstream, root, "git").fresh
        return toy.wheel

    result = patches.checkout(toy.upstream, root, "wheel", overtaken)
    assert not result.fresh and result.marker.source == "git"
    assert not list(toy.folder.glob(".checkout.*"))


def test_a_destination_that_another_program_fills_first(toy: Toy) -> None:
    root = toy.folder / "checkout"

    def filled(*_: object) -> Path:
        root.mkdir()
        (root / "theirs.txt").write_text("theirs")
        return toy.wheel

    with pytest.raises(patches.CheckoutError, match="exists and is not empty"):
        patches.checkout(toy.upstream, root, "wheel", filled)
    assert [file.name for file in root.iterdir()] == ["theirs.txt"] and not list(toy.folder.glob(".checkout.*"))


@pytest.mark.parametrize(
    ("destination", "message"),
    [("lock.toml/x", "cannot make a folder in"), ("x" * 300, "cannot read"), ("link", "exists and is not a folder")],
)
def test_a_destination_that_cannot_be(toy: Toy, destination: str, message: str) -> None:
    (toy.folder / "link").symlink_to(toy.folder / "nowhere")
    before = snapshot(toy.folder)
    with pytest.raises(patches.CheckoutError, match=message):
        patches.checkout(toy.upstream, toy.folder / destination, "git")
    assert snapshot(toy.folder) == before


def run(toy: Toy, *arguments: object, options: bool = True) -> tuple[int, str]:
    """Exit status, and what was printed, of a command that may fail but not break."""
    given = ["--lock", str(toy.lock), "--series", str(toy.series_root)] if options else []
    result = CliRunner().invoke(app, [*map(str, arguments), *given])
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    return result.exit_code, result.stdout + result.stderr


LONG = "x" * 300


def test_what_a_user_can_get_wrong_is_a_line(toy: Toy) -> None:
    root = toy.checkout()
    lock = ["--lock", toy.lock]
    wrong: list[tuple[bool, list[object]]] = [
        (False, ["upstream", "checkout", "toy", toy.lock / "x", "--source", "git", *lock]),
        (False, ["upstream", "checkout", "toy", toy.folder / LONG, "--source", "git", *lock]),
        (False, ["upstream", "checkout", "toy", toy.folder / LONG / "x", "--source", "git", *lock]),
        (True, ["upstream", "status", toy.folder / LONG]),
        (True, ["upstream", "verify", toy.lock]),
        (True, ["upstream", "bump", "toy", "1" * 40, "--checkout", toy.folder / LONG, "--output", root]),
        (True, ["upstream", "bump", "toy", "1" * 40, "--checkout", toy.folder / "nowhere", "--output", root]),
        (True, ["patch", "status", "toy", toy.folder / LONG]),
        (True, ["patch", "apply", "toy", toy.lock]),
        (True, ["patch", "revert", "toy", toy.folder / "nowhere"]),
        (True, ["patch", "export", "toy", root, "--output", toy.folder]),
        (True, ["patch", "make", "toy", root, "--title", "x", "--against", toy.folder / LONG]),
        (True, ["patch", "check", "toy", "--checkout", toy.folder / LONG]),
        (False, ["patch", "list", "toy", *lock, "--series", toy.folder / LONG]),
        (False, ["pr", "build", "x/y", "--drafts", toy.folder]),
        (False, ["pr", "check", f"x/{LONG}", "--drafts", toy.folder]),
        (False, ["pr", "store", f"{LONG}/y", "--checkout", toy.folder / LONG, "--drafts", toy.folder]),
    ]
    for options, arguments in wrong:
        code, said = run(toy, *arguments, options=options)
        assert code == 2 or (code == 1 and said.startswith("error: ") and said.count("\n") == 1), (arguments, said)


def test_status_says_by_its_exit_whether_the_state_is_known(toy: Toy) -> None:
    root = toy.checkout()
    for operation in (lambda *_: None, patches.apply, patches.revert):
        operation(toy.series, root)
        assert run(toy, "patch", "status", "toy", root)[0] == run(toy, "upstream", "status", root)[0] == 0
    patches.apply(toy.series, root)
    patched = (root / TAIL).read_bytes()
    for content, text in ((FILES[TAIL], "patched in part"), (b"# mine\n" + patched, "modified")):
        (root / TAIL).write_bytes(content)
        for command in (["patch", "status", "toy"], ["upstream", "status"]):
            code, said = run(toy, *command, root)
            assert code == 1 and text in said
    commit_all(root, "mine")
    assert run(toy, "patch", "status", "toy", root)[0] == 0  # a fork with the patches


def test_names_are_shown_as_they_are(toy: Toy) -> None:
    odd = os.fsencode(toy.folder) + b"/[/bold]\xff"
    command = [sys.executable, "-m", "forecache_cli", "upstream", "checkout", "toy", odd, "--source", "git"]
    done = subprocess.run([*command, "--lock", str(toy.lock)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"/[/bold]\udcff holds toy" in done.stdout and Path(os.fsdecode(odd), LOOP).is_file()
    toy.lock.write_text(toy.lock.read_text().replace('licence = "Toy License"', 'licence = "[/red]Toy"'))
    assert "[/red]Toy" in run(toy, "upstream", "list")[1]
