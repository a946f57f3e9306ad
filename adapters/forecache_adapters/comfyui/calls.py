"""One call of the network: what it is asked for, of what kind that is, and how a batch is taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from forecache import tree

from ..kinds import Kinds
from . import ranges
from .entries import Place

BATCH = ("cond_or_uncond", "uuids", "sigmas")  # what ComfyUI says in its options of one batch of one step


class Unfollowed(Exception):
    """What a run does cannot be followed. ``output``: the network's, if it was called."""

    def __init__(self, reason: str, output: Any = None) -> None:
        super().__init__(reason)
        self.output = output


@dataclass(frozen=True)
class Question:
    """The conditions that a step asks for at once.

    Attributes:
        number: how many times the step had asked before. conds: the entries.
        altered: a node's function stands between ComfyUI and the network, and may change what the entries say.
    """

    number: int
    conds: Mapping[Place, Mapping[str, Any]]
    altered: bool


def altered(options: Mapping[str, Any], conds: Mapping[Place, Mapping[str, Any]], ours: str) -> bool:
    """Whether a function of a node stands between; hooks may bring one along."""
    around = options.get("transformer_options", {}).get("wrappers", {}).get("apply_model", {})
    hooked = any(each.get("hooks") is not None for each in conds.values())
    return options.get("model_function_wrapper") is not None or bool(set(around) - {ours}) or hooked


def halves(x: Any, t: Any, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """State and sigma of each entry of a batch.

    Raises:
        Unfollowed: a batch that is no such thing.
    """
    dense = isinstance(x, torch.Tensor) and not x.is_nested and x.ndim and isinstance(t, torch.Tensor)
    if not dense or len(x) == 0 or len(x) % count or t.shape != x.shape[:1]:
        raise Unfollowed(f"x {_shape(x)} with sigma {_shape(t)} is no batch of {count} entries")
    return list(zip(x.chunk(count), t.chunk(count), strict=True))


def part_of(output: Any, like: torch.Tensor, count: int, k: int) -> torch.Tensor:
    """What the network returned for the ``k``-th entry of a batch.

    Raises:
        Unfollowed: it is not of the form of the state.
    """
    if not isinstance(output, torch.Tensor) or output.shape != (len(like) * count, *like.shape[1:]):
        raise Unfollowed(f"the network returns {_shape(output)} for {count} times {_shape(like)}", output)
    return output.chunk(count)[k]


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) and not value.is_nested else type(value).__name__


def kind_of(
    kinds: Kinds, x: torch.Tensor, whole: torch.Tensor, cond: Mapping[str, Any], options: Mapping[str, Any],
    sigma: float, given: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The kind of an entry's call.

    Args:
        kinds: of the entry.
        x: its state.
        whole: the state of its batch, whose place in memory tells tiles apart.
        cond: the entry.
        options: of the batch.
        sigma: of the step.
        given: its arguments, where they may differ from what the entry says.
    """
    values = {name: getattr(each, "cond", each) for name, each in (cond.get("model_conds") or {}).items()}
    values |= {f"{name} as called": each for name, each in given.items()}
    said = {name: each for name, each in options.items() if name not in BATCH}
    controls = list(ranges.controls(cond.get("control"), sigma))
    strengths = [each.strength for each in controls], ranges.hooks(cond.get("hooks"))
    return {
        "state": tree.form(x),
        "place": whole.storage_offset(),
        "ControlNets": [(id(each.control), each.at_work) for each in controls],
        "patches at work": ranges.patches(said, sigma),
        **kinds.of({
            **values, "area": cond.get("area"), "gligen": cond.get("gligen"), "options": said, "strengths": strengths,
        }),
    }  # fmt: skip


def arguments(args: Sequence[Any], keywords: Mapping[str, Any], count: int, k: int) -> dict[str, Any]:
    """Of the ``k``-th entry of a batch: the network's arguments but for the options and what a ControlNet returned."""

    def mine(value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.ndim and len(value) and len(value) % count == 0
        return value.chunk(count)[k] if whole else value

    named = {**dict(zip(("c_concat", "c_crossattn", "control", "transformer_options"), args, strict=False)), **keywords}
    return {
        name: tree_map(mine, each) for name, each in named.items() if name not in ("control", "transformer_options")
    }


def within(x: torch.Tensor, batch: Any) -> bool:
    """Whether ``x`` is a part of ``batch`` in its very memory."""
    return isinstance(batch, torch.Tensor) and x.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr()
