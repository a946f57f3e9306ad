"""SAM 3D Objects' generators, stage by stage: a trained network makes shape and pose, a random one the latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from forecache_adapters import sam3d as adapter

from .generated import Generated, GenerationFailed, InStages
from .reference import TEST_SEED, pictures, sam3d, sam3d_latents, sam3d_trained, trellis_latents


class Sam3D(InStages):
    """See :class:`.generated.Generator`."""

    adapter = adapter
    name = "sam3d"
    title = "SAM 3D Objects, small networks (not the real weights): ss trained here on posed solids, slat random"
    conditions = "CPU, 1 thread, torch.float32, guidance 7 (ss) and 1 (slat) on t in [0, 0.5], rescale_t 3 and 1"
    grids: Mapping[str, Sequence[int]] = {"ss": (25,), "slat": (25,)}
    seeds: Mapping[str, int] = {"ss": 8, "slat": 2}
    first = TEST_SEED + 64
    intervals: Sequence[int] = (*InStages.intervals, 6)
    fork_last = False
    groups: Mapping[str, Mapping[str, Sequence[str]]] = {"ss": adapter.GROUPS}

    def __init__(self, checkout: Path) -> None:
        """Raises:
        FileNotFoundError, RuntimeError: no checkout, or another one was imported before.
        """
        torch.set_num_threads(1)
        self.upstream = sam3d.load(checkout)
        self.trained = sam3d_trained.build_reference(self.upstream)
        self.random = sam3d.build_small(self.upstream)
        self.pipe = sam3d.Pipeline({f"{stage}_generator": self.sampler(stage) for stage in self.grids})
        self.coords = sam3d.ball()
        for stage in self.grids:
            # inside of the network, whose own forward is the adapter's while that is on
            self.sampler(stage).reverse_fn.backbone.t_embedder.register_forward_pre_hook(self._count)

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {stage: self.sampler(stage).reverse_fn.backbone for stage in self.grids}

    def generate(
        self,
        picture: Image.Image,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        given: Generated | None = None,
    ) -> Generated:
        """See :meth:`.generated.Generator.generate`."""
        made, image = Generated(), pictures.from_image(picture)
        for stage in self.grids:
            self.sampler(stage).inference_steps = steps or self.grids[stage][-1]
        with self.attached(settings) as handle:
            self._calls = 0
            with made.timed("ss"):
                leaves = self.trained.sample_sparse_structure(seed, image)
            made.calls["ss"], self._calls = self._calls, 0
            with made.timed("decode"):
                self._decode(made, leaves)
            assert made.occupancy is not None
            if not made.occupancy.any():
                raise GenerationFailed("no voxel is occupied")
            made.voxels["coords"] = torch.argwhere(made.occupancy[None]).int()
            with made.timed("slat"):
                coords = (made if given is None else given).voxels["coords"]
                slat = self.random.sample_slat(seed, coords, image)
            made.calls["slat"] = self._calls
        made.latents = {"ss": leaves["shape"], "slat": slat}
        made.traced(handle)
        return made

    def sampler(self, stage: str) -> Any:
        """The stage's generator, whose velocity a control may forecast."""
        return (self.trained if stage == "ss" else self.random).models[f"{stage}_generator"]

    def times(self, stage: str, steps: int) -> list[float]:
        """See :meth:`benchmarks.studies.stage_plans.Planned.times`."""
        made = self.sampler(stage)
        times = made._prepare_t_and_d(steps)[0] if stage == "ss" else made._prepare_t(steps)
        return [float(t) for t in times]

    def run(self, stage: str, seed: int, steps: int) -> Generated:
        """See :meth:`.generated.InStages.run`."""
        self.sampler(stage).inference_steps = steps
        made, self._calls = Generated(), 0
        with made.timed(stage):
            if stage == "slat":
                made.latents = {stage: self.random.sample_slat(seed, self.coords)}
            else:
                leaves = self.trained.sample_sparse_structure(seed)
                made.latents = {"shape": leaves["shape"], **leaves}
        made.calls = {stage: self._calls}
        if stage == "ss":
            self._decode(made, leaves)
        return made

    def _decode(self, made: Generated, leaves: Mapping[str, torch.Tensor]) -> None:
        """Voxels, surface and pose of what the first stage returned."""
        distances = sam3d_latents.to_distances(leaves["shape"])[0]
        made.occupancy = trellis_latents.occupied(distances)
        made.mesh = trellis_latents.to_mesh(distances - trellis_latents.MARGIN)
        made.pose = sam3d_latents.to_pose(leaves)
