"""Hunyuan3D-2.1's patched pipeline: around the reference network, or with its own weights on a GPU."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from forecache_adapters import hunyuan21 as adapter

from ..reference import TEST_SEED, hunyuan21, solids
from ..reference.stubs import is_stub
from . import Sample

WEIGHTS_NEED = ("torchvision", "transformers", "omegaconf", "cv2", "pymeshlab")


class Hunyuan21:
    """See :class:`forecache_lab.subjects.Subject`."""

    steps = 50

    def __init__(self, checkout: Path, weights: str | None = None, image: Path | None = None) -> None:
        """``weights``: a name or folder for ``from_pretrained`` (needs ``image`` and a CUDA device).

        Raises:
            ValueError: weights without an image file.
            RuntimeError: weights without a CUDA device or without a package that only they need; an unpatched checkout.
        """
        if weights is not None:
            if image is None or not image.is_file():
                raise ValueError(f"weights need an image file: pass --image FILE, got {image}")
            if not torch.cuda.is_available():
                raise RuntimeError(f"weights {weights} need a CUDA device, and this machine has none")
        upstream = hunyuan21.load(checkout)
        self.image = image
        if weights is not None:
            missing = [name for name in WEIGHTS_NEED if name not in sys.modules or is_stub(name)]
            if missing:
                raise RuntimeError(
                    f"weights {weights} need {', '.join(missing)}: pip install '.[hunyuan21-weights]' in this checkout"
                )
            self.pipe = upstream.Pipeline.from_pretrained(weights)
            self.octree, self.guidance = 256, 5.0
            self.title = f"Hunyuan3D-2.1, weights {weights}"
            device = torch.cuda.get_device_name()
        else:
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.pipe = hunyuan21.build(upstream)
            self.octree, self.guidance = 64, hunyuan21.GUIDANCE
            self.title = "Hunyuan3D-2.1 pipeline, small trained reference network (not the real weights)"
            device = "CPU, 1 thread"
        self.conditions = f"{device}, {self.pipe.dtype}, guidance {self.guidance:g}, octree {self.octree}"
        adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        adapter.disable(self.pipe)
        self._calls = 0
        self.pipe.model.register_forward_pre_hook(self._count)

    def _count(self, *unused: Any) -> None:
        self._calls += 1

    def _condition(self, seed: int) -> Any:
        if self.image is not None:
            return str(self.image)
        return [solids.picture(solids.solid(TEST_SEED + seed)[1], hunyuan21.PICTURE)[None]]

    def sample(self, seed: int, settings: Mapping[str, Any] | None) -> Sample:
        """See :meth:`forecache_lab.subjects.Subject.sample`."""
        return self._run(seed, settings, self.steps)

    def plain(self, seed: int, calls: int) -> Sample:
        """``calls + 1`` steps, because the last one has dt = 0 and is skipped exactly."""
        return self._run(seed, {"basis": "reuse", "interval": 1, "few_steps": True}, calls + 1)

    def _run(self, seed: int, settings: Mapping[str, Any] | None, steps: int) -> Sample:
        on = nullcontext() if settings is None else adapter.enabled(self.pipe, **settings)
        if settings is None:
            adapter.disable(self.pipe)
        self._calls = 0
        with warnings.catch_warnings(), on as handle:
            warnings.simplefilter("ignore", FutureWarning)
            self._synchronise()
            start = time.perf_counter()
            latent = self.pipe(
                image=self._condition(seed), num_inference_steps=steps, guidance_scale=self.guidance,
                generator=torch.Generator().manual_seed(seed), output_type="latent", enable_pbar=False,
            )  # fmt: skip
            self._synchronise()
            denoise = time.perf_counter() - start
            with torch.inference_mode():
                (mesh,) = self.pipe._export(latent, octree_resolution=self.octree, enable_pbar=False)
            self._synchronise()
            total = time.perf_counter() - start
        if mesh is None:
            raise RuntimeError(f"seed {seed}, {settings}: the upstream's surface extraction failed")
        trace = {} if handle is None else {"trace": handle.trace}
        return Sample(latent.float().cpu(), mesh, self._calls, denoise, total, **trace)

    def _synchronise(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
