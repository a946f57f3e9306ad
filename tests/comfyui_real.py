"""The same functions as the stand-in's, on a checkout of ComfyUI itself, whose folder ``FORECACHE_COMFYUI`` names."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from comfyui_tiny import Network

KINDS = ("FLOW", "EPS", "V_PREDICTION")
together: list[Callable[[], bool]] = [lambda: True]
UNUSED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchaudio", "kornia")


class Absent(types.ModuleType):
    """Stands for a package that ComfyUI imports for other models than the one here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


for _name in UNUSED:
    if importlib.util.find_spec(_name.split(".")[0]) is None or _name in sys.modules:
        _module = Absent(_name)
        _module.__spec__, _module.__path__ = importlib.machinery.ModuleSpec(_name, None), []
        sys.modules.setdefault(_name, _module)

sys.path.insert(0, os.environ["FORECACHE_COMFYUI"])
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402

comfy.model_management.get_free_memory = lambda *_, **__: 1e12 if together[0]() else 0.0


class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """Of a model whose network is put in afterwards."""

    def __init__(self) -> None:
        self.unet_config: dict[str, Any] = {"disable_unet_model_creation": True}
        self.sampling_settings: dict[str, Any] = {"shift": 3.0}
        self.latent_format = comfy.latent_formats.SD15()
        self.manual_cast_dtype, self.memory_usage_factor = None, 1.0


def model(kind: str = "FLOW", **options: Any) -> tuple[Any, Network]:
    """A patcher and its network."""
    network, cpu = Network(**options), torch.device("cpu")
    base = comfy.model_base.BaseModel(Config(), comfy.model_base.ModelType[kind], device=cpu)
    base.diffusion_model = network
    return comfy.model_patcher.ModelPatcher(base, cpu, cpu), network


def sample(
    patcher: Any, noise: Any, positive: Any, negative: Any, *, steps: int = 20, cfg: float = 4.0,
    sampler: Any = "euler", denoise: float = 1.0, callback: Any = None,
) -> Any:  # fmt: skip
    """One run from ``noise``; entries are pairs of a context and options."""
    grid = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", round(steps / denoise))
    chosen = comfy.samplers.KSAMPLER(sampler) if callable(sampler) else comfy.samplers.sampler_object(sampler)
    given = [[[context, dict(options)] for context, options in entries] for entries in (positive, negative)]
    told = callback or (lambda i: None)
    return comfy.sample.sample_custom(
        patcher, noise, cfg, chosen, grid[-steps - 1 :], *given, torch.zeros_like(noise),
        callback=lambda i, *_: told(i), disable_pbar=True, seed=0,
    )  # fmt: skip
