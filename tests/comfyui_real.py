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


_missing = {top for top in ("torchvision", "torchaudio", "kornia") if importlib.util.find_spec(top) is None}
for _name in UNUSED:
    if _name.split(".")[0] in _missing:
        _module = Absent(_name)
        _module.__spec__, _module.__path__ = importlib.machinery.ModuleSpec(_name, None), []
        sys.modules[_name] = _module

sys.path.insert(0, os.environ["FORECACHE_COMFYUI"])
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.controlnet  # noqa: E402
import comfy.hooks  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402


def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
    """In the place of ComfyUI's, which asks how much of a batch fits; a network's attention asks for both numbers."""
    if torch_free_too:
        return 1e12, 1e12
    return 1e12 if together[0]() else 0.0


comfy.model_management.get_free_memory = free_memory


class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """Of a model whose network is put in afterwards."""

    def __init__(self) -> None:
        self.unet_config: dict[str, Any] = {"disable_unet_model_creation": True}
        self.sampling_settings: dict[str, Any] = {"shift": 3.0}
        self.latent_format = comfy.latent_formats.SD15()
        self.manual_cast_dtype, self.memory_usage_factor = None, 1.0


class Control(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A ControlNet whose range is all that there is of it."""

    asked = 0

    def get_control(self, x: Any, t: Any, *_: Any) -> Any:
        self.asked += 1
        return {} if self.timestep_range[1] <= t[0] <= self.timestep_range[0] else None


def control(start: float, end: float) -> Control:
    """One at work from a share of the run to another."""
    return Control().set_cond_hint(torch.zeros(1), timestep_percent_range=(start, end))  # type: ignore[no-any-return]


def hooks(*keyframes: tuple[float, float]) -> Any:
    """A LoRA that belongs to a condition: its strength by share of the run. It adds to the network's gain."""
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = {"diffusion_model.gain": ("diff", (torch.ones(1),))}, False
    for share, strength in keyframes:
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(strength, share))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group


def model(kind: str = "FLOW", **options: Any) -> tuple[Any, Network]:
    """A patcher and its network."""
    network, cpu = Network(**options), torch.device("cpu")
    base = comfy.model_base.BaseModel(Config(), comfy.model_base.ModelType[kind], device=cpu)
    base.diffusion_model = network
    return comfy.model_patcher.ModelPatcher(base, cpu, cpu), network


def network(name: str, dtype: Any = torch.float32, cast: Any = None) -> Any:
    """A patcher around a small one of ComfyUI's own networks, Hunyuan3D-2 or 2.1, every weight drawn.

    ``dtype``: of the stored weights; ``cast``: what they are computed in, if it is another.
    """
    import comfy.supported_models as known

    kind, sizes = {
        "hunyuan3d2": (known.Hunyuan3Dv2, {"in_channels": 8, "context_in_dim": 16, "hidden_size": 32, "num_heads": 4,
                                           "depth": 1, "depth_single_blocks": 1}),
        "hunyuan3d2_1": (known.Hunyuan3Dv2_1, {"in_channels": 8, "hidden_size": 32, "context_dim": 16, "depth": 3,
                                               "num_heads": 4, "num_moe_layers": 1, "num_experts": 2,
                                               "guidance_cond_proj_dim": 32}),
    }[name]  # fmt: skip
    config = kind({**kind.unet_config, **sizes, "dtype": dtype})
    config.set_inference_dtype(dtype, cast)
    base = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for each in base.diffusion_model.parameters():
        scale = 0.5 / max(each.shape[-1], 1) ** 0.5 if each.ndim > 1 else 0.2
        each.data = (torch.randn(each.shape, generator=generator) * scale + (each.ndim == 1)).to(each.dtype)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def sample(
    patcher: Any, noise: Any, positive: Any, negative: Any, *, steps: int = 20, cfg: float = 4.0,
    sampler: Any = "euler", denoise: float = 1.0, callback: Any = None, sigmas: Any = None, scheduler: str = "simple",
) -> Any:  # fmt: skip
    """One run from ``noise``; entries are pairs of a context and options."""
    sampling, total = patcher.get_model_object("model_sampling"), round(steps / denoise)
    grid = comfy.samplers.calculate_sigmas(sampling, scheduler, total) if sigmas is None else torch.tensor(sigmas)
    chosen = comfy.samplers.KSAMPLER(sampler) if callable(sampler) else comfy.samplers.sampler_object(sampler)
    given = [[[context, dict(options)] for context, options in entries] for entries in (positive, negative)]
    told = callback or (lambda i: None)
    return comfy.sample.sample_custom(
        patcher, noise, cfg, chosen, grid if sigmas else grid[-steps - 1 :], *given, torch.zeros_like(noise),
        callback=lambda i, *_: told(i), disable_pbar=True, seed=0,
    )  # fmt: skip
