"""A signal while files are written (`patch apply`, `calibrate`) leaves them old or new, and no unfinished one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forecache import Plan, files
from forecache_cli.main import app
from forecache_patches import writing

OLD, NEW = b"old\n", b"new\n"
NAMES = [f"{k}.py" for k in range(6)]
WRITE = """
import sys, time
from pathlib import Path
from forecache_patches import writing
replace = Path.replace
def slow(self, target):  # time for a signal between two files
    time.sleep(0.01)
    return replace(self, target)
Path.replace = slow
if sys.argv[2] == "bare":
    import contextlib
    writing.signals_wait = contextlib.nullcontext
print("ready", flush=True)
writing.write_all(Path(sys.argv[1]), {f"{k}.py": b"new\\n" for k in range(6)})
"""
FLOW = """
import time, torch
GRID = [k / 6 for k in range(7)]
def run(seed, cache):
    time.sleep(0.01)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
    for i in range(6):
        x = x + (GRID[i + 1] - GRID[i]) * cache.step(i, lambda: torch.sin(3 * x) - x * GRID[i], state=x)
    return x
def toy():
    print("ready", flush=True)
    return {"run": run, "times": GRID, "probes": 0}
"""

REPLACE = """
import signal, sys, time
from pathlib import Path
from forecache import files
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
def write(partial):  # half of it, time for a signal, the rest
    with partial.open("wb") as file:
        file.write(b"ne")
        file.flush()
        print("ready", flush=True)
        time.sleep(60)
        file.write(b"w\\n")
path = Path(sys.argv[1])
write(path) if sys.argv[2] == "bare" else files.replace(path, write)
"""


def broken_off(command: list[str], number: int, after: float) -> int:
    """Exit status of ``command``, sent ``number`` so long after it said that it is ready."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(number)
    process.stdout.read()
    return process.wait(60)


def old_files(folder: Path) -> None:
    for name in NAMES:
        (folder / name).write_bytes(OLD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_files_are_all_old_or_all_new(tmp_path: Path, number: int) -> None:
    for k in range(8):
        old_files(tmp_path)
        status = broken_off(["-c", WRITE, str(tmp_path), "guarded"], number, 0.008 * k)
        assert {file.name for file in tmp_path.iterdir()} == set(NAMES), "no unfinished file"
        assert len({(tmp_path / name).read_bytes() for name in NAMES}) == 1  # guard: writing.signals_wait
        assert status != 0 or (tmp_path / NAMES[0]).read_bytes() == NEW  # the signal was held back, not swallowed


def test_without_that_guard_a_signal_leaves_a_mixture(tmp_path: Path) -> None:
    old_files(tmp_path)
    broken_off(["-c", WRITE, str(tmp_path), "bare"], signal.SIGTERM, 0.03)
    assert {file.name for file in tmp_path.iterdir()} != set(NAMES) or len(
        {(tmp_path / n).read_bytes() for n in NAMES}
    ) > 1


@pytest.mark.parametrize(
    ("number", "how", "content"),
    [(signal.SIGINT, "guarded", OLD), (signal.SIGKILL, "guarded", OLD), (signal.SIGKILL, "bare", b"ne")],
)
def test_a_file_is_not_half_written(tmp_path: Path, number: int, how: str, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(OLD)
    broken_off(["-c", REPLACE, str(file), how], number, 0)
    assert file.read_bytes() == content  # guard: files.replace; without it ("bare"), half
    if number != signal.SIGKILL:  # which no program can tidy up after
        assert list(tmp_path.iterdir()) == [file], "no unfinished file"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(OLD)

    def full(partial: Path) -> None:
        partial.write_bytes(b"ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        files.replace(file, full)
    assert file.read_bytes() == OLD and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["plan.json", "x" * 240 + ".json"])
def test_threads_may_replace_one_file(tmp_path: Path, name: str) -> None:
    """Each has an unfinished file of its own, and the name of that is no longer than a file system takes."""
    file, both, errors = tmp_path / name, threading.Barrier(2), []

    def write(partial: Path) -> None:
        partial.write_text(threading.current_thread().name)
        both.wait(10)  # the two are at work at once

    def replace() -> None:
        try:
            files.replace(file, write)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=replace, name=each) for each in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors  # guard: the random part of the partial's name
    assert file.read_text() in ("first", "second") and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")
def test_a_file_that_is_replaced_keeps_its_mode_and_the_links_to_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    file, link, seen = tmp_path / "kept" / "file", tmp_path / "link", []
    file.write_bytes(OLD)
    file.chmod(0o400)  # a file that may not be written may be replaced
    link.symlink_to(file)

    def write(partial: Path) -> None:
        seen.append(partial.stat().st_mode & 0o077)
        partial.write_bytes(NEW)

    files.replace(link, write)
    assert link.is_symlink() and file.read_bytes() == NEW and not file.is_symlink()  # guard: realpath
    assert file.stat().st_mode & 0o777 == 0o400 and seen == [0], "and nobody else could read the new one earlier"
    files.replace(tmp_path / "fresh", write)
    (tmp_path / "plain").write_bytes(OLD)
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode, "a new file is like any other"
    (tmp_path / "dangling").symlink_to("target")
    files.replace(tmp_path / "dangling", write)
    assert (tmp_path / "target").read_bytes() == NEW and (tmp_path / "dangling").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_no_regular_file_is_written_to(tmp_path: Path) -> None:
    """As root a rename would put a file in the place of /dev/null."""
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    files.replace(pipe, lambda path: path.write_bytes(NEW))
    reader.join(10)
    assert found == [NEW] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: a process that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_handlers_are_put_back_and_the_signal_arrives() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    done = []
    with pytest.raises(KeyboardInterrupt), writing.signals_wait():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done and before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.long
def test_a_calibration_that_is_broken_off_goes_on_to_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)

    def command(out: str) -> list[str]:
        options = ["--calls", "3", "--seeds", "6", "--test", "50:52", "--out", str(tmp_path / out)]
        return ["-m", "forecache_cli", "calibrate", f"{tmp_path / 'flow.py'}:toy", *options]

    assert CliRunner().invoke(app, command("whole")[2:]).exit_code == 0
    expected = (tmp_path / "whole" / "plan-3.json").read_bytes()
    for number, after in ((signal.SIGTERM, 0.03), (signal.SIGINT, 0.06)):
        status = broken_off(command("cut"), number, after)
        left = list((tmp_path / "cut").rglob("*.partial")) if (tmp_path / "cut").exists() else []
        assert not left, "no unfinished file"  # guard: console.leave
        plan = tmp_path / "cut" / "plan-3.json"
        assert status != 0 or plan.exists()
        assert not plan.exists() or Plan.load(plan)
    assert CliRunner().invoke(app, command("cut")[2:]).exit_code == 0
    assert (tmp_path / "cut" / "plan-3.json").read_bytes() == expected
