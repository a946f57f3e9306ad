"""Forecasting what the state moves by, ``v = a x + b o``, in place of what the network puts out, ``o``.

A network may put out the data, or a mixture of data and noise whose shares change from step to step; what the sampler
makes of it, and what is smooth from step to step, is the velocity of its ODE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import tree
from .snapshots import DTYPES, dense

Rate = tuple[float, float]  #: (a, b) of one step


def velocity(rate: Rate, output: Any, state: Any) -> Any:
    """``a x + b o`` for each tensor of ``output``, in its dtype; one that cannot be forecast is handed on as it is.

    Raises:
        ValueError: a state that is missing or not of the output's form (of one of its branches).
    """
    a, b = rate
    return _each(output, state, lambda o, x: (b * o).add_(x, alpha=a))


def output(rate: Rate, velocity: Any, state: Any) -> Any:
    """The inverse of :func:`velocity`: ``(v - a x) / b``."""
    a, b = rate
    return _each(velocity, state, lambda v, x: torch.sub(v, x, alpha=a).div_(b))


def fits(output: Any, state: Any) -> bool:
    """Whether there is a tensor of the state for every one of the output."""
    return not _misfit(output, state)


def _each(value: Any, state: Any, made: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, tree.Guided):
        return tree.Guided(*(None if each is None else _each(each, state, made) for each in value))
    if misfit := _misfit(value, state):
        raise ValueError(f"state must have the form of the network's output, {misfit}")
    leaves, structure = tree.flatten(value)
    states = tree.flatten(state)[0].values()
    pairs = zip(leaves.items(), states, strict=True)
    done = {
        name: made(leaf, x.detach().to(leaf.dtype)) if leaf.dtype in DTYPES and dense(leaf) else leaf
        for (name, leaf), x in pairs
    }
    return tree.unflatten(done, structure)


def _misfit(value: Any, state: Any) -> str:
    """How the state differs in form, in words; "": it does not."""
    return tree.misfit(*([] if each is None else tree.flatten(each)[0].values() for each in (value, state)))
