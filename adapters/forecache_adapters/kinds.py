"""What kind of call a network is asked for: a history serves only calls of its own kind.

The forms of all arguments are compared at every call, and the values of those that say what is to be made (prompt,
masks, strengths). A callback of the user's may change any of them within a run: the guidance, the batch, the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from forecache import tree


class Kinds:
    """The kinds of one branch's calls in one run, for :meth:`forecache.Forecaster.match`.

    Two tensors are compared number by number only if they are not one memory: a pipeline that makes its conditions anew
    at every step waits for a GPU here. What changes at two calls in a row changes at every step, such as a ControlNet's
    residuals, and is not compared from then on.

    Args:
        moving: arguments that are another value at every step, such as the latents and the time.
    """

    def __init__(self, moving: Collection[str] = ()) -> None:
        self.moving = frozenset(moving)
        self._call = 0
        self._values: dict[str, list[tuple[Any, int]]] = {}
        self._changed: dict[str, int] = {}  # the call at which it last did
        self._generation: dict[str, int] = {}

    def of(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The kind of a call with these arguments."""
        self._call += 1
        forms = {name: (tree.form(value), self._seen(name, value)) for name, value in arguments.items()}
        return {
            **forms,
            "set of arguments": tuple(sorted(name for name, value in arguments.items() if value is not None)),
        }

    def _seen(self, name: str, value: Any) -> int:
        """How many times the value of an argument has changed."""
        generation = self._generation.setdefault(name, 0)
        if name in self.moving:
            return generation
        before = self._values.get(name)
        now = [(leaf, _version(leaf)) for leaf in tree_leaves(value)]
        self._values[name] = now
        if before is None or (len(before) == len(now) and all(map(_same, before, now))):
            return generation
        if self._changed.get(name) == self._call - 1:
            self.moving |= {name}
            del self._values[name]
            return generation
        self._changed[name], self._generation[name] = self._call, generation + 1
        return generation + 1


def _version(leaf: Any) -> int:
    """Counts what was written into a tensor; -1: not counted (inference mode)."""
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else -1


def _same(before: tuple[Any, int], now: tuple[Any, int]) -> bool:
    (a, written), (b, again) = before, now
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return a is b or (isinstance(a, (bool, int, float, str)) and type(a) is type(b) and a == b)
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    if a is b or a.is_meta or (a.layout is torch.strided and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
        return written == again
    return bool(torch.equal(a.detach(), b.detach()))
