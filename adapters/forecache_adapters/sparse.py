"""Sparse tensors of the TRELLIS family as values: each batch item's feature rows are a leaf of their own.

Coordinates, layout and the spatial cache of a forecast are those of the newest computed value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree


class _Frame:
    """What a sparse tensor has beside its features; equal if rows and coordinates are."""

    def __init__(self, like: Any) -> None:
        self.like = like

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frame) or list(self.like.layout) != list(other.like.layout):
            return False
        mine, theirs = self.like.coords, other.like.coords
        return mine.data_ptr() == theirs.data_ptr() or torch.equal(mine, theirs)

    __hash__ = None  # type: ignore[assignment]


def is_sparse(value: Any) -> bool:
    """Whether ``value`` is such a tensor: feature rows, coordinates, a layout by batch item, and ``replace``."""
    return all(hasattr(value, name) for name in ("feats", "coords", "layout", "replace"))


def register(kind: type) -> None:
    """Make a sparse tensor class known to the core's trees; once a class."""
    if kind not in _pytree.SUPPORTED_NODES:
        _pytree.register_pytree_node(kind, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)


def _flatten(value: Any) -> tuple[list[torch.Tensor], _Frame]:
    return [value.feats[rows] for rows in value.layout], _Frame(value)


def _flatten_with_keys(value: Any) -> tuple[list[tuple[Any, torch.Tensor]], _Frame]:
    leaves, frame = _flatten(value)
    return [(_pytree.SequenceKey(k), leaf) for k, leaf in enumerate(leaves)], frame


def _unflatten(leaves: Any, frame: _Frame) -> Any:
    rows = list(leaves)
    return frame.like.replace(rows[0] if len(rows) == 1 else torch.cat(rows))
