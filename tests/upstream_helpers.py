"""What the tests of real upstream code share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch


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
