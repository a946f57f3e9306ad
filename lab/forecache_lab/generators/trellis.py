"""TRELLIS's patched image pipeline around the trained reference networks, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from forecache_adapters import trellis as adapter

from ..metrics.combined import grid
from . import pretrained
from .generated import Generated, GenerationFailed, InStages, kept, replaced, structure_latent, watched
from .reference import TEST_SEED, pictures, solids, trellis, trellis_latents


class Trellis(InStages):
    """See :class:`.generated.Generator`."""

    adapter = adapter
    name = "trellis"
    first = TEST_SEED + 64  # schedules were compared on the conditions below it
    fork_last = True
    groups: Mapping[str, Mapping[str, Sequence[str]]] = {}
    title = "TRELLIS pipeline, small trained reference networks (not the real weights)"
    grids: Mapping[str, Sequence[int]] = {"sparse_structure": (12, 25), "slat": (12, 25)}
    seeds: Mapping[str, int] = {"sparse_structure": 8, "slat": 4}

    def __init__(self, checkout: Path, weights: str | None = None) -> None:
        """``weights``: a name or folder for ``from_pretrained``, for :meth:`generate` alone.

        Raises:
            FileNotFoundError, RuntimeError: no checkout, or one that is not patched; weights without a CUDA device.
        """
        self.real = weights is not None
        if weights is not None:
            self.pipe = pretrained.load(checkout, "trellis.pipelines", "TrellisImageTo3DPipeline", weights)
            self.title = f"TRELLIS pipeline, weights {weights}"
            self.conditions = f"{torch.cuda.get_device_name()}, the weights' own settings"
        else:
            torch.set_num_threads(1)
            self.upstream = trellis.load(checkout)
            self.pipe = trellis.build_reference(self.upstream)
            strength = self.pipe.slat_sampler_params["cfg_strength"]
            self.conditions = f"CPU, 1 thread, torch.float32, guidance {strength:g} on [0.5, 1], rescale_t 3"
        adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.pipe)
        self._conditions: dict[int, tuple[dict[str, torch.Tensor], torch.Tensor]] = {}
        for name in ("sparse_structure_flow_model", "slat_flow_model"):
            self.pipe.models[name].register_forward_pre_hook(self._count)

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {stage: self.pipe.models[f"{stage}_flow_model"] for stage in self.grids}

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
            for stage in stages.values():
                sampler = getattr(pipe, f"{stage}_sampler")
                watch = watched(made, lambda: self._calls, stages.__getitem__)
                around.enter_context(replaced(sampler, "sample", watch))
            keep = kept(made.voxels, "coords", given)
            around.enter_context(replaced(pipe, "sample_sparse_structure", keep))
            around.enter_context(replaced(pipe, "decode_slat", made.timing("decode")))
            found = pipe.run(
                picture if self.real else pictures.from_image(picture), seed=seed, formats=["mesh"],
                sparse_structure_sampler_params=params, slat_sampler_params=params,
            )  # fmt: skip
        made.occupancy, made.mesh = filled[0].cpu(), pretrained.to_mesh(found["mesh"][0])
        made.traced(handle)
        if not len(made.mesh.faces):
            raise GenerationFailed("the decoded surface is empty")
        return made

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
