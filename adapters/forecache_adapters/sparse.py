"""Sparse tensors of the TRELLIS family as values: each batch item's feature rows are a leaf of their own.

Coordinates, layout and the spatial cache of a forecast are those of the newest computed value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree


class Places:
    """Where the rows of a sparse tensor stand: its coordinates and its layout by batch item."""

    def __init__(self, value: Any) -> None:
        self.coords, self.layout = value.coords, list(value.layout)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Places) or self.layout != other.layout or self.coords.shape != other.coords.shape:
            return False
        return self.coords.data_ptr() == other.coords.data_ptr() or torch.equal(self.coords, other.coords)

    __hash__ = None  # type: ignore[assignment]


class _Frame(Places):
    """What a sparse tensor has beside its features; equal if rows and coordinates are."""

    def __init__(self, like: Any) -> None:
        super().__init__(like)
        self.like = like


def is_sparse(value: Any) -> bool:
    """Whether ``value`` is such a tensor: feature rows, coordinates, a layout by batch item, and ``replace``."""
    return all(hasattr(value, name) for name in ("feats", "coords", "layout", "replace"))


def register(kind: type) -> None:
    """Make a sparse tensor class known to the core's trees; once a class."""
    if kind not in _pytree.SUPPORTED_NODES:
        _pytree.register_pytree_node(kind, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)


def _items(value: Any) -> list[torch.Tensor]:
    return [value.feats[rows] for rows in value.layout]


def _flatten(value: Any) -> tuple[list[torch.Tensor], _Frame]:
    return _items(value), _Frame(value)


def _flatten_with_keys(value: Any) -> tuple[list[tuple[Any, torch.Tensor]], _Frame]:
    leaves, frame = _flatten(value)
    return [(_pytree.SequenceKey(k), leaf) for k, leaf in enumerate(leaves)], frame


def _unflatten(leaves: Any, frame: _Frame) -> Any:
    rows = list(leaves)
    return frame.like.replace(rows[0] if len(rows) == 1 else torch.cat(rows))
