"""What the shape pipelines of Hunyuan3D-2 and 2.1 share as subjects: around a small network, or with their weights."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from PIL import Image

from forecache_patches import read_marker

from .. import record
from .generated import Generated, GenerationFailed
from .reference import TEST_SEED, pictures, solids
from .reference.stubs import is_stub


class HunyuanShape:
    """See :class:`.generated.Generator`. A generator is a subclass that fills in the class attributes.

    Attributes:
        name, network: of the generator, and of the small network, for the title.
        octree: cells along a side of the small network's mesh.
        extra, weights_need: optional dependencies in pyproject.toml for real weights, and what the upstream imports.
        adapter, reference: modules of ``forecache_adapters`` and ``forecache_lab.generators.reference``.
        from_pretrained: further arguments of the upstream's method.
    """

    grids: ClassVar[Mapping[str, Sequence[int]]] = {"denoise": (50,)}
    seeds: ClassVar[Mapping[str, int]] = {"denoise": 8}
    intervals: Sequence[int] = (3, 4, 5, 6)
    octree = 64
    name: str
    network: str
    extra: str
    weights_need: tuple[str, ...] = ("torchvision", "transformers", "cv2", "pymeshlab")
    adapter: Any
    reference: Any
    from_pretrained: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, checkout: Path, weights: str | None = None, image: Path | None = None) -> None:
        """``weights``: a name or folder for ``from_pretrained`` (needs a CUDA device; :meth:`sample` also ``image``).

        Raises:
            RuntimeError: weights without a CUDA device or without a package that only they need; an unpatched checkout.
        """
        if weights is not None and not torch.cuda.is_available():
            raise RuntimeError(f"weights {weights} need a CUDA device, and this machine has none")
        upstream = self.reference.load(checkout)
        self.image, self.real = image, weights is not None
        marker = read_marker(checkout)
        origin = f"{self.name} at {marker.commit[:12]} ({marker.source})" if marker else f"{self.name}, own checkout"
        if weights is not None:
            self.pipe = self._pretrained(upstream, weights)
            self.octree, self.guidance = 256, 5.0
            self.title = f"{origin}, weights {weights}"
            device = torch.cuda.get_device_name()
        else:
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.pipe = self.reference.build(upstream)
            self.guidance = self.reference.GUIDANCE
            self.title = f"{origin}, pipeline around a {self.network} (not the real weights)"
            device = "CPU, 1 thread"
        self.conditions = f"{device}, {self.pipe.dtype}, guidance {self.guidance:g}, octree {self.octree}"
        self.adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        self.adapter.disable(self.pipe)
        self._calls = 0
        self.pipe.model.register_forward_pre_hook(self._count)

    def _pretrained(self, upstream: SimpleNamespace, weights: str) -> Any:
        missing = [package for package in self.weights_need if package not in sys.modules or is_stub(package)]
        if missing:
            raise RuntimeError(
                f"weights {weights} need {', '.join(missing)}: pip install '.[{self.extra}]' in this checkout"
            )
        return upstream.Pipeline.from_pretrained(weights, **self.from_pretrained)

    def _count(self, *unused: Any) -> None:
        self._calls += 1

    def _condition(self, seed: int) -> Any:
        if self.image is not None:
            return str(self.image)
        return [solids.picture(solids.solid(TEST_SEED + seed)[1], pictures.PICTURE)[None]]

    def sample(self, stage: str, seed: int, steps: int, settings: Mapping[str, Any] | None = None) -> Generated:
        """See :meth:`.generated.Generator.sample`."""
        return self._run(self._condition(seed), seed, settings, steps)

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {"denoise": self.pipe.model}

    def attached(self, settings: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
        """See :meth:`.generated.Generator.attached`."""
        return nullcontext() if settings is None else self.adapter.enabled(self.pipe, **settings)

    paired = False

    def fewer(self, calls: int) -> tuple[Mapping[str, Any] | None, int]:
        """See :meth:`.generated.Generator.fewer`: one step more, because the last one has dt = 0."""
        return {"basis": "reuse", "interval": 1, "few_steps": True}, calls + 1

    def generate(
        self,
        picture: Image.Image,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        given: Generated | None = None,
    ) -> Generated:
        """See :meth:`.generated.Generator.generate`."""
        image = picture if self.real else [pictures.from_image(picture)[None]]
        return self._run(image, seed, settings, steps or self.grids["denoise"][0])

    def _run(self, image: Any, seed: int, settings: Mapping[str, Any] | None, steps: int) -> Generated:
        made = Generated()
        if settings is None:
            self.adapter.disable(self.pipe)
        self._calls = 0
        with warnings.catch_warnings(), self.attached(settings) as handle:
            warnings.simplefilter("ignore", FutureWarning)
            with made.timed("denoise"):
                latent = self.pipe(
                    image=image, num_inference_steps=steps, guidance_scale=self.guidance,
                    generator=torch.Generator().manual_seed(seed), output_type="latent", enable_pbar=False,
                )  # fmt: skip
            with made.timed("decode"), torch.inference_mode():
                (made.mesh,) = self.pipe._export(latent, octree_resolution=self.octree, enable_pbar=False)
        if made.mesh is None:
            raise GenerationFailed(f"seed {seed}, {settings}: the upstream's surface extraction failed")
        made.latents, made.calls = {"denoise": latent.float().cpu()}, {"denoise": self._calls, "decode": 0}
        made.trace = {} if handle is None else {"network": record.steps(handle.trace)}
        return made
