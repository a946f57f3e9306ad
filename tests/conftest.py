"""One thread and fixed seeds everywhere: results depend neither on the number of cores nor on luck.

Checkouts of an upstream, from its repository or from the package on the index that carries its files, are shared by all
tests of a process, which can import only one. Absent: a skip says so.
"""

from pathlib import Path

import hypothesis
import pytest
import torch

from forecache_patches import PatchError, apply, checkout, find, load_lock, load_series

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
