"""Fixtures: the toy upstream without patches, and with a series of two; the toy hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_hub import Hub
from toy_upstream import CRLF, FILES, OUTSIDE, Toy, commit_all, edit_first, edit_second, git

import forecache_patches as patches


@pytest.fixture
def bare_toy(tmp_path: Path) -> Toy:
    """The toy upstream without patches."""
    repository = tmp_path / "repository"
    for path, content in (FILES | OUTSIDE).items():
        file = repository / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (repository / CRLF).chmod(0o755)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "config", "uploadpack.allowFilter", "true")
    commit_all(repository, "first")
    toy = Toy(
        tmp_path, repository, tmp_path / "toy_wheel-1.0-py3-none-any.whl", tmp_path / "lock.toml", tmp_path / "series"
    )
    toy.write_wheel()
    return toy


@pytest.fixture
def toy(bare_toy: Toy) -> Toy:
    """The toy upstream with a series of two patches, made from an edited checkout."""
    root = bare_toy.checkout("edited")
    edit_first(root)
    patches.make(bare_toy.series, root, "First hook", "Why: a test.")
    edit_second(root)
    patches.make(bare_toy.series, root, "Second hook")
    return bare_toy


@pytest.fixture
def bare_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner runs of pytest need no plugins, and half of their time goes into loading them."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub(tmp_path_factory.mktemp("hub"))
