"""Fast-SAM3D's accelerated generators around small random networks, beside the plain ones around the same networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from forecache_adapters import fastsam3d as adapter

from .generated import Generated, InStages
from .reference import TEST_SEED, fastsam3d, pictures, sam3d

STEPS = 25
# infer.sh's threshold computes every sixth step or so where tokens are carved; without carving a network as smooth as
# this one would not be called after the warm-up
CARVED = "slat, carving 0.1, threshold 1.5"
UNCARVED = "slat, no carving, threshold 0.3"


class FastSam3D(InStages):
    """See :class:`.generated.Generator`; its stages are tables, of which two are the second stage.

    Uncached and our schedules: the plain generators. Settings with ``own``: those with the upstream's own cache; alone
    its own rule, with ``basis`` ours on the steps that its schedule computes; with ``every`` it computes every step.
    """

    adapter: Any = adapter
    title = "Fast-SAM3D's generators, small random networks (not the real weights)"
    conditions = "CPU, 1 thread, torch.float32, 25 steps, guidance 7 (ss) and 1 (slat) on t in [0, 0.5]"
    grids: Mapping[str, Sequence[int]] = dict.fromkeys(("ss", UNCARVED, CARVED), (STEPS,))
    seeds: Mapping[str, int] = {"ss": 4, UNCARVED: 3, CARVED: 3}
    carves: Mapping[str, bool] = {"ss": False, UNCARVED: False, CARVED: True}

    def __init__(self, checkout: Path) -> None:
        """Raises:
        FileNotFoundError, RuntimeError: no checkout, another one was imported before, or one that is not patched.
        """
        torch.set_num_threads(1)
        upstream = fastsam3d.load(checkout)
        self.plain = sam3d.build_small(upstream)
        self.fast = fastsam3d.accelerated(upstream, self.plain)
        self.coords = sam3d.ball(64)
        self.fast.models["slat_generator"].coords_scores = fastsam3d.scores(upstream, self.coords)
        adapter.enable(self.fast)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.fast)
        for generator in self.plain.models.values():  # shared by both pipelines
            generator.reverse_fn.backbone.forward = self._counted(generator.reverse_fn.backbone.forward)

    def _counted(self, forward: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return forward(*args, **kwargs)

        return counted

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {stage: self.plain.models[f"{stage}_generator"].reverse_fn.backbone for stage in ("ss", "slat")}

    def attached(self, settings: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
        """See :meth:`.generated.Generator.attached`."""
        chosen = dict(settings or {})
        pipe = self.fast if chosen.pop("own", False) else self.plain
        return self.adapter.enabled(pipe, **chosen) if chosen else nullcontext()

    paired = False  # the small networks have no decoder: the second stage runs on voxels that are always the same

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
        pipe = self.fast if settings is not None and settings.get("own") else self.plain
        for stage in ("ss", "slat"):
            pipe.models[f"{stage}_generator"].inference_steps = steps or STEPS
        self._infer_sh()
        with self.attached(settings) as handle:
            self._calls = 0
            with made.timed("ss"):
                leaves = pipe.sample_sparse_structure(seed, image)
            made.calls["ss"], self._calls = self._calls, 0
            with made.timed("slat"):
                slat = pipe.sample_slat(seed, self.coords, image)
            made.calls["slat"] = self._calls
        made.latents = {"ss": leaves["shape"], "slat": slat}
        made.traced(handle)
        return made

    def _infer_sh(self) -> None:
        """The accelerated generators' settings as the repository's own script has them."""
        self.fast.models["ss_generator"].ss_params = dict(fastsam3d.STRUCTURE)
        self.fast.models["slat_generator"].slat_params = dict(fastsam3d.SLAT)

    def sample(self, stage: str, seed: int, steps: int, settings: Mapping[str, Any] | None = None) -> Generated:
        """See :meth:`.generated.Generator.sample`."""
        chosen, made = dict(settings or {}), Generated()
        own, every = chosen.pop("own", False), chosen.pop("every", False)
        pipe = self.fast if own else self.plain
        network = "ss" if stage == "ss" else "slat"
        generator = pipe.models[f"{network}_generator"]
        generator.inference_steps, self._calls = steps, 0
        if own:
            generator.ss_params["ss_cache_stride"] = 1 if every else fastsam3d.STRUCTURE["ss_cache_stride"]
            carved = stage == CARVED
            generator.slat_params["slat_thresh"] = 0.0 if every else 1.5 if carved else 0.3
            generator.slat_params["slat_carving_ratio"] = fastsam3d.SLAT["slat_carving_ratio"] if carved else 0.0
        with adapter.enabled(generator, **chosen) if chosen else nullcontext() as handle:
            if stage == "ss":
                made.latents = dict(pipe.sample_sparse_structure(TEST_SEED + seed))
            else:
                made.latents = {"latent": pipe.sample_slat(TEST_SEED + seed, self.coords)}
        made.calls = {stage: self._calls}
        made.traced(handle, alone=network)
        return made
