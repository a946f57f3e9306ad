"""What the tests of real upstream code share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from forecache import Forecaster
from forecache.basis import DMD


def import_as(name: str, source: Path) -> ModuleType:
    """Import the file ``source`` as module ``name``; its relative imports are those of the package in ``name``."""
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def check_batch_items(
    adapter: Any, pipe: Any, run: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of two equals two single runs, ``run(pipe, seeds)``, as nearly as uncached; a fit over the flattened
    batch, the control, couples them.
    """

    def coupling(**settings: Any) -> float:
        with adapter.enabled(pipe, **settings):
            return relative(run(pipe, (0, 1)), torch.cat([run(pipe, (seed,)) for seed in (0, 1)]))

    floor = coupling(interval=1)
    for basis in ("hermite", "dmd", "auto"):
        assert coupling(basis=basis, interval=3, warmup=4) <= 1e-6 + 3 * floor, basis
    whole = lambda self, times, made_for, edges=(): Forecaster(DMD(), times=times, interval=3, warmup=4, batch_dim=None)  # noqa: E731
    monkeypatch.setattr("forecache_adapters.settings.Settings._forecaster", whole)
    assert coupling() > 1e-5
