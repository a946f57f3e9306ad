"""What the reference networks see: one small grey picture; its conditioner, trained with its network, or tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

PICTURE = 32


def from_image(image: Image.Image, size: int = PICTURE) -> torch.Tensor:
    """``[1, size, size]`` in ``[-1, 1]`` of any image: grey, on black where it is transparent, and around a square."""
    rgba = image.convert("RGBA")
    grey = Image.new("RGBA", rgba.size, "black")
    grey.alpha_composite(rgba)
    side = max(rgba.size)
    square = Image.new("L", (side, side))
    square.paste(grey.convert("L"), ((side - rgba.width) // 2, (side - rgba.height) // 2))
    small = square.resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255 * 2 - 1)[None]


def tokens(picture: torch.Tensor, count: int, channels: int) -> torch.Tensor:
    """Tokens ``[count, channels]`` of about unit variance for a random network: a fixed random projection of the
    picture's brightness, whose sum of squares is 1.
    """
    light = (picture + 1).flatten()
    draw = torch.Generator().manual_seed(count)
    projection = torch.randn(count * channels, light.numel(), generator=draw)
    found: torch.Tensor = projection @ (light / light.norm().clamp(min=1e-6))
    return found.reshape(count, channels)


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
