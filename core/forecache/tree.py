"""Values that are not one tensor: dictionaries, tuples, sparse tensors. Flatten to leaves, rebuild.

Any container that ``torch.utils._pytree`` knows works; an adapter registers its own (a sparse tensor: its feature rows
are the leaf, coordinates and layout the context) with ``torch.utils._pytree.register_pytree_node``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

Structure = tuple[_pytree.TreeSpec, tuple[str, ...], list[Any]]

_TENSOR = object()  # stands for a tensor among the leaves


class Guided(NamedTuple):
    """The two branches of classifier-free guidance, apart: each is a stream. The guidance formula stays outside."""

    cond: Any
    uncond: Any


def flatten(value: Any) -> tuple[dict[str, torch.Tensor], Structure]:
    """Tensor leaves by name (``"v"`` for a bare tensor, else their path) and what :func:`unflatten` needs.

    No two leaves have one name: of two keys that are written alike the second is ``[key]#2``. Only the leaves of a
    :class:`Guided` begin with ``cond`` and ``uncond``; the field ``cond`` of another structure is ``.cond``.

    Raises:
        TypeError: no tensor among the leaves.
    """
    paths, spec = _pytree.tree_flatten_with_path(value)
    names = _names([_pytree.keystr(path) for path, _ in paths], isinstance(value, Guided))
    leaves = {name: leaf for name, (_, leaf) in zip(names, paths, strict=True) if isinstance(leaf, torch.Tensor)}
    if not leaves:
        raise TypeError(f"value must be a tensor or a structure of tensors, got {type(value).__name__}")
    others = [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for _, leaf in paths]
    return leaves, (spec, names, others)


def _names(paths: list[str], guided: bool) -> tuple[str, ...]:
    found: dict[str, None] = {}  # a set in order
    for path in paths:
        name = path.lstrip(".") or "v"
        if not guided and branch(name):
            name = f".{name}"
        unique, k = name, 2
        while unique in found:
            unique, k = f"{name}#{k}", k + 1
        found[unique] = None
    return tuple(found)


def unflatten(leaves: Mapping[str, torch.Tensor], structure: Structure) -> Any:
    """The inverse of :func:`flatten`; leaves that are not tensors are handed back as they were."""
    spec, names, others = structure
    return _pytree.tree_unflatten([leaves.get(name, other) for name, other in zip(names, others, strict=True)], spec)


def branches(structure: Structure) -> tuple[Structure, ...]:
    """The structures of the branches of a :class:`Guided`, with the names that each would have alone; of any other
    value, its own structure.
    """
    spec, names, others = structure
    if spec.context is not Guided:
        return (structure,)
    found, at = [], 0
    for branch, child in zip(Guided._fields, _children(spec), strict=True):
        part = slice(at, at + child.num_leaves)
        found.append((child, tuple(name.removeprefix(branch) for name in names[part]), others[part]))
        at += child.num_leaves
    return tuple(found)


def misfit(wanted: Iterable[torch.Tensor], given: Iterable[torch.Tensor]) -> str:
    """How tensors that must match in shape and device differ, "<wanted>, got <given>"; "": they match."""
    forms = [[(tuple(leaf.shape), leaf.device) for leaf in leaves] for leaves in (wanted, given)]
    if forms[0] == forms[1]:
        return ""
    return ", got ".join("; ".join(f"{shape} {device}" for shape, device in form) or "none" for form in forms)


def key(name: str) -> str:
    """The last key of a leaf's path: ``scale`` of ``cond['pose']['scale']``."""
    return "".join(re.findall(r"\['([^']*)'\]|\[([^\]]*)\]|\.?([^.\[\]]+)", re.sub(r"#\d+$", "", name))[-1])


def branch(name: str) -> str:
    """``cond`` or ``uncond`` for a leaf of a :class:`Guided`; "": no branch."""
    return next((each for each in ("cond", "uncond") if re.match(rf"{each}($|[.\[])", name)), "")


def same(a: Structure, b: Structure) -> bool:
    """Whether two values have the same containers, with equal contexts, and the same tensor leaves."""
    return a[1] == b[1] and [x is _TENSOR for x in a[2]] == [x is _TENSOR for x in b[2]] and _same_spec(a[0], b[0])


def _same_spec(a: _pytree.TreeSpec, b: _pytree.TreeSpec) -> bool:
    if a.type is not b.type or not _equal(a.context, b.context):
        return False
    mine, theirs = _children(a), _children(b)
    return len(mine) == len(theirs) and all(map(_same_spec, mine, theirs))


def _children(spec: _pytree.TreeSpec) -> list[_pytree.TreeSpec]:
    children = getattr(spec, "children", None)  # torch >= 2.9; an attribute before
    return list(children() if callable(children) else spec.children_specs)


def _equal(a: Any, b: Any) -> bool:
    """``a == b`` for contexts that may hold tensors, such as the coordinates of a sparse tensor."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def form(value: Any) -> tuple[Any, ...]:
    """What two calls of one kind have in common, to be compared with ``==``.

    Of each leaf its path, and the shape, dtype and device of a tensor, the type of anything else.
    """
    return tuple((_pytree.keystr(path), *_form(leaf)) for path, leaf in _pytree.tree_flatten_with_path(value)[0])


def _form(leaf: Any) -> tuple[Any, ...]:
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else (type(leaf),)


def describe(structure: Structure) -> str:
    """Container and leaf names, for a message."""
    spec, names, others = structure
    kinds = ["" if other is _TENSOR else f": {type(other).__name__}" for other in others]
    leaves = [name + kind for name, kind in zip(names, kinds, strict=True)]
    return f"{getattr(spec.type, '__name__', 'tensor')}({', '.join(leaves)})"
