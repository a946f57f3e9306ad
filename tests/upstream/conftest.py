"""The real pipeline around the trained reference network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from forecache_lab.generators.reference import hunyuan21


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
