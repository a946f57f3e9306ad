"""A transformer in two parts: its blocks, and the head behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

BLOCKS = ("transformer_blocks", "joint_transformer_blocks", "single_transformer_blocks", "blocks", "layers")


class Passed(torch.nn.ModuleList):
    """Blocks that a loop over them does not enter; what is looked up in one of them is found."""

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return iter(())


class Head:
    """From the hidden states behind the last block to the output: ``norm_out``, which time modulates, and what follows.

    The hidden states are the first argument of ``norm_out``: ``[batch, tokens, width]``, of the picture alone where
    text tokens are cut off before. The head runs with the rest of the transformer's code, its embeddings, around it.

    Args:
        network: a transformer, not compiled as a whole.

    Raises:
        TypeError: a transformer whose blocks and head do not have these names.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.name = type(network).__name__
        self.norm = getattr(network, "norm_out", None)
        self.blocks = [
            child for name, child in network.named_children() if name in BLOCKS and type(child) is torch.nn.ModuleList
        ]
        if hasattr(network, "_orig_mod"):
            raise TypeError("level: 'last_block' leaves out the blocks, which are one graph in a transformer compiled")
        if self.norm is None or not self.blocks:
            raise TypeError(
                f"level: {self.name} has no norm_out behind {', '.join(BLOCKS)}, so what stands behind its last block"
                " is not known; only 'velocity' serves it"
            )

    def split(self, forward: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
        """The output of a call, and the hidden states in it."""
        seen: list[torch.Tensor] = []
        with self._entering_norm(lambda _, args: seen.append(args[0])):
            output = forward()
        return output, seen[-1]

    def __call__(self, forward: Callable[[], Any], hidden: torch.Tensor) -> Any:
        """The output of a call whose blocks do not run and give ``hidden``."""
        with ExitStack() as stack:
            stack.enter_context(self._entering_norm(lambda _, args: (hidden, *args[1:])))
            for blocks in self.blocks:
                blocks.__class__ = Passed
                stack.callback(setattr, blocks, "__class__", torch.nn.ModuleList)
            return forward()

    def check(self, forward: Callable[[], Any], output: Any, hidden: torch.Tensor) -> None:
        """That the hidden states of a call give its output.

        Raises:
            TypeError: the output has another part, such as sound, which comes from the blocks by another way.
        """
        for found, wanted in zip(_tensors(self(forward, hidden)), _tensors(output), strict=True):
            if (found - wanted).norm() > 1e-3 * wanted.norm():
                raise TypeError(
                    f"level: the output of {self.name} does not follow from what enters its norm_out; only 'velocity'"
                    " serves it"
                )

    @contextmanager
    def _entering_norm(self, hook: Callable[[Any, Any], Any]) -> Iterator[None]:
        handle = self.norm.register_forward_pre_hook(hook)  # type: ignore[union-attr]
        try:
            yield
        finally:
            handle.remove()


def _tensors(output: Any) -> list[torch.Tensor]:
    parts = list(output.values()) if isinstance(output, dict) else output
    return [leaf.float() for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]
