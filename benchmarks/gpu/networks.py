"""A plain transformer of any width, depth and number of tokens: what stands in for a network whose code is not here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

Net = TypeVar("Net", bound=nn.Module)
FREQUENCIES = 128


@dataclass(frozen=True)
class Size:
    """Tokens ``[tokens, channels]``; blocks ``width x depth`` with ``heads``; context ``[words, word_width]``.

    ``fold`` neighbouring tokens are one within the blocks. ``beside``: the context's words are tokens of the blocks
    too (self-attention over both) and not looked up by cross-attention.
    """

    tokens: int
    channels: int
    width: int
    depth: int
    heads: int
    words: int
    word_width: int
    fold: int = 1
    beside: bool = False


class Block(nn.Module):
    """Self-attention, cross-attention if ``across``, and an MLP of four times the width, each modulated by time."""

    def __init__(self, width: int, heads: int, across: bool) -> None:
        super().__init__()
        self.heads, self.across = heads, across
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if across:
            self.q, self.kv, self.back = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.table = nn.Parameter(torch.randn(6, width) * width**-0.5)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Of ``[B, T, width]``."""
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """``x [B, T, width]``, ``modulation [B, 6, width]``, ``context [B, S, width]``."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (modulation + self.table)[:, :, None].unbind(1)
        x = x + (1 + gate) * self.out(self.attend(*self.qkv(self.norm(x) * (1 + scale) + shift).chunk(3, -1)))
        if self.across:
            x = x + self.back(self.attend(self.q(self.norm(x)), *self.kv(context).chunk(2, -1)))
        out: torch.Tensor = x + (1 + gate_mlp) * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)
        return out


class Plain(nn.Module):
    """Velocity ``[B, tokens, channels]`` of ``x`` of that shape at times ``t [B]`` with ``context [B, words, ...]``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, width = size, size.width
        self.enter = nn.Linear(size.fold * size.channels, width)
        self.words = nn.Linear(size.word_width, width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, size.heads, not size.beside) for _ in range(size.depth))
        self.leave = nn.Linear(width, size.fold * size.channels)

    def hidden(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """``[B, tokens / fold, width]``, what the last block puts out."""
        rates = torch.exp(torch.arange(FREQUENCIES, device=t.device) * (-math.log(1e4) / FREQUENCIES))
        phase = 1000 * t.float()[:, None] * rates
        waves = torch.cat([phase.cos(), phase.sin()], -1).to(self.enter.weight.dtype)
        modulation = self.time(waves).reshape(len(t), 6, -1)
        words = self.words(context)
        h = self.enter(x.to(self.enter.weight.dtype).reshape(x.shape[0], -1, self.enter.in_features))
        count = h.shape[1]
        if self.size.beside:
            h = torch.cat([words, h], 1)
        for block in self.blocks:
            h = block(h, modulation, words)
        out: torch.Tensor = h[:, -count:]
        return out

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """From what the last block puts out to the velocity."""
        out: torch.Tensor = self.leave(functional.layer_norm(hidden, hidden.shape[-1:]))
        return out.reshape(len(hidden), -1, self.size.channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """See the class; in the dtype of ``x``."""
        return self.head(self.hidden(x, t, context)).to(x.dtype)


def random_network(
    make: Callable[[], Net], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Net:
    """``make()`` with random weights, made on ``device`` in ``dtype``: no copy of twice the size, none in the host.

    Parameters that are all zero are drawn anew: with a zero output layer a velocity is 0, and a forecast of it free.
    """
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = make()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network.eval().requires_grad_(False)
