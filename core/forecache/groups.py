"""Leaf groups of a structured velocity: leaves that share a history, a rule and the weights of a plan.

A velocity may hold 32768 numbers of a shape and 13 of a pose. One fit over all of them would see the shape alone, and
one for each pose leaf would be made of 1 to 6 numbers; the pose leaves together have a Gram matrix worth fitting to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import tree
from .rules import Rule, make_rule
from .snapshots import MAX_HISTORY, Array


class Group(NamedTuple):
    """Leaves, named by the last key of their path, and what forecasts them; ``None``: what forecasts the others."""

    leaves: tuple[str, ...]
    basis: Any = None
    order: int | None = None
    sigma: float | None = None


class Groups:
    """Packs leaves into streams: a group is one, any other leaf is one of its own.

    A packed stream holds the leaves side by side, item by item: ``[B, n_1 + n_2 + ...]``.

    Args:
        groups: by name, a :class:`Group` or just the names of its leaves.
        batch_dim: axis of the independent items, which the leaves of a group must have in common.

    Raises:
        ValueError: a group whose name is no identifier, or without leaves, a leaf in two groups, an axis that a packed
            stream cannot have.
    """

    def __init__(self, groups: Mapping[str, Group | Sequence[str]], batch_dim: int | None) -> None:
        if groups and batch_dim not in (0, 1, None):
            raise ValueError(f"batch_dim must be 0, 1 or None with groups, got {batch_dim}")
        self.batch_dim = batch_dim
        self.groups = {name: each if isinstance(each, Group) else Group(tuple(each)) for name, each in groups.items()}
        self._group_of: dict[str, str] = {}
        for name, group in self.groups.items():
            if not name.isidentifier() or not group.leaves:  # a dot would end the name in that of a stream
                raise ValueError(f"groups: a group needs an identifier and leaves, got {name!r}: {list(group.leaves)}")
            for leaf in group.leaves:
                if leaf in self._group_of:
                    raise ValueError(f"groups: leaf {leaf!r} is in {self._group_of[leaf]!r} and in {name!r}")
                self._group_of[leaf] = name

    def rules(self, rule: Rule, span: tuple[float, float] | None, history: int) -> dict[str, Rule]:
        """What forecasts each group, ``rule`` unless it has one of its own; "": the other leaves.

        Raises:
            ValueError: a history out of its range, or shorter than a rule needs; see also :func:`make_rule`.
        """
        if not 1 <= history <= MAX_HISTORY:
            raise ValueError(f"history must be 1..{MAX_HISTORY}, got {history}")
        own = {name: each for name, each in self.groups.items() if each.basis is not None}
        made = {name: make_rule(each.basis, span, each.order, each.sigma) for name, each in own.items()}
        rules = {"": rule, **dict.fromkeys(self.groups, rule), **made}
        for each in rules.values():
            if history < each.floor:
                raise ValueError(f"history must be >= {each.floor} for basis {each.name!r}, got {history}")
        return rules

    def of_leaf(self, leaf: str) -> str:
        """The group of a leaf by its name in :mod:`forecache.tree`; "": none."""
        return self._group_of.get(tree.key(leaf), "")

    def streams(self, leaves: Sequence[str]) -> dict[str, list[str]]:
        """Leaves by stream: ``pose``, or ``cond.pose`` for a branch of the guidance.

        Raises:
            ValueError: a leaf of a group that is not among ``leaves``, or one of no group that bears the name of one.
        """
        missing = sorted(self._group_of.keys() - {tree.key(leaf) for leaf in leaves})
        if missing:
            raise ValueError(f"groups: no leaf {', '.join(missing)} in the value, which has {', '.join(leaves)}")
        found: dict[str, list[str]] = {}
        for leaf in leaves:
            group, branch = self.of_leaf(leaf), tree.branch(leaf)
            if not group and self.of_stream(leaf):
                raise ValueError(f"groups: {self.of_stream(leaf)!r} is also the name of a leaf outside of it, {leaf!r}")
            found.setdefault(f"{branch}.{group}".lstrip(".") if group else leaf, []).append(leaf)
        return found

    def of_stream(self, stream: str) -> str:
        """The group of a stream; "": none."""
        name = stream.rpartition(".")[2]
        return name if name in self.groups else ""

    def branch(self, stream: str) -> str:
        """``cond`` or ``uncond`` for a stream of a :class:`forecache.Guided`; "": none, as a group of that name is."""
        return "" if stream in self.groups else tree.branch(stream)

    def pack(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Leaves to streams.

        Raises:
            ValueError: a group whose leaves are missing, or differ in dtype, device or number of items.
        """
        if not self.groups:
            return dict(leaves)
        packed = {}
        for stream, names in self.streams(list(leaves)).items():
            if not self.of_stream(stream):
                packed[stream] = leaves[stream]
                continue
            rows = [self._rows(leaves[name]) for name in names]
            kinds = {(row.dtype, row.device, row.shape[:-1]) for row in rows}
            if len(kinds) > 1:
                each = ", ".join(f"{n} {leaves[n].dtype} {tuple(leaves[n].shape)} {leaves[n].device}" for n in names)
                raise ValueError(f"groups: leaves of {stream!r} must agree in dtype, device and items, got {each}")
            packed[stream] = torch.cat(rows, -1)
            if self.batch_dim == 1 and packed[stream].ndim == 2:
                packed[stream] = packed[stream].T
        return packed

    def _rows(self, leaf: torch.Tensor) -> torch.Tensor:
        """``[B, n]``, or ``[n]`` for a leaf that is one item."""
        if self.batch_dim is None or leaf.ndim < 2:
            return leaf.reshape(-1)
        return leaf.movedim(self.batch_dim, 0).flatten(1)

    def unpack(self, streams: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
        """The inverse of :meth:`pack` for leaves of these shapes."""
        if not self.groups:
            return dict(streams)
        leaves = {}
        for stream, names in self.streams(list(shapes)).items():
            value = streams[stream]
            if not self.of_stream(stream):
                leaves[stream] = value
                continue
            rows = value.T if self.batch_dim == 1 and value.ndim == 2 else value
            items = rows.shape[0] if rows.ndim == 2 else 1
            for name, row in zip(
                names, torch.split(rows, [shapes[n].numel() // items for n in names], -1), strict=True
            ):
                leaves[name] = self._leaf(row, shapes[name])
        return leaves

    def _leaf(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if rows.ndim < 2 or not self.batch_dim:
            return rows.reshape(shape)
        first = shape[self.batch_dim], *shape[: self.batch_dim], *shape[self.batch_dim + 1 :]
        return rows.reshape(first).movedim(0, self.batch_dim)


Parts = Mapping[str, Any]  #: by group ("": the leaves of none), an index into a flattened value
WHOLE: Parts = {"": slice(None)}  #: no groups


def parts(value: Any, groups: Mapping[str, Group | Sequence[str]]) -> Parts:
    """Where the groups lie in the flattened ``value``."""
    if not groups:
        return WHOLE
    known, at = Groups(groups, None), 0
    places: dict[str, list[torch.Tensor]] = {}
    leaves, _ = tree.flatten(value)
    known.streams(list(leaves))
    for name, leaf in leaves.items():
        places.setdefault(known.of_leaf(name), []).append(torch.arange(at, at + leaf.numel()))
        at += leaf.numel()
    return {group: torch.cat(ranges) for group, ranges in places.items()}


def norms(vector: torch.Tensor, where: Parts) -> dict[str, float]:
    """``||v||`` by group."""
    return {group: max(float(vector[at].norm()), 1e-30) for group, at in where.items()}


def relative(vector: torch.Tensor, sizes: Mapping[str, float], where: Parts) -> torch.Tensor:
    """``v`` in coordinates where every group of the sample has the same norm, and the whole sample norm 1: each part
    divided by ``sqrt(G) size_g``.
    """
    scaled = torch.empty_like(vector)
    for group, at in where.items():
        scaled[at] = vector[at] / (len(where) ** 0.5 * sizes[group])
    return scaled


def combine(weights: Mapping[str, Array], columns: torch.Tensor, where: Parts) -> torch.Tensor:
    """``[d]``: the sum of the rows of ``columns [m, d]``, with each group's own weights ``[m]``."""
    total = torch.empty_like(columns[0])
    for group, at in where.items():
        total[at] = torch.tensor(weights[group], dtype=columns.dtype) @ columns[:, at]
    return total
