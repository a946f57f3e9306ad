"""The loop: block by block, method by method; a chunk that is there is not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forecache_lab.run_folder import open_folder

from ..flows.sampling import distance
from .chunks import Chunk, chunk_path
from .features import Features
from .methods import UNCACHED, Method
from .sampling import Batch, Model, decode, sample
from .statistics import Moments, Predictions

REPEATED = 1e-3  # latent drift between two runs from one noise, above which runs are not paired


@dataclass(frozen=True)
class Bench:
    """Settings of all rows.

    Attributes:
        images, chunk, batch: each a multiple of the next.
        seed: picture i starts from noise ``seed + i`` in every row.

    Raises:
        ValueError: a setting out of its range.
    """

    model: Model
    features: Features
    steps: int
    guidance: float
    images: int
    chunk: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 9:
            raise ValueError(f"steps must be >= 9 (the cache stays off in runs of at most 8), got {self.steps}")
        if min(self.images, self.chunk, self.batch) < 1 or self.images % self.chunk or self.chunk % self.batch:
            raise ValueError(
                f"images must be a multiple of chunk, and chunk of batch, got {self.images}, {self.chunk}, {self.batch}"
            )
        if self.images < 2:
            raise ValueError(f"images must be >= 2, got {self.images}")

    def settings(self) -> dict[str, Any]:
        """What all chunks of a folder have in common."""
        scheduler = self.model.pipe.scheduler
        return {
            "model": self.model.title, "weights": self.model.weights, "dtype": str(self.model.pipe.dtype),
            "device": device_name(self.model.device), "scheduler": type(scheduler).__name__, "steps": self.steps,
            "guidance": self.guidance, "images": self.images, "chunk": self.chunk, "batch": self.batch,
            "seed": self.seed, "features": self.features.name, "features_digest": self.features.digest,
        }  # fmt: skip

    def run(self, rows: Sequence[Method], out: Path, progress: Callable[[str], None]) -> dict[str, Chunk]:
        """All rows, each merged over its chunks; ``rows[0]`` is the uncached run. Blocks are taken in turn, so that
        what slows the machine down for a while slows all rows down alike.

        Raises:
            ValueError: a folder with other settings. RuntimeError: see :meth:`_warm_up`.
        """
        open_folder(out, self.settings())
        warm: set[str] = set()
        for block in range(self.images // self.chunk):
            for method in rows:
                path = chunk_path(out, method.key, block)
                if not path.exists():
                    if method.key not in warm:
                        self._warm_up(method, block)
                        warm.add(method.key)
                    near = None if method.key == UNCACHED else Chunk.load(chunk_path(out, UNCACHED, block)).latents
                    self._chunk(method, block, near).save(path)
                progress(f"block {block}, {method.label}")
        return {row.key: reduce(add, self._chunks(row, out)) for row in rows}

    def _chunks(self, method: Method, out: Path) -> Iterator[Chunk]:
        """One at a time: a chunk of 2048 features takes 34 MB. Latents are of no more use."""
        for block in range(self.images // self.chunk):
            yield replace(Chunk.load(chunk_path(out, method.key, block)), latents=torch.empty(0))

    def _sample(self, method: Method, indices: Sequence[int]) -> Batch:
        # seeds behind those of all pictures, so that no picture has this noise already
        seed = self.seed + self.images * method.other_noise
        return sample(self.model, indices, seed, method.steps or self.steps, self.guidance, method.settings)

    def _warm_up(self, method: Method, block: int) -> None:
        """Run once before anything is timed, and check that the same noise gives the same picture.

        Raises:
            RuntimeError: it does not: the scheduler draws noise of its own.
        """
        indices = range(block * self.chunk, block * self.chunk + self.batch)
        first = self._sample(method, indices)
        if method.key == UNCACHED:
            off = float(distance(self._sample(method, indices).latents, first.latents).max())
            if off > REPEATED:
                name = type(self.model.pipe.scheduler).__name__
                raise RuntimeError(f"model: two runs from one noise differ by {off:.2g}; {name} draws noise of its own")

    def _chunk(self, method: Method, block: int, near: torch.Tensor | None) -> Chunk:
        """``near``: latents of the uncached run; ``None``: this is the uncached run."""
        made: list[Chunk] = []
        for start in range(0, self.chunk, self.batch):
            first = block * self.chunk + start
            batch = self._sample(method, range(first, first + self.batch))
            reference = batch.latents.cpu() if near is None else near[start : start + self.batch]
            pictures = batch.pictures if near is None else decode(self.model, reference)
            mse = (batch.pictures.double() - pictures.double()).square().flatten(1).mean(dim=1)
            values, log_probabilities = self.features.of(batch.pictures)
            made.append(
                Chunk(
                    Moments.of(values), Predictions.of(log_probabilities),
                    distance(batch.latents.cpu(), reference), mse.numpy(),
                    np.array([[batch.calls, batch.cond, batch.uncond]], dtype=np.float64),
                    np.array([[batch.seconds, batch.denoise]]) / self.batch,
                    reference if near is None else torch.empty(0),
                )
            )  # fmt: skip
        return reduce(add, made)


def device_name(device: str) -> str:
    """For tables."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} thread(s)"
