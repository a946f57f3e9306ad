"""Our git and the user's: no variable of theirs turns our calls elsewhere, none of their settings is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_hub import OURS, Hub
from toy_upstream import LOOP, Toy, commit_all, edit, git, snapshot
from typer.testing import CliRunner

import forecache_patches as patches
from forecache_cli.main import app
from forecache_patches import gitrepo

pytestmark = pytest.mark.usefixtures("bare_pytest")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A repository of the user's own, with work that is staged and not committed."""
    root = tmp_path / "mine"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a.txt").write_text("one\n")
    (root / "b.txt").write_text("one\n")
    commit_all(root, "one")
    (root / "b.txt").write_text("two\n")
    commit_all(root, "two")
    (root / "a.txt").write_text("two\n")
    git(root, "add", "a.txt")
    return root


def everything(root: Path) -> dict[str, bytes]:
    """All files of a repository, git's own too."""
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def exported(mine: Path) -> dict[str, str]:
    """What git exports in a hook, a linked worktree, an alias, and `git -c`; and what a user may have set."""
    return {
        "GIT_DIR": str(mine / ".git"),
        "GIT_WORK_TREE": str(mine),
        "GIT_INDEX_FILE": str(mine / ".git/index"),
        "GIT_OBJECT_DIRECTORY": str(mine / ".git/objects"),
        "GIT_COMMON_DIR": str(mine / ".git"),
        "GIT_PREFIX": "sub/",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(mine),
        "GIT_EXTERNAL_DIFF": "false",
        "GIT_DIFF_OPTS": "-u9",
        "GIT_DEFAULT_HASH": "sha256",
    }


def everything_once(toy: Toy, hub: Hub) -> None:
    """Every operation that calls git."""
    moved = toy.fork(lambda root: edit(root / LOOP, b"END = 1\n", b"END = 2\n"))
    patches.apply(toy.series, moved)
    patches.revert(toy.series, moved)
    root = toy.checkout()
    patches.verify(toy.upstream, toy.series, root)
    patches.export(toy.series, root)
    git(toy.repository, "commit", "-q", "--allow-empty", "-m", "next")
    patches.bump(toy.series, git(toy.repository, "rev-parse", "HEAD"), root, toy.folder / "out")
    pinned = hub.checkout("pinned")
    assert patches.build(hub.draft, pinned, branch="sent")
    assert git(pinned, "rev-parse", "sent^") == hub.pin
    git(pinned, "branch", "-q", "-D", "sent")
    assert not patches.prove(hub.draft, "pin", pinned).failures


def test_variables_of_another_repository_do_not_reach_ours(
    toy: Toy, tmp_path_factory: pytest.TempPathFactory, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    tests = hub.drafts / "toy/loop-sign/tests/api/test_loop.py"  # which may call git too
    tests.write_text(f"{OURS}\n\ndef test_git():\n  import os\n  assert 'GIT_DIR' not in os.environ\n")
    before = everything(mine)
    for name, value in exported(mine).items():
        monkeypatch.setenv(name, value)
    everything_once(toy, hub)
    assert everything(mine) == before
    # control: these variables do turn a call elsewhere
    told = ["git", "config", "some.key", "x"]
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    subprocess.run(told, cwd=toy.repository, check=True)
    assert everything(mine) != before


def test_what_says_how_to_reach_a_server_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    kept = ["GIT_SSL_CAINFO", "GIT_SSH_COMMAND", "GIT_PROXY_COMMAND", "GIT_CONFIG_GLOBAL", "GIT_ASKPASS"]
    for name in (*kept, "GIT_DIR", "GIT_AUTHOR_NAME", "GIT_TRACE", "GIT_CONFIG_PARAMETERS", "GIT_SSHX"):
        monkeypatch.setenv(name, "x")
    assert {name for name in gitrepo.environment() if name.startswith("GIT_")} == set(kept)
    assert gitrepo.environment()["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("kind", ["commit", "worktree", "rebase"])
def test_a_hook_that_runs_the_command(toy: Toy, mine: Path, kind: str) -> None:
    checkout = toy.folder / "co"
    command = f"{sys.executable} -m forecache_cli upstream checkout toy '{checkout}' --source git --lock '{toy.lock}'"
    script = f"#!/bin/sh\nenv | grep ^GIT_ > '{toy.folder}/env'\n{command} > '{toy.folder}/said' 2>&1\n"
    hook = toy.folder / "hook" if kind == "rebase" else mine / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    where = mine
    if kind == "worktree":
        where = toy.folder / "linked"
        git(mine, "worktree", "add", "-q", "-b", "linked", str(where))
        (where / "a.txt").write_text("three\n")
    if kind == "rebase":
        git(mine, "commit", "-q", "-m", "three")
    hook.write_text(script)
    hook.chmod(0o755)
    before = git(mine, "config", "--local", "--list")
    git(where, *(["rebase", "-q", "--exec", str(hook), "HEAD~1"] if kind == "rebase" else ["commit", "-qam", "three"]))
    assert "GIT_" in (toy.folder / "env").read_text()  # control
    assert "hooked files verified" in (toy.folder / "said").read_text()
    assert git(mine, "config", "--local", "--list") == before
    assert git(where, "ls-tree", "-r", "--name-only", "HEAD").split() == ["a.txt", "b.txt"]
    assert git(where, "status", "--porcelain") == ""
    assert git(checkout, "status", "--porcelain") == ""


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a name for git."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n    useConfigOnly = true\n")  # no guess from the host's name
    for name in ("XDG_CONFIG_HOME", "EMAIL", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.mark.usefixtures("nobody")
def test_no_identity_is_needed(made: Hub, tmp_path: Path) -> None:
    root = made.checkout(f"nameless-{tmp_path.name}")
    git(root, "config", "--unset", "user.name")
    git(root, "config", "--unset", "user.email")
    assert subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], cwd=root, capture_output=True).returncode  # control
    assert not patches.prove(made.draft, "pin", root).failures
    options = ["--checkout", str(root), "--drafts", str(made.drafts), "--out", str(tmp_path / "out.patch")]
    result = CliRunner().invoke(app, ["pr", "build", made.draft.name, *options])
    assert result.exit_code == 0 and "the commit is nobody's" in result.stderr
    assert f"\nFrom: {patches.NOBODY}\n" in (tmp_path / "out.patch").read_text()
    git(root, "config", "user.name", "someone")
    git(root, "config", "user.email", "someone@example.org")
    assert b"\nFrom: someone <someone@example.org>\n" in patches.build(made.draft, root)  # control


