"""The pipeline of a run: which class it is, what its call takes, and how it is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from forecache_lab.errors import UserError

from . import tiny
from .jobs import Job
from .settings import Settings

TINY = "tiny:"
OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class Model:
    """A loaded pipeline.

    Attributes:
        pipe: of diffusers. format: of its files.
        arguments: of the call for one job; the generator comes on top.
    """

    pipe: Any
    format: str
    arguments: Callable[[Job], dict[str, Any]]


def kind_of(model: str, revision: str | None = None) -> type:
    """The pipeline's class, from its name or its ``model_index.json``; no weights are read.

    Raises:
        UserError: a name, folder or identifier that is none of a pipeline's.
    """
    if model.startswith(TINY):
        try:
            name = tiny.find(model.removeprefix(TINY)).pipeline
        except KeyError:
            known = ", ".join(TINY + each for each in tiny.NAMES)
            raise UserError(f"--model {model}: there is none, known are {known}") from None
    else:
        if not (Path(model) / "model_index.json").is_file() and (Path(model).exists() or model.count("/") != 1):
            raise UserError(
                f"--model {model}: must be a folder with model_index.json, an identifier OWNER/NAME, or tiny:NAME"
            )
        try:
            name = diffusers.DiffusionPipeline.load_config(model, revision=revision)["_class_name"]
        except Exception as error:  # damaged files fail anywhere in their readers
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"--model {model}: no pipeline of diffusers is there, or reachable: {reason}") from None
    kind = getattr(diffusers, str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise UserError(f"--model {model}: diffusers {diffusers.__version__} has no pipeline {name}")
    return kind


def check(kind: type, settings: Settings, jobs: Iterable[Job]) -> None:
    """Whether the pipeline's call takes what the run would give it.

    Raises:
        UserError: naming the first argument that it does not take, or misses.
    """
    takes = inspect.signature(kind.__call__).parameters
    allowed = sorted(set(takes) - {"self"})
    options = {
        "num_inference_steps": "--steps",
        "guidance_scale": "--guidance",
        "height": "--height",
        "width": "--width",
    }
    for name in settings.arguments():
        if name not in takes:
            option = options.get(name, f"--set {name}")
            raise UserError(f"{option}: {kind.__name__} takes no {name}; its arguments are {', '.join(allowed)}")
    for job in jobs:
        given = {"negative_prompt": job.negative_prompt, "image": job.image, "class_labels": job.class_label}
        for name, value in given.items():
            if value is not None and name not in takes:
                raise UserError(f"--prompts, {job.id}: {kind.__name__} takes no {name}")
        if settings.model.startswith(TINY):
            continue
        if "class_labels" in takes and job.class_label is None:
            raise UserError(f"--prompts, {job.id}: {kind.__name__} needs a class_label; give it in a .jsonl file")
        if takes.get("prompt") is not None and not job.prompt:
            raise UserError(f"--prompts, {job.id}: {kind.__name__} needs a prompt")
    encoder_of(_format(kind, settings.format))
    steps = _steps(takes, settings)
    if settings.calls is not None and steps is not None and settings.calls > steps:
        raise UserError(f"--calls {settings.calls}: must be at most the number of steps, {steps}")


def _steps(takes: Mapping[str, inspect.Parameter], settings: Settings) -> int | None:
    """How many there will be, by ``--steps`` or the call's default; ``None``: only the pipeline knows."""
    if {"timesteps", "sigmas"} & set(settings.call):
        return None
    default = takes["num_inference_steps"].default if "num_inference_steps" in takes else None
    steps = settings.steps or default
    return steps if isinstance(steps, int) else None


def _format(kind: type, asked: str) -> str:
    """Of the files of a pipeline that has a decoder."""
    video = "num_frames" in inspect.signature(kind.__call__).parameters
    if asked == "auto":
        return "mp4" if video else "png"
    if asked in ("png", "mp4") and video != (asked == "mp4"):
        raise UserError(f"--format {asked}: {kind.__name__} makes {'videos' if video else 'pictures'}")
    return asked


def encoder_of(file_format: str) -> None:
    """Raises ``UserError`` where what writes the format is not installed."""
    if file_format == "mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(
                "--format mp4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or choose --format npy (exact frames)"
            ) from None


def load(settings: Settings, device: str, offload: str = "none") -> Model:
    """The pipeline on a device.

    Args:
        settings: name it.
        device: ``cpu``, ``cuda:0``, ...
        offload: ``model`` or ``sequential``: diffusers' CPU offload, for devices that do not hold the whole pipeline.
    """
    dtype = getattr(torch, settings.dtype)
    if settings.model.startswith(TINY):
        found = tiny.find(settings.model.removeprefix(TINY))
        pipe = found.build() if dtype == torch.float32 else found.build().to(dtype)

        def inputs(job: Job) -> dict[str, Any]:
            moved = {
                name: value.to(device, dtype if value.is_floating_point() else value.dtype)
                if isinstance(value, torch.Tensor) else value
                for name, value in tiny.inputs(found, job).items()
            }  # fmt: skip
            defaults = {name: value for name, value in found.call.items() if name != "output_type"}
            return {**defaults, **moved, **_picture(job)}
    else:
        kind: Any = diffusers.DiffusionPipeline
        pipe = kind.from_pretrained(settings.model, revision=settings.revision, torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        inputs = _words
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    decoded = getattr(pipe, "vae", None) is not None
    if not decoded and settings.format not in ("auto", "latent"):
        raise UserError(f"--format {settings.format}: {settings.model} has no decoder, only latent is possible")
    file_format = _format(type(pipe), settings.format) if decoded else "latent"
    shared = {**settings.arguments(), "output_type": _output(file_format, type(pipe))}
    return Model(pipe, file_format, lambda job: {**inputs(job), **shared})


def _output(file_format: str, kind: type) -> str:
    if file_format == "latent":
        return "latent"
    return "pil" if file_format == "png" else "np"


def _words(job: Job) -> dict[str, Any]:
    if job.class_label is not None:
        return {"class_labels": [job.class_label]}
    against = {} if job.negative_prompt is None else {"negative_prompt": job.negative_prompt}
    return {"prompt": job.prompt, **against, **_picture(job)}


def _picture(job: Job) -> Mapping[str, Any]:
    if job.image is None:
        return {}
    with Image.open(job.image) as opened:
        return {"image": opened.convert("RGB")}
