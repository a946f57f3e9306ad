"""One thread and fixed seeds everywhere: results depend neither on the number of cores nor on luck.

Checkouts of an upstream, from its repository or from the package on the index that carries its files, are shared by all
tests of a process, which can import only one. Absent: a skip says so.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from forecache_patches import PatchError, apply, checkout, find, load_lock, load_series

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Every test begins with one seed, and leaves no mode of torch behind for the next one of its process."""
    torch.manual_seed(0)
    yield
    left = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    torch.set_grad_enabled(True)
    assert left == (True, False), f"(gradients, inference mode) are {left} after this test"


@pytest.fixture(scope="session")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkouts(name, patched=False, source="auto")``: a checkout of an upstream at its pin, made once."""

    @functools.cache
    def make(name: str, patched: bool, source: str) -> Path | str:
        upstream = find(load_lock(), name)
        root = tmp_path_factory.mktemp("upstream") / name
        try:
            checkout(upstream, root, source=source)
        except PatchError as error:
            return f"{upstream.title}: not reachable, source {source}: {error}"
        if patched:
            apply(load_series(upstream), root)
        return root

    def checkout_of(name: str, patched: bool = False, source: str = "auto") -> Path:
        made = make(name, patched, source)
        return made if isinstance(made, Path) else pytest.skip(made)

    return checkout_of


@pytest.fixture(scope="session")
def original(checkouts: Callable[..., Path]) -> Path:
    """An unpatched checkout of Hunyuan3D-2.1."""
    return checkouts("hunyuan21")


@pytest.fixture(scope="session")
def patched(checkouts: Callable[..., Path]) -> Path:
    """A patched checkout of Hunyuan3D-2.1."""
    return checkouts("hunyuan21", patched=True)
