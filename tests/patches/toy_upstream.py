"""A toy upstream: a git repository, a wheel with the same files, a lock for both, and a series of two patches.

Its files cover what real ones bring: a plain file, an executable one with CRLF line ends, one without a last newline.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forecache_patches as patches
from forecache_patches.gitrepo import environment

LOOP = "pkg/loop.py"
CRLF = "pkg/deep/crlf.py"
TAIL = "pkg/tail.py"
FILES = {
    LOOP: b"def run(n):\n    x = 0\n    for i in range(n):\n        x += i\n\n        y = x\n"
    b"    return sorted([x, n, n])[0]\n\n\nEND = 1\n",
    CRLF: b"a = 1\r\nb = 2\r\nc = 3\r\n",
    TAIL: b"first = 1\nlast = 2",
}
OUTSIDE = {"LICENSE": b"toy licence\n", "other/large.bin": b"\0" * 99, ".gitignore": b"*.pyc\n"}
PREFIX = "toy_wheel/vendor/toy"


def git(folder: Path, *arguments: str) -> str:
    """Run git with an identity and without the settings of the machine."""
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        who |= {
            f"GIT_{role}_NAME": "a",
            f"GIT_{role}_EMAIL": "a@example.org",
            f"GIT_{role}_DATE": "2026-01-01T00:00:00Z",
        }
    command = ["git", "-c", "core.autocrlf=false", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment(**who), capture_output=True, text=True)
    assert result.returncode == 0, (arguments, result.stderr)
    return result.stdout.strip()


def commit_all(folder: Path, message: str) -> str:
    """Commit everything; returns the commit id."""
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below ``root`` (git's own left out): content and mode."""
    files = (file for file in root.rglob("*") if file.is_file() and ".git" not in file.relative_to(root).parts)
    return {str(file.relative_to(root)): (file.read_bytes(), file.stat().st_mode) for file in files}


def edit(file: Path, old: bytes, new: bytes) -> None:
    """Replace the one occurrence of ``old``."""
    content = file.read_bytes()
    assert content.count(old) == 1, (old, content)
    file.write_bytes(content.replace(old, new))


@dataclass
class Toy:
    """Everything a test needs of the toy upstream."""

    folder: Path
    repository: Path
    wheel: Path
    lock: Path
    series_root: Path

    @property
    def upstream(self) -> patches.Upstream:
        """As the lock file has it now."""
        return patches.find(patches.load_lock(self.lock), "toy")

    @property
    def series(self) -> patches.Series:
        """As the folder has it now."""
        return patches.load_series(self.upstream, self.series_root)

    def checkout(self, name: str = "checkout", source: str = "git") -> Path:
        """A fresh checkout."""
        return patches.checkout(self.upstream, self.folder / name, source, download=lambda _, __: self.wheel).root

    def fork(self, change: Callable[[Path], None] | None = None) -> Path:
        """A full clone with one more commit, as a fork would have it."""
        root = self.folder / "fork"
        git(self.folder, "clone", "-q", self.repository.as_uri(), str(root))
        if change is not None:
            change(root)
            commit_all(root, "fork")
        return root

    def write_lock(self, **changed: str) -> None:
        """Write the lock, with other values for some keys."""
        commit = git(self.repository, "rev-parse", "HEAD")
        values = {
            "url": self.repository.as_uri(),
            "commit": commit,
            "sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "prefix": PREFIX,
            "root": "",
            "loop": patches.blobs.blob_id(FILES[LOOP]),
            "mode": "100755",
            "extra": "",
        } | changed
        crlf, tail = (patches.blobs.blob_id(FILES[path]) for path in (CRLF, TAIL))
        self.lock.write_text(
            f"""
[toy]
title = "Toy"
url = "{values["url"]}"
commit = "{values["commit"]}"
licence = "Toy License"
licence_files = ["LICENSE"]
sparse = ["pkg"]
{values["extra"]}
[toy.blobs]
"{LOOP}" = {{ id = "{values["loop"]}", mode = "100644" }}
"{CRLF}" = {{ id = "{crlf}", mode = "{values["mode"]}" }}
"{TAIL}" = {{ id = "{tail}", mode = "100644" }}
[toy.wheel]
package = "toy-wheel"
version = "1.0"
sha256 = "{values["sha256"]}"
prefix = "{values["prefix"]}"
root = "{values["root"]}"
licence_files = ["{PREFIX}/LICENSE"]
""",
            encoding="utf-8",
        )

    def write_wheel(self, extra: dict[str, bytes] | None = None, link: str = "") -> None:
        """Write the wheel, with further members, and bring its hash into the lock."""
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for path, content in (FILES | OUTSIDE).items():
                archive.writestr(f"{PREFIX}/{path}", content)
            archive.writestr("toy_wheel/__init__.py", b"")
            for name, content in (extra or {}).items():
                archive.writestr(name, content)
            if link:
                member = zipfile.ZipInfo(link)
                member.create_system = 3
                member.external_attr = 0o120777 << 16
                archive.writestr(member, "/etc/passwd")
        self.write_lock()


def edit_first(root: Path) -> None:
    """What the first patch inserts."""
    edit(root / LOOP, b"    x = 0\n", b"    x = 0\n    hook = None\n")
    edit(root / CRLF, b"b = 2\r\n", b"b = 2\r\nours = 2\r\n")
    edit(root / TAIL, b"first = 1\n", b"first = 1\nours = 1\n")


def edit_second(root: Path) -> None:
    """What the second patch inserts, on top of the first; two hunks in one file."""
    edit(root / LOOP, b"    hook = None\n", b"    hook = None\n    hook = hook or 0\n")
    edit(root / LOOP, b"        y = x\n", b"        y = x\n        x += hook\n")
