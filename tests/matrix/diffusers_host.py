"""Pipelines of diffusers around tiny random transformers."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.callbacks import SD3CFGCutoffCallback
from diffusers.hooks import apply_group_offloading

from forecache_adapters import diffusers as adapter
from forecache_adapters.diffusers.head import BLOCKS
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES, wake
from matrix import hosts
from matrix.hosts import DTYPES, LIVES, SETTINGS, STEPS, Stop
from matrix.pairs import Row

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
CPU = torch.device("cpu")
diffusers.utils.logging.set_verbosity_error()

FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "euler, karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler, stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "lcm": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "unipc, sigma_min": ("UniPCMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}),
    "dpm++": ("DPMSolverMultistepScheduler", FLOW),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
    "dpm single": ("DPMSolverSinglestepScheduler", FLOW),
    "sa": ("SASolverScheduler", FLOW),
    "deis": ("DEISMultistepScheduler", FLOW),
}
LEVELS = ("velocity", "last_block")
BETA = {"beta_end": 0.004}
NOISE_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, BETA)
    for name in (
        "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "DEISMultistepScheduler",
        "UniPCMultistepScheduler", "SASolverScheduler", "DPMSolverSDEScheduler",
    )
}  # fmt: skip


CALLS: list[str] = []  # of the transformers' blocks, whichever object they belong to
_watched: dict[type, Any] = {}  # classes of blocks, and their own forward


def _watch(transformer: Any) -> None:
    """Count the calls of the blocks, at their classes: cache-dit has its own way from one to the next."""
    for name in BLOCKS:
        for block in getattr(transformer, name, None) or ():
            kind = type(block)
            if "forward" in vars(kind) and kind not in _watched:
                _watched[kind] = kind.forward
                kind.forward = _counted(kind.forward)


def release() -> None:
    """The classes as they were: Dynamo would trace the counting, and write a line of code for each call so far."""
    while _watched:
        kind, forward = _watched.popitem()
        kind.forward = forward  # type: ignore[attr-defined]
    CALLS.clear()


@torch.compiler.disable
def _count(block: Any) -> None:
    CALLS.append(type(block).__name__)


def _counted(forward: Any) -> Any:
    @functools.wraps(forward)
    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        _count(self)
        return forward(self, *args, **kwargs)

    return counting


class Adapted(torch.nn.Module):
    """A layer with an adapter, by the names that PEFT's have."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base, self.active_adapters, self.scaling, self.merged_adapters = base, ["one"], {"one": 0.0}, []
        self.disable_adapters = False

    def forward(self, hidden: torch.Tensor) -> Any:
        out = self.base(hidden)
        return out + 0.2 * self.scaling["one"] * out.roll(1, -1)


