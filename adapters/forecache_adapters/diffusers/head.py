"""A transformer in two parts: its blocks, and the head behind them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..attach import Worn

BLOCKS = ("transformer_blocks", "joint_transformer_blocks", "single_transformer_blocks", "blocks", "layers")

_followed: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


class Head:
    """From the hidden states behind the last block to the output: ``norm_out``, which time modulates, and what follows.

    The hidden states are the first argument of ``norm_out``: ``[batch, tokens, width]``, of the picture alone where
    text tokens are cut off before. The head runs with the rest of the transformer's code, its embeddings, around it.

    While it is put on, ``norm_out`` and the lists of blocks ask it what to do; for another thread than the one that
    calls it, they do as ever.

    Args:
        network: a transformer, not compiled as a whole.

    Raises:
        TypeError: a transformer whose blocks and head do not have these names.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.name = type(network).__name__
        self.norm: Any = getattr(network, "norm_out", None)
        self.blocks = [
            child
            for name, child in network.named_children()
            if name in BLOCKS and isinstance(child, torch.nn.ModuleList)
        ]
        if hasattr(network, "_orig_mod") or network._compiled_call_impl is not None:
            raise TypeError("level: 'last_block' leaves out the blocks, which are one graph in a transformer compiled")
        if self.norm is None or not self.blocks:
            raise TypeError(
                f"level: {self.name} has no norm_out behind {', '.join(BLOCKS)}, so what stands behind its last block"
                " is not known; only 'velocity' serves it"
            )
        self._here = threading.local()
        self._worn = [Worn(self.norm, self, {"__call__": self._entering_norm})]
        self._worn += [Worn(each, self, {"__iter__": self._entering_blocks}) for each in self.blocks]

    def put_on(self) -> None:
        """From now on ``norm_out`` and the blocks ask."""
        for each in self._worn:
            each.attach()

    def take_off(self) -> None:
        """As it was."""
        for each in self._worn:
            each.detach()

    def split(self, forward: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
        """The output of a call, and the hidden states in it."""
        seen: list[torch.Tensor] = []
        with self._doing(seen, None):
            output = forward()
        return output, seen[-1]

    def __call__(self, forward: Callable[[], Any], hidden: torch.Tensor) -> Any:
        """The output of a call whose blocks do not run and give ``hidden``."""
        with self._doing([], hidden):
            return forward()

    def follows(self, forward: Callable[[], Any], output: Any, hidden: torch.Tensor) -> bool:
        """Whether the hidden states of a call give its output; another part, such as sound, may come another way.

        It takes a run of the head, and is asked once of each transformer.
        """
        if self.norm not in _followed:
            pairs = zip(_tensors(self(forward, hidden)), _tensors(output), strict=True)
            _followed[self.norm] = all((found - wanted).norm() <= 1e-3 * wanted.norm() for found, wanted in pairs)
        return _followed[self.norm]

    @contextmanager
    def _doing(self, seen: list[torch.Tensor], hidden: torch.Tensor | None) -> Iterator[None]:
        before = getattr(self._here, "now", None)
        self._here.now = seen, hidden
        try:
            yield
        finally:
            self._here.now = before

    def _entering_norm(self, inside: Callable[..., Any], first: Any, *args: Any, **kwargs: Any) -> Any:
        now = getattr(self._here, "now", None)
        if now is not None:
            seen, hidden = now
            seen.append(first)
            first = first if hidden is None else hidden
        return inside(first, *args, **kwargs)

    def _entering_blocks(self, inside: Callable[[], Any]) -> Any:
        now = getattr(self._here, "now", None)
        return inside() if now is None or now[1] is None else iter(())


def _tensors(output: Any) -> list[torch.Tensor]:
    parts = list(output.values()) if isinstance(output, dict) else output
    return [leaf.float() for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]
