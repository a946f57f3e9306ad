"""The few git operations that are needed, on bytes. GitPython is imported on first use: it needs a git executable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from .errors import CheckoutError, PatchError
from .lock import Upstream

# No questions on a terminal; hooked files are text, so large-file filters have nothing to do.
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "GIT_OPTIONAL_LOCKS": "0"}
_NO_SUCH_COMMIT = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|not a tree|unable to read tree")


def run(arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
    """Run ``git <arguments>`` in ``folder``, with more variables; returns exit status, stdout, last line of stderr.

    Raises:
        PatchError: GitPython or git is not there.
    """
    try:
        from git import Git
        from git.exc import GitCommandNotFound
    except ImportError as error:  # also raised by GitPython when it finds no git executable
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "import failed"
        raise PatchError(
            f"git is needed here: pip install 'forecache[patches]', and a git executable ({reason})"
        ) from None
    try:
        status, stdout, stderr = Git(str(folder)).execute(
            ["git", *arguments],
            with_extended_output=True,
            with_exceptions=False,
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            env={**_ENVIRONMENT, **(environment or {})},
        )
    except GitCommandNotFound:
        raise PatchError("git is needed here, and there is no git executable on the PATH") from None
    lines = [line for line in _text(stderr).splitlines() if line.strip() and not line.startswith("warning:")]
    errors = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return int(status), _bytes(stdout), (errors or lines or [f"exit status {status}"])[-1].strip()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def is_repository(root: Path) -> bool:
    """Whether ``root`` itself is the root of a working tree (a folder deep inside some other repository is not)."""
    return (root / ".git").exists()


def head(root: Path) -> str:
    """Commit that is checked out, ``""`` if none."""
    status, stdout, _ = run(["rev-parse", "--verify", "HEAD^{commit}"], root)
    return stdout.decode().strip() if status == 0 else ""


def blob_at(root: Path, commit: str, path: str) -> str:
    """Blob id of ``path`` at ``commit``, ``""`` if it is not there."""
    status, stdout, _ = run(["rev-parse", "--verify", f"{commit}:{path}"], root)
    return stdout.decode().strip() if status == 0 else ""


def blob_content(root: Path, blob: str) -> bytes | None:
    """Content of a blob in the object store of ``root``, None if it is not there."""
    if not is_repository(root):
        return None
    status, stdout, _ = run(["cat-file", "blob", blob], root)
    return stdout if status == 0 else None


def is_dirty(root: Path, path: str) -> bool:
    """Whether ``path`` differs, staged or not, from what is committed, or is not committed at all."""
    return not blob_at(root, "HEAD", path) or run(["diff", "--quiet", "HEAD", "--", path], root)[0] != 0


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
    if run(["cat-file", "-e", f"{commit}^{{commit}}"], root)[0]:
        raise CheckoutError(f"{_url(root, remote)} has no commit {commit}")


def _url(root: Path, remote: str) -> str:
    return run(["config", f"remote.{remote}.url"], root)[1].decode().strip() or remote


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
    status, _, reason = run(["checkout", "--quiet", "--detach", upstream.commit], root)
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
        options = [
            "--no-index",
            "--no-prefix",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--full-index",
            "--text",
        ]
        files = [f"a/{path}", f"b/{path}"]
        status, stdout, reason = run(
            [*exact, "diff", *options, "--minimal", f"-U{context}", "--", *files], Path(folder)
        )
    if status not in (0, 1):
        raise PatchError(f"git diff failed: {reason}")
    return stdout
