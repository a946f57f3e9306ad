"""Pipelines with their real weights, on a CUDA device."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import trimesh


def load(checkout: Path, module: str, name: str, weights: str) -> Any:
    """``name.from_pretrained(weights)`` of a checkout's own module, on the device. All packages that the upstream
    imports must be installed: nothing stands in for them.

    Raises:
        RuntimeError: no CUDA device; a package is missing; another checkout was imported before.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(f"weights {weights} need a CUDA device, and this machine has none")
    root = str(Path(checkout).resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"weights {weights} need all that the upstream imports ({error}): see its README") from error
    if not str(found.__file__).startswith(root):
        raise RuntimeError(f"checkout: {found.__file__} is already imported; start a new process for {checkout}")
    pipe = getattr(found, name).from_pretrained(weights)
    pipe.cuda()
    return pipe


def to_mesh(mesh: Any) -> trimesh.Trimesh:
    """A mesh with tensors ``vertices``, ``faces`` for the metrics; a :class:`trimesh.Trimesh` as it is."""
    if isinstance(mesh, trimesh.Trimesh):
        return mesh
    return trimesh.Trimesh(mesh.vertices.float().cpu().numpy(), mesh.faces.cpu().numpy(), process=False)
