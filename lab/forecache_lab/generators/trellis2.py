"""TRELLIS.2's patched pipeline around small random networks, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from forecache_adapters import trellis2 as adapter
from forecache_adapters.families.flow_euler import stage_of

from . import pretrained
from .generated import Generated, GenerationFailed, InStages, kept, replaced, structure_latent, watched
from .reference import TEST_SEED, pictures, trellis2


class Trellis2(InStages):
    """See :class:`.generated.Generator`."""

    adapter = adapter
    name = "trellis2"
    first = 0
    fork_last = True
    title = "TRELLIS.2 pipeline, small random networks (not the real weights)"
    conditions = "CPU, 1 thread, torch.float32, the application's guidance and rescale"
    grids: Mapping[str, Sequence[int]] = {
        "sparse_structure": (12, 25), "shape_slat_512": (12, 25), "shape_slat_1024": (12,), "tex_slat_512": (12, 25),
    }  # fmt: skip

    seeds: Mapping[str, int] = dict.fromkeys(grids, 4)
    resolution: str | None = "512"  #: ``pipeline_type`` of :meth:`generate`; ``None``: the pipeline's own

    def __init__(self, checkout: Path, weights: str | None = None) -> None:
        """``weights``: a name or folder for ``from_pretrained``, for :meth:`generate` alone.

        Raises:
            FileNotFoundError, RuntimeError: no checkout, or one that is not patched; weights without a CUDA device.
        """
        self.real = weights is not None
        if weights is not None:
            self.pipe = pretrained.load(checkout, "trellis2.pipelines", "Trellis2ImageTo3DPipeline", weights)
            self.title = f"TRELLIS.2 pipeline, weights {weights}"
            self.conditions = f"{torch.cuda.get_device_name()}, the weights' own settings"
            self.resolution = None
        else:
            torch.set_num_threads(1)
            self.upstream = trellis2.load(checkout)
            self.pipe = trellis2.build(self.upstream)
        adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.pipe)
        for name, network in self.pipe.models.items():
            if "flow_model" in name:
                network.register_forward_pre_hook(self._count)
        if self.real:
            return
        cond = self.pipe.get_cond([1], 512)
        self.coords = {"512": self._coords(cond, 32), "1024": self._coords(cond, 64)}

    def _coords(self, cond: Any, side: int) -> torch.Tensor:
        torch.manual_seed(0)
        coords: torch.Tensor = self.pipe.sample_sparse_structure(cond, side)
        return coords

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {str(stage_of(name)): each for name, each in self.pipe.models.items() if "flow_model" in name}

    def generate(
        self,
        picture: Image.Image,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        given: Generated | None = None,
    ) -> Generated:
        """See :meth:`.generated.Generator.generate`."""
        made, pipe, stages = Generated(), self.pipe, {network: stage for stage, network in self.networks.items()}
        filled: list[torch.Tensor] = []
        look = pipe.models["sparse_structure_decoder"].register_forward_hook(lambda *io: filled.append(io[2][0, 0] > 0))
        params = {} if steps is None else {"steps": steps}
        with ExitStack() as around:
            around.callback(look.remove)
            handle = around.enter_context(self.attached(settings))
            for name in ("sparse_structure", "shape_slat", "tex_slat"):
                watch = watched(made, lambda: self._calls, stages.__getitem__)
                around.enter_context(replaced(getattr(pipe, f"{name}_sampler"), "sample", watch))
            for owner, name in ((pipe, "sample_sparse_structure"), (pipe.models["shape_slat_decoder"], "upsample")):
                around.enter_context(replaced(owner, name, kept(made.voxels, name, given)))
            around.enter_context(replaced(pipe, "decode_latent", made.timing("decode")))
            found = pipe.run(
                picture if self.real else pictures.from_image(picture), seed=seed, pipeline_type=self.resolution,
                sparse_structure_sampler_params=params, shape_slat_sampler_params=params,
                tex_slat_sampler_params=params,
            )  # fmt: skip
        made.traced(handle)
        made.occupancy = filled[0].cpu()
        mesh = pretrained.to_mesh(found[0] if self.real else found[0][0])
        if len(mesh.faces):
            made.mesh = mesh
        elif self.real or self.upstream.mesh:
            raise GenerationFailed("the decoded surface is empty")
        return made

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
