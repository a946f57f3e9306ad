"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_upstream import LOOP, Toy, edit, git, snapshot
from typer.testing import CliRunner

from forecache_cli.main import app


def run(toy: Toy, *arguments: str | Path, series: bool = True, code: int = 0) -> str:
    """Run a command on the toy lock; returns stdout, or stderr (one line) if it is meant to fail."""
    options = ["--lock", str(toy.lock), *(["--series", str(toy.series_root)] if series else [])]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
        return result.stderr
    return result.stdout


def test_a_whole_session(toy: Toy) -> None:
    root = toy.folder / "checkout"
    assert "toy" in run(toy, "upstream", "list")
    assert "hooked files verified" in run(toy, "upstream", "checkout", "toy", root, "--source", "git", series=False)
    assert "already holds" in run(toy, "upstream", "checkout", "toy", root, series=False)
    before = snapshot(root)
    assert "unpatched" in run(toy, "upstream", "status", root)
    assert "0001-first-hook.patch" in run(toy, "patch", "list", "toy")
    assert "applied 2 of 2" in run(toy, "patch", "apply", "toy", root)
    assert "nothing to do" in run(toy, "patch", "apply", "toy", root)
    assert "patched, 2 of 2" in run(toy, "patch", "status", "toy", root)
    assert "2 of 2 patches applied" in run(toy, "upstream", "verify", root)
    assert "every level compiles" in run(toy, "patch", "check", "--checkout", root)
    assert "every level compiles" in run(toy, "patch", "check", "toy", "--source", "git")
    assert run(toy, "patch", "export", "toy", root).startswith("diff --git")
    assert "took 2 patches out" in run(toy, "patch", "revert", "toy", root)
    assert "nothing to do" in run(toy, "patch", "revert", "toy", root)
    assert snapshot(root) == before


def test_export_to_a_file_applies(toy: Toy) -> None:
    root, file = toy.checkout(), toy.folder / "out.patch"
    run(toy, "patch", "export", "toy", root, "--output", file)
    git(root, "apply", "--check", str(file))


def test_make_and_bump(toy: Toy) -> None:
    root = toy.checkout()
    run(toy, "patch", "apply", "toy", root)
    edit(root / LOOP, b"END = 1\n", b"END = 1\nOURS = 1\n")
    assert "0003-a-third.patch" in run(toy, "patch", "make", "toy", root, "--title", "A third")
    assert "patched, 3 of 3" in run(toy, "patch", "status", "toy", root)
    git(toy.repository, "commit", "-q", "--allow-empty", "-m", "next")
    commit = git(toy.repository, "rev-parse", "HEAD")
    text = run(toy, "upstream", "bump", "toy", commit, "--checkout", root, "--output", toy.folder / "out")
    assert "the hooked files are the same" in text and commit in text


def test_errors_are_one_line_and_exit_1(toy: Toy) -> None:
    root = toy.checkout()
    edit(root / LOOP, b"END = 1\n", b"END = 2\n")
    assert "unknown upstream 'nope'" in run(toy, "patch", "apply", "nope", root, code=1)
    assert "not committed" in run(toy, "patch", "apply", "toy", root, code=1)
    assert "not committed" in run(toy, "upstream", "verify", root, code=1)
    assert "not a checkout" in run(toy, "upstream", "status", toy.folder, code=1)
    assert "exclude one another" in run(toy, "patch", "check", "--checkout", root, "--source", "git", code=1)
    toy.write_lock(commit="1" * 40)
    assert "no commit" in run(
        toy, "upstream", "checkout", "toy", toy.folder / "x", "--source", "git", series=False, code=1
    )


def test_bugs_keep_their_traceback(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecache_patches.load_lock", lambda _: 1 / 0)
    result = CliRunner().invoke(app, ["upstream", "list", "--lock", str(toy.lock)])
    assert isinstance(result.exception, ZeroDivisionError)


def test_usage_errors_exit_2(toy: Toy) -> None:
    assert CliRunner().invoke(app, ["patch", "apply"]).exit_code == 2
    assert CliRunner().invoke(app, ["upstream", "checkout", "toy", "x", "--source", "ftp"]).exit_code == 2


def test_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "forecache_cli", "upstream", "list"], capture_output=True, text=True)
    assert result.returncode == 0 and "hunyuan21" in result.stdout, result.stderr