@pytest.mark.usefixtures("nobody")
def test_settings_of_the_user_do_not_reach_a_proof(made: Hub, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "post-checkout", "applypatch-msg"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "home/.gitconfig").write_text(
        f"[commit]\n    gpgSign = true\n[gpg]\n    program = false\n[core]\n    hooksPath = {hooks}\n"
        "[diff]\n    noprefix = true\n    interHunkContext = 9\n    external = false\n"
    )
    root = made.checkout(f"hooked-{tmp_path.name}")
    assert not patches.prove(made.draft, "pin", root).failures
    assert gitrepo.diff("a", b"1\n2\n3\n4\n", b"0\n1\n2\n3\n4\n5\n", context=0).count(b"@@ -") == 2


REASONS = ["fatal: detected dubious ownership in repository at '/x'", "fatal: fetch-pack: invalid index-pack output"]


@pytest.fixture
def broken_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A git that fails, and says why."""

    def install(reason: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "git").write_text(f'#!/bin/sh\necho "warning: noise" >&2\necho "{reason}" >&2\nexit 128\n')
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.parametrize("reason", REASONS)
def test_gits_own_reason_is_kept(toy: Toy, made: Hub, broken_git: Callable[[str], None], reason: str) -> None:
    moved = toy.fork(lambda root: edit(root / LOOP, b"END = 1\n", b"END = 2\n"))
    root, pinned = toy.checkout(), made.folder / "edited"
    before = snapshot(toy.folder)
    broken_git(reason)
    operations: list[Callable[[], object]] = [
        lambda: patches.apply(toy.series, moved),
        lambda: patches.status(toy.series, moved),
        lambda: patches.verify(toy.upstream, toy.series, root),
        lambda: patches.export(toy.series, root),
        lambda: patches.make(toy.series, root, "Third"),
        lambda: patches.bump(toy.series, "1" * 40, root, toy.folder / "out"),
        lambda: patches.checkout(toy.upstream, toy.folder / "new", "git"),
        lambda: patches.build(made.draft, pinned),
        lambda: patches.prove(made.draft, "pin", pinned),
        lambda: patches.store(patches.load_hub(made.drafts, "toy"), pinned, toy.folder / "draft", made.fetch),
    ]
    said = []
    for operation in operations:
        with pytest.raises(patches.PatchError) as caught:
            operation()
        said.append(str(caught.value))
    assert all(reason in each and "noise" not in each for each in said)
    assert f" failed in {moved}: {reason}" in said[0]
    assert {name: file for name, file in snapshot(toy.folder).items() if "bin/" not in name} == before


def test_no_git_at_all(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(toy.folder))
    with pytest.raises(patches.PatchError, match="there is no git executable on the PATH"):
        toy.checkout()


def test_a_broken_repository_is_not_the_one_around_it(toy: Toy) -> None:
    root = toy.checkout("mine/inner")
    git(toy.folder / "mine", "init", "-q")
    commit_all(toy.folder / "mine", "the outer one")
    (root / ".git/HEAD").unlink()
    assert subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True).returncode == 0  # control
    with pytest.raises(patches.PatchError, match="not a git repository"):
        patches.verify(toy.upstream, toy.series, root)
