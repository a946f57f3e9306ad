"""One batch of pictures through ``DiTPipeline``: pictures, latents, calls and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch

from forecache import fingerprint
from forecache_adapters import diffusers as adapter
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES

TOY = "toy"
CLASSES, STRIDE = 1000, 389  # neighbours in ImageNet's list look alike; any 1000 images in a row have each class once
OF_DIT = {"beta_schedule": "linear", "clip_sample": False}  # scheduler settings of the published checkpoints


@dataclass(frozen=True)
class Model:
    """A pipeline. ``title``: for tables; ``weights``: a fingerprint."""

    pipe: Any
    title: str
    weights: str
    device: str


@dataclass(frozen=True)
class Batch:
    """What came out.

    Attributes:
        pictures: uint8 [n, 3, H, W]. latents: [n, 4, h, w], as the decoder takes them.
        calls: of the transformer. cond, uncond: of them, per picture.
        seconds: of the whole call. denoise: of it, before the decoder.
    """

    pictures: torch.Tensor
    latents: torch.Tensor
    calls: int
    cond: int
    uncond: int
    seconds: float
    denoise: float


def load(name: str, device: str, dtype: str) -> Model:
    """The toy, or a pipeline that is on this machine already.

    Raises:
        ValueError: not on this machine, another pipeline, or no such dtype.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    if name == TOY:
        pipe = replace(PIPELINES["dit"], scheduling=OF_DIT).build()
        if kind != pipe.dtype:
            raise ValueError(f"dtype: the toy is float32, got {dtype!r}")
        title = "tiny random network: plumbing only"
    else:
        hub: Any = diffusers.DiffusionPipeline
        try:
            pipe = hub.from_pretrained(name, torch_dtype=kind, local_files_only=True)
        except OSError as error:
            raise ValueError(
                f"model: {name} is not on this machine, and nothing is downloaded here; run `hf download {name}` first,"
                f" or pass {TOY!r} or a folder"
            ) from error
        title = name
    if type(pipe).__name__ != "DiTPipeline":
        raise ValueError(f"model: {name} is a {type(pipe).__name__}, wanted a DiTPipeline")
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return Model(pipe, title, fingerprint(pipe.transformer), device)


def label_of(index: int) -> int:
    """ImageNet class of picture ``index``."""
    return index * STRIDE % CLASSES


def sample(
    model: Model, indices: Sequence[int], seed: int, steps: int, guidance: float, settings: Mapping[str, Any] | None
) -> Batch:
    """Pictures ``indices``, each from noise of its own, seeded ``seed + index``; ``settings`` of the cache, if any."""
    pipe = model.pipe
    generators = [torch.Generator().manual_seed(seed + index) for index in indices]
    labels = [label_of(index) for index in indices]
    cache = nullcontext() if settings is None else adapter.enabled(pipe, **settings)
    with cache, _counted(pipe.transformer) as rows, _decoded(model) as decoded:
        start = now(model.device)
        out = pipe(
            class_labels=labels, generator=generators, num_inference_steps=steps, guidance_scale=guidance,
            output_type="pt", return_dict=False,
        )[0]  # fmt: skip
        seconds = now(model.device) - start
    (latents, at), cond = decoded[0], len(rows)
    uncond = sum(rows) // len(indices) - cond
    return Batch(quantised(out), latents.float(), len(rows), cond, uncond, seconds, at - start)


def decode(model: Model, latents: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 of latents ``[n, 4, h, w]``, as the pipeline makes them."""
    vae = model.pipe.vae
    with torch.no_grad():
        out = vae.decode(latents.to(model.device, vae.dtype)).sample
    return quantised((out / 2 + 0.5).clamp(0, 1))


def quantised(pictures: torch.Tensor) -> torch.Tensor:
    """[0, 1] to uint8: FID is of pictures as they are saved."""
    return (255 * pictures.float()).round().to(torch.uint8).cpu()


def now(device: str) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _counted(transformer: Any) -> Iterator[list[int]]:
    """Batch sizes of the calls that reach the transformer's first block: a forecast does not."""
    rows: list[int] = []
    hook = transformer.transformer_blocks[0].register_forward_pre_hook(lambda block, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


@contextmanager
def _decoded(model: Model) -> Iterator[list[tuple[torch.Tensor, float]]]:
    """What the pipeline hands to its decoder, and when."""
    vae, seen = model.pipe.vae, []
    decode = vae.decode

    def noted(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((latents.detach().clone(), now(model.device)))
        return decode(latents, *args, **kwargs)

    vae.decode = noted
    try:
        yield seen
    finally:
        del vae.decode
