"""TRELLIS.2's patched pipeline around small random networks, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forecache_adapters import trellis2 as adapter
from forecache_adapters.families.flow_euler import stage_of

from .generated import Generated
from .reference import TEST_SEED, trellis2
from .trellis_family import TrellisFamily, structure_latent


class Trellis2(TrellisFamily):
    """See :class:`.generated.Generator`."""

    adapter = adapter
    name = "trellis2"
    first = 0
    title = "TRELLIS.2 pipeline, small random networks (not the real weights)"
    module, pipeline = "trellis2.pipelines", "Trellis2ImageTo3DPipeline"
    conditions = "CPU, 1 thread, torch.float32, the application's guidance and rescale"
    grids: Mapping[str, Sequence[int]] = {
        "sparse_structure": (12, 25), "shape_slat_512": (12, 25), "shape_slat_1024": (12,), "tex_slat_512": (12, 25),
    }  # fmt: skip
    seeds: Mapping[str, int] = dict.fromkeys(grids, 4)
    samplers, decoder = ("sparse_structure", "shape_slat", "tex_slat"), "decode_latent"

    def build(self, checkout: Path) -> Any:
        """See :meth:`.TrellisFamily.build`."""
        self.upstream = trellis2.load(checkout)
        pipe = trellis2.build(self.upstream)
        cond = pipe.get_cond([1], 512)
        self.coords = {}
        for resolution, side in (("512", 32), ("1024", 64)):
            torch.manual_seed(0)
            self.coords[resolution] = pipe.sample_sparse_structure(cond, side)
        self.no_surface = not self.upstream.mesh
        return pipe

    @property
    def options(self) -> Mapping[str, Any]:  # type: ignore[override]
        """See :class:`.TrellisFamily`; ``None``: the pipeline's own resolution."""
        return {"pipeline_type": None if self.real else "512"}

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {str(stage_of(name)): each for name, each in self.pipe.models.items() if "flow_model" in name}

    def voxel_makers(self) -> list[tuple[Any, str]]:
        """See :meth:`.TrellisFamily.voxel_makers`."""
        return [*super().voxel_makers(), (self.pipe.models["shape_slat_decoder"], "upsample")]

    def mesh_of(self, found: Any) -> Any:
        """See :meth:`.TrellisFamily.mesh_of`."""
        return found[0] if self.real else found[0][0]

    def sampler(self, stage: str) -> Any:
        """The stage's sampler, whose velocity a control may forecast."""
        return getattr(self.pipe, f"{stage.removesuffix('_512').removesuffix('_1024')}_sampler")

    def run(self, stage: str, seed: int, steps: int) -> Generated:
        """See :meth:`.generated.InStages.run`."""
        pipe, options = self.pipe, {"steps": steps}
        kind, _, resolution = stage.rpartition("_")
        cond = pipe.get_cond([TEST_SEED + seed], 512)
        torch.manual_seed(seed)
        made, self._calls = Generated(), 0
        with made.timed(stage):
            if stage == "sparse_structure":
                latent = structure_latent(pipe, cond, steps)
            else:
                network, coords = pipe.models[f"{kind}_flow_model_{resolution}"], self.coords[resolution]
                if kind == "shape_slat":
                    latent = pipe.sample_shape_slat(cond, network, coords, options).feats
                else:
                    shape = self.upstream.SparseTensor(feats=torch.randn(len(coords), 8), coords=coords)
                    latent = pipe.sample_tex_slat(cond, network, shape, options).feats
        made.latents, made.calls = {stage: latent}, {stage: self._calls}
        if stage == "sparse_structure":
            with torch.no_grad():
                made.occupancy = pipe.models["sparse_structure_decoder"](latent)[0, 0] > 0
        return made