class Diffusers:
    """Pipelines whose networks predict a velocity, or noise.

    Args:
        name: of the host. pipelines: names in ``PIPELINES``. schedulers: class and settings by name. events: of a user.
    """

    tables = 1

    def __init__(
        self, name: str, pipelines: tuple[str, ...], schedulers: dict[str, Any], events: tuple[str, ...]
    ) -> None:
        self.name, self.pipelines, self.schedulers, self.events = name, pipelines, schedulers, events

    def prepare(self, checkouts: Any) -> None:
        """See :class:`matrix.hosts.Host`: it is imported already."""

    def factors(self) -> dict[str, tuple[str, ...]]:
        """See :class:`matrix.hosts.Host`."""
        return {
            "scheduler": tuple(self.schedulers), "event": self.events, "life": LIVES, "setting": SETTINGS,
            "pipeline": self.pipelines, "dtype": tuple(DTYPES), "level": LEVELS,
        }  # fmt: skip

    def allowed(self, row: Row) -> bool:
        """See :class:`matrix.hosts.Host`: what the pipelines refuse without us is left out."""
        pipeline, scheduler, event = row.get("pipeline"), row.get("scheduler"), row.get("event")
        only = {"batch": "sd3", "skip layers": "sd3", "controlnet": "flux"}
        if pipeline is not None and only.get(event or "", pipeline) != pipeline:
            return False
        if event == "guidance" and pipeline == "qwen-image":  # takes true_cfg_scale, which no callback can reach
            return False
        draws = any(each in str(scheduler).lower() for each in ("sde", "stochastic", "ancestral", "lcm", "ddpm", "sas"))
        if row.get("setting") == "threads" and (draws or scheduler == "sa" or event == "adapter"):
            return False  # noise of the process, and weights that both have
        if row.get("life") in ("deepcopy", "pickled") and row.get("setting") == "offloaded":
            return False
        if row.get("life") == "pickled" and str(scheduler).lower().startswith("sa"):
            return False
        if row.get("setting") == "compiled blocks":  # seconds each
            wanted = {
                "scheduler": ("euler", "unipc"),
                "pipeline": ("flux", "qwen-image"),
                "life": ("fresh",),
                "level": ("velocity",),
            }
            if any(row.get(name, each[0]) not in each for name, each in wanted.items()):
                return False
        asks_for_sigmas = pipeline in ("flux", "qwen-image", "ltx")
        return not asks_for_sigmas or scheduler not in ("heun", "dpm++", "dpm++ sde", "dpm single", "sa", "deis")

    def still(self, row: Row) -> int:
        """See :class:`matrix.hosts.Host`."""
        return 0

    def make(self, row: Row) -> Any:
        """See :class:`matrix.hosts.Host`."""
        tiny = PIPELINES[row["pipeline"]]
        kind, settings = self.schedulers[row["scheduler"]]
        pipe = tiny.build()
        if row["event"] == "controlnet":
            pipe = _with_controlnet(tiny, pipe)
        pipe.scheduler = getattr(diffusers, kind)(**settings)
        _watch(pipe.transformer)
        if row["event"] == "adapter":
            pipe.transformer.proj_out = Adapted(pipe.transformer.proj_out)
        pipe.to(DTYPES[row["dtype"]])
        if row["setting"] == "offloaded":
            apply_group_offloading(pipe.transformer, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
        elif row["setting"] == "compiled blocks":
            pipe.transformer.compile_repeated_blocks(backend="eager")
        return pipe

    def relived(self, pipe: Any, life: str) -> Any:
        """See :class:`matrix.hosts.Host`."""
        if life == "rebuilt":
            made = type(pipe)(**pipe.components)
        elif life == "from_pipe":
            made = type(pipe).from_pipe(pipe, torch_dtype=pipe.transformer.dtype)
        else:
            return hosts.relived(pipe, life)
        made.set_progress_bar_config(disable=True)
        return made

    def twin(self, pipe: Any) -> Any:
        """See :class:`matrix.hosts.Host`."""
        made = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
        made.set_progress_bar_config(disable=True)
        return made

    def enable(self, pipe: Any, row: Row, **settings: Any) -> Any:
        """See :class:`matrix.hosts.Host`."""
        return adapter.enable(pipe, level=row["level"], **settings)

    def disable(self, pipe: Any) -> None:
        """See :class:`matrix.hosts.Host`."""
        adapter.disable(pipe)

    def notes(self, handle: Any) -> list[str]:
        """See :class:`matrix.hosts.Host`."""
        traces = [handle.trace, *(trace for each in handle.traces.values() for trace in each.branches.values())]
        return [note for trace in traces for note in trace.notes]

    def count(self) -> Callable[[], int]:
        """See :class:`matrix.hosts.Host`."""
        return lambda: len(CALLS)

    def sample(self, pipe: Any, row: Row, nested: Callable[[], Any] | None) -> Any:
        """See :class:`matrix.hosts.Host`."""
        tiny = PIPELINES[row["pipeline"]]
        options: dict[str, Any] = {}
        if row["event"] == "skip layers":
            options |= {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.6}
        if row["event"] == "controlnet":
            options |= {"control_image": _hint(pipe), "control_guidance_end": 0.5, "guidance_scale": 3.5}
        act = _acts(row, nested)
        if "callback_on_step_end" in _parameters(type(pipe)):
            options["callback_on_step_end"] = act
            names = [
                name
                for name in ("latents", "prompt_embeds", "pooled_prompt_embeds")
                if name in pipe._callback_tensor_inputs
            ]
            options["callback_on_step_end_tensor_inputs"] = names
        elif "callback" in _parameters(type(pipe)):
            options |= {"callback": lambda i, t, latents: act(pipe, i, t, {"latents": latents}), "callback_steps": 1}
        inputs = {
            name: value.to(DTYPES[row["dtype"]])
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in tiny.inputs((0,)).items()
        }
        return tiny.run(pipe, steps=STEPS, **{**inputs, **options})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _parameters(kind: Any) -> Any:
    return inspect.signature(kind.__call__).parameters


def _acts(row: Row, nested: Callable[[], Any] | None) -> Callable[..., Any]:
    """The user's callback: something happens a third of the way through."""
    event, cutoff = row["event"], SD3CFGCutoffCallback(cutoff_step_ratio=0.4)

    def act(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if i == 1 and nested is not None:
            nested()
        if event == "batch":
            return cutoff(pipe, i, t, given)  # type: ignore[no-any-return]
        if i != STEPS // 3:
            return given
        if event == "guidance":
            pipe._guidance_scale = pipe._guidance_scale * 1.5
        elif event == "prompt":
            given["prompt_embeds"] = given["prompt_embeds"].flip(1) * 1.5
        elif event == "latents":
            given["latents"].mul_(0.9)
        elif event == "interrupt":
            pipe._interrupt = True
        elif event == "exception":
            raise Stop
        elif event == "adapter":
            pipe.transformer.proj_out.scaling["one"] += 1.0
        return given

    return act


def _with_controlnet(tiny: Any, base: Any) -> Any:
    torch.manual_seed(5)
    control = wake(diffusers.FluxControlNetModel(**tiny.network))
    with torch.no_grad():
        for name, each in control.named_parameters():
            if "controlnet_" in name:
                each.mul_(20)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = wake(
        diffusers.AutoencoderKL(
            block_out_channels=(4,),
            latent_channels=4,
            norm_num_groups=2,
            sample_size=8,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0,
            scaling_factor=1.0,
            **blocks,
        )
    )
    kind = diffusers.FluxControlNetPipeline
    given = {"transformer": base.transformer, "scheduler": base.scheduler, "vae": vae, "controlnet": control}
    pipe = kind(**given, **dict.fromkeys(name for name in kind._get_signature_keys(kind)[0] if name not in given))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _hint(pipe: Any) -> torch.Tensor:
    size = pipe.vae_scale_factor * 8
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


HOSTS = (
    Diffusers(
        "diffusers, flow", ("sd3", "flux", "qwen-image", "wan", "ltx", "sana"), FLOW_SCHEDULERS,
        (
            "none", "guidance", "batch", "prompt", "latents", "interrupt", "exception", "skip layers", "controlnet",
            "adapter",
        ),
    ),
    Diffusers("diffusers, noise", ("pixart", "dit"), NOISE_SCHEDULERS, ("none", "latents", "exception")),
)  # fmt: skip
