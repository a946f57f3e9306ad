"""What of a model or of a condition is at work at one sigma: ControlNets, LoRAs with a schedule, attention patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Control:
    """A ControlNet at one sigma: whether that is in its range."""

    control: Any
    strength: float
    at_work: bool


def controls(control: Any, sigma: float) -> Iterator[Control]:
    """A ControlNet, and those that it is applied on top of."""
    while control is not None:
        span = getattr(control, "timestep_range", None)
        at_work = span is None or float(span[1]) <= sigma <= float(span[0])
        yield Control(control, float(getattr(control, "strength", 1.0)), at_work)
        control = getattr(control, "previous_controlnet", None)


def hooks(group: Any) -> list[tuple[Any, float]]:
    """Of a group of hooks (LoRAs that belong to a condition): which, and how strong each is at this step."""
    return [(each.hook_ref, float(each.strength)) for each in getattr(group, "hooks", ())]


def patches(options: Any, sigma: float) -> list[bool]:
    """Of each patch that keeps a range of sigmas by ComfyUI's names for it, whether it is at work.

    A patch is the same function at every step, also where it does nothing: what it closes over tells its range.
    """
    found = []
    for patch in tree_leaves(options):
        if callable(patch):
            found += [float(each["sigma_end"]) <= sigma <= float(each["sigma_start"]) for each in _spans(patch)]
    return found


def _spans(patch: Any) -> Iterator[Mapping[str, Any]]:
    held = [dict(getattr(patch, "__dict__", {}))]
    if isinstance(patch, functools.partial):
        held.append(patch.keywords)
    code, cells = getattr(patch, "__code__", None), getattr(patch, "__closure__", None) or ()
    if code is not None:
        held.append({name: _content(cell) for name, cell in zip(code.co_freevars, cells, strict=True)})
    held += [dict(each) for each in tree_leaves(held[0].get("kwargs"), is_leaf=lambda x: isinstance(x, Mapping))
             if isinstance(each, Mapping)]  # fmt: skip
    for each in held:
        if all(isinstance(each.get(name), (int, float, torch.Tensor)) for name in ("sigma_start", "sigma_end")):
            yield each


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
