"""TRELLIS's patched image pipeline around the trained reference networks, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forecache_adapters import trellis as adapter

from ..metrics.combined import grid
from .generated import Generated
from .reference import TEST_SEED, solids, trellis, trellis_latents
from .trellis_family import TrellisFamily, structure_latent


class Trellis(TrellisFamily):
    """See :class:`.generated.Generator`."""

    adapter = adapter
    name = "trellis"
    first = TEST_SEED + 64  # schedules were compared on the conditions below it
    groups: Mapping[str, Mapping[str, Sequence[str]]] = {}
    title = "TRELLIS pipeline, small trained reference networks (not the real weights)"
    module, pipeline = "trellis.pipelines", "TrellisImageTo3DPipeline"
    grids: Mapping[str, Sequence[int]] = {"sparse_structure": (12, 25), "slat": (12, 25)}
    seeds: Mapping[str, int] = {"sparse_structure": 8, "slat": 4}
    samplers, decoder = ("sparse_structure", "slat"), "decode_slat"
    options: Mapping[str, Any] = {"formats": ["mesh"]}

    def build(self, checkout: Path) -> Any:
        """See :meth:`.TrellisFamily.build`."""
        pipe = trellis.build_reference(trellis.load(checkout))
        strength = pipe.slat_sampler_params["cfg_strength"]
        self.conditions = f"CPU, 1 thread, torch.float32, guidance {strength:g} on [0.5, 1], rescale_t 3"
        self._conditions: dict[int, tuple[dict[str, torch.Tensor], torch.Tensor]] = {}
        return pipe

    def mesh_of(self, found: Any) -> Any:
        """See :meth:`.TrellisFamily.mesh_of`."""
        return found["mesh"][0]

    def condition(self, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Condition tokens of a solid, and its own voxels: the fixed coordinates of the second stage."""
        if seed not in self._conditions:
            _, solid = solids.solid(seed)
            cond = self.pipe.get_cond([solids.picture(solid)])
            distances = solids.grid(solid, trellis_latents.VOXELS, centres=True)[None]
            coords = torch.argwhere(trellis_latents.occupied(distances)).int()
            self._conditions[seed] = cond, coords
        return self._conditions[seed]

    def sampler(self, stage: str) -> Any:
        """The stage's sampler, whose velocity a control may forecast."""
        return getattr(self.pipe, f"{stage}_sampler")

    def times(self, stage: str, steps: int) -> list[float]:
        """See :meth:`benchmarks.studies.stage_plans.Planned.times`."""
        return grid(steps, getattr(self.pipe, f"{stage}_sampler_params")["rescale_t"])

    def run(self, stage: str, seed: int, steps: int) -> Generated:
        """See :meth:`.generated.InStages.run`."""
        pipe, (cond, coords) = self.pipe, self.condition(seed)
        torch.manual_seed(seed)
        made, self._calls = Generated(), 0
        if stage == "slat":
            with made.timed(stage):
                slat = pipe.sample_slat(cond, coords, {"steps": steps})
            made.calls = {stage: self._calls}
            norm = pipe.slat_normalization  # the sampler had the features normalised
            made.latents = {stage: (slat.feats - torch.tensor(norm["mean"])) / torch.tensor(norm["std"])}
            made.mesh = pipe.decode_slat(slat)["mesh"][0]
            return made
        with made.timed(stage):
            latent = structure_latent(pipe, cond, steps)
        made.latents, made.calls = {stage: latent}, {stage: self._calls}
        logits = pipe.models["sparse_structure_decoder"](latent)[0, 0]
        made.occupancy, made.mesh = logits > 0, trellis_latents.to_mesh(-logits)
        return made
