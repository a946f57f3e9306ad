"""What a chunk, one method on one block of pictures, leaves in its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forecache import files

from .statistics import Array, Moments, Predictions


@dataclass(frozen=True)
class Chunk:
    """Of ``n`` pictures in batches.

    Attributes:
        moments, predictions: of their features.
        drift: ``||x - x_ref|| / ||x_ref||`` of the latents [n]. mse: of the pictures, of 255^2 [n].
        calls: rows (transformer, cond, uncond) [batches, 3].
        seconds: rows (whole call, before the decoder), per picture [batches, 2].
        latents: of the uncached run [n, 4, h, w], which the others are compared with; else empty.
    """

    moments: Moments
    predictions: Predictions
    drift: Array
    mse: Array
    calls: Array
    seconds: Array
    latents: torch.Tensor

    def __add__(self, other: Chunk) -> Chunk:
        return Chunk(
            self.moments + other.moments,
            self.predictions + other.predictions,
            np.concatenate([self.drift, other.drift]),
            np.concatenate([self.mse, other.mse]),
            np.concatenate([self.calls, other.calls]),
            np.concatenate([self.seconds, other.seconds]),
            torch.cat([self.latents, other.latents]),
        )

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all. Of the symmetric ``outer`` one triangle is kept."""
        m, p = self.moments, self.predictions
        body: dict[str, Any] = {
            "count": m.count, "total": m.total, "outer": m.outer[np.triu_indices(len(m.total))],
            "predicted": p.total, "plogp": p.plogp, "drift": self.drift, "mse": self.mse, "calls": self.calls,
            "seconds": self.seconds, "latents": self.latents.cpu().numpy(),
        }  # fmt: skip

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **body)

        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, write)

    @classmethod
    def load(cls, path: Path) -> Chunk:
        """Read a file that :meth:`save` wrote."""
        with np.load(path) as body:
            total = body["total"]
            outer = np.zeros((len(total), len(total)))
            outer[np.triu_indices(len(total))] = body["outer"]
            outer += np.triu(outer, 1).T
            count = int(body["count"])
            return cls(
                Moments(count, total, outer), Predictions(count, body["predicted"], float(body["plogp"])),
                body["drift"], body["mse"], body["calls"], body["seconds"], torch.from_numpy(body["latents"]),
            )  # fmt: skip


def chunk_path(out: Path, key: str, block: int) -> Path:
    """File of one chunk."""
    return out / "chunks" / key / f"{block:05d}.npz"
