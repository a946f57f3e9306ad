"""TRELLIS's patched image pipeline around the trained reference networks, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forecache_adapters import trellis as adapter

from ..combined import grid
from ..reference import TEST_SEED, solids, trellis, trellis_latents
from ..stages import INTERVALS, Output, structure_latent


class Trellis:
    """See :class:`forecache_lab.stages.Staged`."""

    adapter = adapter
    name = "trellis"
    first = TEST_SEED + 64  # schedules were compared on the conditions below it
    intervals: Sequence[int] = INTERVALS
    fork_last = True
    groups: Mapping[str, Mapping[str, Sequence[str]]] = {}
    title = "TRELLIS pipeline, small trained reference networks (not the real weights)"
    grids: Mapping[str, Sequence[int]] = {"sparse_structure": (12, 25), "slat": (12, 25)}
    seeds: Mapping[str, int] = {"sparse_structure": 8, "slat": 4}

    def __init__(self, checkout: Path) -> None:
        """Raises:
        FileNotFoundError, RuntimeError: no checkout, or one that is not patched.
        """
        torch.set_num_threads(1)
        self.upstream = trellis.load(checkout)
        self.pipe = trellis.build_reference(self.upstream)
        strength = self.pipe.slat_sampler_params["cfg_strength"]
        self.conditions = f"CPU, 1 thread, torch.float32, guidance {strength:g} on [0.5, 1], rescale_t 3"
        adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.pipe)
        self._calls = 0
        self._conditions: dict[int, tuple[dict[str, torch.Tensor], torch.Tensor]] = {}
        for name in ("sparse_structure_flow_model", "slat_flow_model"):
            self.pipe.models[name].register_forward_pre_hook(self._count)

    def _count(self, *unused: Any) -> None:
        self._calls += 1

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
        """See :meth:`forecache_lab.stages.Staged.sampler`."""
        return getattr(self.pipe, f"{stage}_sampler")

    def times(self, stage: str, steps: int) -> list[float]:
        """See :meth:`forecache_lab.stage_plans.Planned.times`."""
        return grid(steps, getattr(self.pipe, f"{stage}_sampler_params")["rescale_t"])

    def sample(self, stage: str, seed: int, steps: int) -> Output:
        """See :meth:`forecache_lab.stages.Staged.sample`."""
        return self.run(stage, self.first + seed, steps)

    def run(self, stage: str, seed: int, steps: int) -> Output:
        """As :meth:`sample`, for a condition by its own number."""
        pipe, (cond, coords) = self.pipe, self.condition(seed)
        torch.manual_seed(seed)
        self._calls, start = 0, time.perf_counter()
        if stage == "slat":
            slat = pipe.sample_slat(cond, coords, {"steps": steps})
            seconds = time.perf_counter() - start
            norm = pipe.slat_normalization
            feats = (slat.feats - torch.tensor(norm["mean"])) / torch.tensor(norm["std"])  # as the sampler had them
            return Output(feats, self._calls, seconds, None, pipe.decode_slat(slat)["mesh"][0])
        latent = structure_latent(pipe, cond, steps)
        seconds = time.perf_counter() - start
        logits = pipe.models["sparse_structure_decoder"](latent)[0, 0]
        return Output(latent, self._calls, seconds, logits > 0, trellis_latents.to_mesh(-logits))
