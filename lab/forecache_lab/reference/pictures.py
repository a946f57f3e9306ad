"""The conditioner of the reference networks: a patch embedding of one picture, trained with its network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PICTURE = 32


class PictureConditioner(nn.Module):
    """``[B, 1, 32, 32]`` -> ``{"main": [B, 16, 64]}``; zeros for the unconditional half, as the upstreams' encoders."""

    def __init__(self, tokens: int = 16, dim: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, PICTURE // 4, stride=PICTURE // 4)
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.mix = nn.TransformerEncoderLayer(dim, 4, dim * 2, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None, **unused: Any) -> dict[str, torch.Tensor]:
        patches = self.patches(image.to(self.position)).flatten(2).mT
        return {"main": self.mix(patches + self.position)}

    def unconditional_embedding(self, batch_size: int, **unused: Any) -> dict[str, torch.Tensor]:
        _, tokens, dim = self.position.shape
        return {"main": self.position.new_zeros(batch_size, tokens, dim)}
