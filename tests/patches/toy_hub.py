"""A toy hub: a repository with one file, a newer wheel of it, and a draft of one change."""

from __future__ import annotations

import zipfile
from pathlib import Path

from toy_upstream import commit_all, git

import forecache_patches as patches
from forecache_patches import blobs

LOOP = "src/toy/loop.py"
OLD = b"def run(n):\n    x = 0\n    for i in range(n):\n        x -= i\n    return x\n\n\nEND = 1\n"
NEWER = b"# a newer version\n\n" + OLD
FIXED = OLD.replace(b"x -= i", b"x += i")
TEST, OWN_TEST = "tests/api/test_loop.py", "tests/api/test_own.py"
PR = """# fix(loop): add

## Motivation

Sums were negative.

## What changes

run adds what it subtracted.

## Numbers
None.
## Risks
None.
## How reviewed
By tests.
## Not measured
Nothing.
"""
OURS = """import toy.loop


def test_sum():
  assert toy.loop.run(4) == 6


def test_nothing_to_add():
  assert toy.loop.run(0) == 0
"""


class Hub:
    """A hub with one file, a newer wheel of it, and one draft, made from an edited checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.drafts = folder, folder / "pr_drafts"
        self.repository = folder / "repository"
        for path, content in {
            LOOP: OLD,
            "src/toy/__init__.py": b"",
            "LICENSE": b"toy licence\n",
            OWN_TEST: b"import toy.loop\n\n\ndef test_end():\n    toy.loop.run(1)\n    assert toy.loop.END == 1\n",
        }.items():
            (self.repository / path).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / path).write_bytes(content)
        git(self.repository, "init", "-q", "-b", "main")
        self.pin = commit_all(self.repository, "first")
        self.write(
            "upstreams.toml",
            f'[toy]\ntitle = "Toy"\nurl = "{self.repository.as_uri()}"\ncommit = "{self.pin}"\n'
            f'licence = "Toy License"\nlicence_files = ["LICENSE"]\nsparse = ["src", "tests"]\n[toy.blobs]\n'
            f'"{LOOP}" = {{ id = "{blobs.blob_id(OLD)}", mode = "100644" }}\n',
        )
        self.write(
            "toy/hub.toml",
            'package = "toy"\nwheel = "toy"\nroot = "src/toy"\n[style]\nabsent = ["no_such_linter"]\n'
            'compile = ["compileall", "-q"]\n',
        )
        self.write("toy/loop-sign/PR.md", PR)
        self.verify('own_tests = ["tests/api/test_own.py"]\nmust_fail = ["test_sum"]\n')
        edited = self.checkout("edited")
        (edited / LOOP).write_bytes(FIXED)
        (edited / TEST).write_text(OURS)
        patches.store(patches.load_hub(self.drafts, "toy"), edited, self.drafts / "toy/loop-sign", self.fetch)

    def write(self, path: str, text: str) -> None:
        (self.drafts / path).parent.mkdir(parents=True, exist_ok=True)
        (self.drafts / path).write_text(text)

    def verify(self, rest: str) -> None:
        self.write("toy/loop-sign/verify.toml", f'pin = "{self.pin}"\n{rest}')

    def checkout(self, name: str = "checkout") -> Path:
        upstream = patches.load_lock(self.drafts / "upstreams.toml")["toy"]
        root = patches.checkout(upstream, self.folder / name, "git").root
        git(root, "config", "user.name", "someone")
        git(root, "config", "user.email", "someone@example.org")
        return root

    def fetch(self, package: str, folder: Path) -> Path:
        file = folder / f"{package}-2.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("toy/loop.py", NEWER)
            archive.writestr("toy/__init__.py", b"")
        return file

    @property
    def draft(self) -> patches.Draft:
        return patches.load_draft(self.drafts, "toy/loop-sign")
