"""The few git operations that are needed, on bytes, whatever the caller's own git is doing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from .errors import CheckoutError, PatchError
from .lock import Upstream

# No questions on a terminal; hooked files are text, so large-file filters have nothing to do; paths are no patterns;
# reasons in English, which _NO_SUCH_COMMIT reads.
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "LANGUAGE": "C",
    "LC_ALL": "C",
}
#: For repositories and files of our own making: no settings of user or machine (hooks, signatures, ways of diff).
BARE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
# What the caller may say: where settings and git's own programs are, and how a server is reached.
_CALLERS = re.compile(r"GIT_(CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)|EXEC_PATH|ASKPASS|(HTTP|PROXY|SSH|SSL)(_\w+)?)")
_NO_SUCH_COMMIT = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|not a tree|unable to read tree")


def environment(**more: str) -> dict[str, str]:
    """The variables for a program that is, or may start, git.

    Inside a hook, a rebase or an alias git exports ``GIT_DIR``, ``GIT_INDEX_FILE`` and more; handed on, they would turn
    every call of ours to the caller's repository. All ``GIT_*`` are dropped, but those that say how to reach a server.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GIT_") or _CALLERS.fullmatch(name)}
    return kept | more


def run(arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
    """Run ``git <arguments>`` in ``folder``, with more variables; returns exit status, stdout, and git's own reason.

    A repository is looked for in ``folder`` and not above it.

    Raises:
        PatchError: git is not there, or cannot be started in ``folder``.
    """
    try:
        given = _ENVIRONMENT | {"GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)} | dict(variables or {})
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment(**given), stdin=subprocess.DEVNULL, capture_output=True
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        if shutil.which("git") is None:
            raise PatchError("git is needed here, and there is no git executable on the PATH") from None
        raise PatchError(f"cannot run git in {folder}: {getattr(error, 'strerror', None) or error}") from None
    lines = (line.strip() for line in done.stderr.decode(errors="replace").splitlines())
    said = " ".join(line for line in lines if line and not line.startswith(("warning:", "hint:")))
    return done.returncode, done.stdout, said or f"exit status {done.returncode}"


def call(root: Path, *arguments: str, **variables: str) -> bytes:
    """What ``git <arguments>`` prints in ``root``.

    Raises:
        PatchError: it failed; the message has git's reason.
    """
    status, stdout, reason = run(arguments, root, variables)
    if status:
        raise _failure(arguments, root, reason)
    return stdout


def _failure(arguments: Sequence[str], root: Path, reason: str) -> PatchError:
    return PatchError(f"git {arguments[0]} failed in {root}: {reason}")


def _answer(root: Path, *arguments: str) -> bytes | None:
    """What a git command prints that says no with exit status 1; None: it said no.

    Raises:
        PatchError: it failed with another status, which is no answer.
    """
    status, stdout, reason = run(arguments, root)
    if status not in (0, 1):
        raise _failure(arguments, root, reason)
    return None if status else stdout


def is_repository(root: Path) -> bool:
    """Whether ``root`` itself is the root of a working tree (a folder deep inside some other repository is not)."""
    return (root / ".git").exists()


def head(root: Path) -> str:
    """Commit that is checked out, ``""`` if none.

    Raises:
        PatchError: git cannot read the repository; the message has its reason.
    """
    return (_answer(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") or b"").decode().strip()


def has_commit(root: Path, commit: str) -> bool:
    """Whether it is in the object store."""
    return run(["cat-file", "-e", f"{commit}^{{commit}}"], root)[0] == 0


def entry(root: Path, commit: str, path: str) -> tuple[str, str]:
    """Mode and blob id of ``path`` at ``commit``, two times ``""`` if it is not there.

    Raises:
        PatchError: git cannot read the commit; the message has its reason.
    """
    found = call(root, "ls-tree", commit, "--", path).decode(errors="replace").split(maxsplit=3)
    return (found[0], found[2]) if found else ("", "")


def blob_content(root: Path, blob: str) -> bytes | None:
    """Content of a blob in the object store of ``root``, None if it is not there.

    Raises:
        PatchError: git cannot read the repository; the message has its reason.
    """
    if not is_repository(root) or _answer(root, "cat-file", "-e", blob) is None:
        return None
    return call(root, "cat-file", "blob", blob)


def is_dirty(root: Path, path: str) -> bool:
    """Whether ``path`` differs, staged or not, from what is committed, or is not committed at all.

    Raises:
        PatchError: git cannot read the repository; the message has its reason.
    """
    if not head(root) or not entry(root, "HEAD", path)[1]:
        return True
    return _answer(root, "diff", "--quiet", "HEAD", "--", path) is None


def fetch_commit(root: Path, commit: str, remote: str = "origin") -> None:
    """Fetch exactly one commit, shallow and without blobs; everything if the server does not serve single commits.

    Raises:
        CheckoutError: the remote cannot be reached, or has no such commit.
    """
    status, _, reason = run(
        ["fetch", "--quiet", "--no-tags", "--depth", "1", "--filter=blob:none", remote, commit], root
    )
    if status and _NO_SUCH_COMMIT.search(reason):
        status, _, reason = run(["fetch", "--quiet", "--no-tags", remote], root)
    if status:
        raise CheckoutError(f"cannot fetch from {_url(root, remote)}: {reason}")
    if not has_commit(root, commit):
        raise CheckoutError(f"{_url(root, remote)} has no commit {commit}")


def _url(root: Path, remote: str) -> str:
    return run(["config", f"remote.{remote}.url"], root)[1].decode(errors="replace").strip() or remote


def checkout_commit(upstream: Upstream, root: Path) -> None:
    """Make ``root`` (empty) a sparse, shallow, partial clone of ``upstream`` at its pin.

    Raises:
        CheckoutError: the repository cannot be reached, or lacks the commit.
    """
    for arguments in (
        ["init", "--quiet"],
        ["remote", "add", "origin", upstream.url],
        ["config", "core.autocrlf", "false"],  # blob ids are of exact bytes
        ["config", "core.sparseCheckout", "true"],
        ["config", "advice.detachedHead", "false"],
    ):
        status, _, reason = run(arguments, root)
        if status:
            raise CheckoutError(f"cannot set up a repository in {root}: {reason}")
    wanted = "".join(f"/{path}\n" for path in (*upstream.licence_files, *upstream.sparse, *_attributes(upstream)))
    info = root / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "sparse-checkout").write_text(wanted, encoding="utf-8")
    fetch_commit(root, upstream.commit)
    no_hooks = ("-c", f"core.hooksPath={os.devnull}")
    status, _, reason = run([*no_hooks, "checkout", "--quiet", "--detach", upstream.commit], root)
    if status:
        raise CheckoutError(f"cannot check out {upstream.commit} of {upstream.url}: {reason}")


def _attributes(upstream: Upstream) -> list[str]:
    """What git itself reads on the way to the sparse paths: without it ``git status`` would need the network."""
    folders = sorted({str(parent) for path in upstream.sparse for parent in PurePosixPath(path).parents})
    return [str(PurePosixPath(folder, name)) for folder in folders for name in (".gitattributes", ".gitignore")]


def diff(path: str, old: bytes, new: bytes, *, context: int, executable: bool = False) -> bytes:
    """``git diff`` of two contents of ``path``, with this many lines of context; empty if they are equal.

    ``--minimal`` guarantees that a file which only gained lines shows no removed line.

    Raises:
        PatchError: git failed.
    """
    with TemporaryDirectory() as folder:
        for side, content in (("a", old), ("b", new)):
            file = Path(folder, side, path)
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
            file.chmod(0o755 if executable else 0o644)
        exact = ["-c", "core.autocrlf=false", "-c", "core.safecrlf=false"]
        plain = "no-index no-prefix no-color no-ext-diff no-textconv full-index text minimal"
        options = [f"--{name}" for name in plain.split()]
        command = [*exact, "diff", *options, f"-U{context}", "--", f"a/{path}", f"b/{path}"]
        status, stdout, reason = run(command, Path(folder), BARE)
    if status not in (0, 1):
        raise PatchError(f"git diff failed: {reason}")
    return stdout
