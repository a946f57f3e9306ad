"""Values that are not one tensor: dictionaries, tuples, sparse tensors. Flatten to leaves, rebuild.

Any container that ``torch.utils._pytree`` knows works; an adapter registers its own (a sparse tensor: its feature rows
are the leaf, coordinates and layout the context) with ``torch.utils._pytree.register_pytree_node``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree

Structure = tuple[_pytree.TreeSpec, tuple[str, ...], list[Any]]


def flatten(value: Any) -> tuple[dict[str, torch.Tensor], Structure]:
    """Tensor leaves by name (``"v"`` for a bare tensor, else their path) and what :func:`unflatten` needs.

    Raises:
        TypeError: no tensor among the leaves.
    """
    paths, spec = _pytree.tree_flatten_with_path(value)
    names = tuple(_pytree.keystr(path).lstrip(".") or "v" for path, _ in paths)
    leaves = {name: leaf for name, (_, leaf) in zip(names, paths, strict=True) if isinstance(leaf, torch.Tensor)}
    if not leaves:
        raise TypeError(f"value must be a tensor or a structure of tensors, got {type(value).__name__}")
    others = [None if isinstance(leaf, torch.Tensor) else leaf for _, leaf in paths]
    return leaves, (spec, names, others)


def unflatten(leaves: dict[str, torch.Tensor], structure: Structure) -> Any:
    """The inverse of :func:`flatten`; leaves that are not tensors are handed back as they were."""
    spec, names, others = structure
    return _pytree.tree_unflatten([leaves.get(name, other) for name, other in zip(names, others, strict=True)], spec)


def same(a: Structure, b: Structure) -> bool:
    """Whether two values have the same containers and leaf names."""
    return a[1] == b[1] and a[0] == b[0]
