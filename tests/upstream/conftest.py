"""Real upstream files: from the repository, or the package on the index that carries them. Absent: a skip says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from forecache_lab.reference import hunyuan21
from forecache_patches import PatchError, apply, checkout, find, load_lock, load_series


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpatched checkout of Hunyuan3D-2.1."""
    root = tmp_path_factory.mktemp("upstream") / "original"
    try:
        checkout(find(load_lock(), "hunyuan21"), root, source="auto")
    except PatchError as error:
        pytest.skip(f"Hunyuan3D-2.1 is not reachable, neither its repository nor its package: {error}")
    return root


@pytest.fixture(scope="session")
def patched(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patched checkout of Hunyuan3D-2.1."""
    upstream = find(load_lock(), "hunyuan21")
    root = tmp_path_factory.mktemp("upstream") / "patched"
    checkout(upstream, root, source="auto")
    apply(load_series(upstream), root)
    return root


@pytest.fixture(scope="session")
def upstream(patched: Path):
    torch.set_num_threads(1)
    return hunyuan21.load(patched)


@pytest.fixture(scope="session")
def shared_pipe(upstream):
    return hunyuan21.build(upstream)


@pytest.fixture
def pipe(shared_pipe) -> Iterator:
    """The pipeline around the trained reference network, as nobody left it."""
    yield shared_pipe
    vars(shared_pipe).pop("forecache", None)
