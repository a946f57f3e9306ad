"""A draft as a commit on the pin, and as the file that ``git am`` takes. No working tree and no index is touched."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from . import gitrepo
from .blobs import git_mode
from .drafts import Draft
from .errors import CheckoutError, DraftError
from .gitrepo import call

#: Author and committer where git's settings name none.
NOBODY = "nobody <nobody@example.org>"
_NOBODY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in {"NAME": "nobody", "EMAIL": "nobody@example.org"}.items()
}


def build(draft: Draft, root: Path, branch: str = "") -> bytes:
    """Commit the draft on top of the pin in the repository ``root``.

    Author and committer are those of git's settings, or :data:`NOBODY` where these name none.

    Args:
        draft: what to commit.
        root: a git checkout of the hub that has the pin and is at it.
        branch: a branch to make there, ``""`` for none; what is checked out stays.

    Returns:
        The commit as ``git format-patch`` writes it.

    Raises:
        CheckoutError: ``root`` is no repository, or is not at the pin.
        DraftError: the draft does not fit, or the branch is there already.
        PatchError: git failed; the message has its reason.
    """
    pin = draft.hub.upstream.commit
    if not gitrepo.is_repository(root):
        raise CheckoutError(f"{root} is not the root folder of a git repository")
    if gitrepo.head(root) != pin:
        raise CheckoutError(f"{root} is at {gitrepo.head(root)[:12] or 'no commit'}, {draft.name} is for {pin[:12]}")
    if branch and gitrepo.run(["rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"], root)[0] == 0:
        raise DraftError(f"{root} already has a branch {branch}; delete it first (git branch -D {branch})")
    contents = draft.submission(root)
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        call(root, "read-tree", pin, **index)
        for path, content in contents.items():
            file = Path(folder, "content")
            file.write_bytes(content)
            blob = call(root, "hash-object", "-w", "--no-filters", "--", str(file)).strip().decode()
            mode = git_mode(root / path) if (root / path).exists() else "100644"
            call(root, "update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}", **index)
        # a partial clone lacks the blobs of files that nobody asked for
        tree = call(root, "write-tree", "--missing-ok", **index).strip().decode()
        message = Path(folder, "message")
        message.write_text(f"{draft.title}\n\n{draft.body}\n", encoding="utf-8")
        who = {} if _has_identity(root) else _NOBODY
        commit = call(root, "commit-tree", tree, "-p", pin, "-F", str(message), **who).strip().decode()
        patch = call(root, *_FORMAT, "--src-prefix=a/", "--dst-prefix=b/", commit)
    if branch:
        call(root, "branch", "--no-track", branch, commit)
    return patch


def applied(draft: Draft, patch: bytes, root: Path) -> dict[str, bytes]:
    """What ``git am`` makes of ``patch`` on the files of ``root`` that the draft edits: content by path.

    Raises:
        PatchError: it does not apply.
    """
    edited = {edit.path for part in ("change", "tests") for edit in draft.edits(part)}
    with TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        bare = gitrepo.BARE | _NOBODY
        call(repository, "init", "--quiet", **bare)
        for path in edited:
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_bytes((root / path).read_bytes())
        call(repository, "add", "--all", "--force", **bare)
        call(repository, "commit", "--quiet", "--allow-empty", "--message", "base", **bare)
        file = Path(folder, "draft.patch")
        file.write_bytes(patch)
        call(repository, "am", "--quiet", "--keep-cr", str(file), **bare)
        names = os.fsdecode(call(repository, "diff", "--name-only", "-z", "HEAD~1", "HEAD", **bare)).split("\0")
        return {name: (repository / name).read_bytes() for name in names if name}


# as git writes it without settings of the user
_FORMAT = ("format-patch", "-1", "--stdout", "--no-attach", "--no-renames", "--no-ext-diff", "--no-color")


def _has_identity(root: Path) -> bool:
    return not any(gitrepo.run(["var", f"GIT_{role}_IDENT"], root)[0] for role in ("AUTHOR", "COMMITTER"))
