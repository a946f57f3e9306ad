"""TRELLIS.2's patched pipeline around small random networks, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forecache_adapters import trellis2 as adapter

from ..reference import TEST_SEED, trellis2
from ..stages import INTERVALS, Output, structure_latent


class Trellis2:
    """See :class:`forecache_lab.stages.Staged`."""

    adapter = adapter
    name = "trellis2"
    intervals: Sequence[int] = INTERVALS
    fork_last = True
    title = "TRELLIS.2 pipeline, small random networks (not the real weights)"
    conditions = "CPU, 1 thread, torch.float32, the application's guidance and rescale"
    grids: Mapping[str, Sequence[int]] = {
        "sparse_structure": (12, 25), "shape_slat_512": (12, 25), "shape_slat_1024": (12,), "tex_slat_512": (12, 25),
    }  # fmt: skip

    seeds: Mapping[str, int] = dict.fromkeys(grids, 4)

    def __init__(self, checkout: Path) -> None:
        """Raises:
        FileNotFoundError, RuntimeError: no checkout, or one that is not patched.
        """
        torch.set_num_threads(1)
        self.upstream = trellis2.load(checkout)
        self.pipe = trellis2.build(self.upstream)
        adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.pipe)
        self._calls = 0
        for name, network in self.pipe.models.items():
            if "flow_model" in name:
                network.register_forward_pre_hook(self._count)
        cond = self.pipe.get_cond([1], 512)
        self.coords = {"512": self._coords(cond, 32), "1024": self._coords(cond, 64)}

    def _coords(self, cond: Any, side: int) -> torch.Tensor:
        torch.manual_seed(0)
        coords: torch.Tensor = self.pipe.sample_sparse_structure(cond, side)
        return coords

    def _count(self, *unused: Any) -> None:
        self._calls += 1

    def sampler(self, stage: str) -> Any:
        """See :meth:`forecache_lab.stages.Staged.sampler`."""
        return getattr(self.pipe, f"{stage.removesuffix('_512').removesuffix('_1024')}_sampler")

    def sample(self, stage: str, seed: int, steps: int) -> Output:
        """See :meth:`forecache_lab.stages.Staged.sample`."""
        pipe, options = self.pipe, {"steps": steps}
        kind, _, resolution = stage.rpartition("_")
        cond = pipe.get_cond([TEST_SEED + seed], 512)
        torch.manual_seed(seed)
        self._calls, start = 0, time.perf_counter()
        if stage == "sparse_structure":
            latent = structure_latent(pipe, cond, steps)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                occupancy = pipe.models["sparse_structure_decoder"](latent)[0, 0] > 0
            return Output(latent, self._calls, seconds, occupancy)
        network, coords = pipe.models[f"{kind}_flow_model_{resolution}"], self.coords[resolution]
        if kind == "shape_slat":
            latent = pipe.sample_shape_slat(cond, network, coords, options)
        else:
            shape = self.upstream.SparseTensor(feats=torch.randn(len(coords), 8), coords=coords)
            latent = pipe.sample_tex_slat(cond, network, shape, options)
        return Output(latent.feats, self._calls, time.perf_counter() - start)
