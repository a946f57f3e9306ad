"""What of a model or of a condition is at work at one sigma: ControlNets, LoRAs with a schedule, attention patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Control:
    """A ControlNet at one sigma: whether that is in its range."""

    control: Any
    strength: Any
    at_work: bool


def controls(control: Any, sigma: float) -> Iterator[Control]:
    """A ControlNet, and those that it is applied on top of."""
    while control is not None:
        start, end = getattr(control, "timestep_range", None) or (None, None)
        yield Control(control, getattr(control, "strength", None), _inside(start, end, sigma))
        control = getattr(control, "previous_controlnet", None)


def hooks(group: Any) -> list[tuple[Any, Any]]:
    """Of a group of hooks (LoRAs that belong to a condition): which, and how strong each is at this step."""
    return [(getattr(each, "hook_ref", each), getattr(each, "strength", None)) for each in getattr(group, "hooks", ())]


def patches(options: Any, sigma: float) -> list[bool]:
    """Of each patch that keeps a range of sigmas by ComfyUI's names for it, whether it is at work.

    A patch is the same function at every step, also where it does nothing: what it closes over tells its range.
    """
    held = [each for patch in tree_leaves(options) if callable(patch) for each in _held(patch)]
    spans = [(each["sigma_start"], each["sigma_end"]) for each in held if {"sigma_start", "sigma_end"} <= each.keys()]
    return [_inside(start, end, sigma) for start, end in spans]


def _inside(start: Any, end: Any, sigma: float) -> bool:
    """Whether sigma is in a range; one that is no pair of numbers has no end."""
    below, above = _number(start), _number(end)
    return (below is None or sigma <= below) and (above is None or above <= sigma)


def _number(value: Any) -> float | None:
    single = isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    return float(value) if single else None


def _held(patch: Any) -> Iterator[dict[str, Any]]:
    """What a function or an object keeps by name: attributes, closure, keywords; and mappings in its ``kwargs``."""
    own = dict(getattr(patch, "__dict__", {}))
    yield own
    if isinstance(patch, functools.partial):
        yield patch.keywords
    names = getattr(getattr(patch, "__code__", None), "co_freevars", ())
    yield dict(zip(names, map(_content, getattr(patch, "__closure__", None) or ()), strict=False))
    kept = tree_leaves(own.get("kwargs"), is_leaf=lambda each: isinstance(each, dict))
    yield from (each for each in kept if isinstance(each, dict))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
