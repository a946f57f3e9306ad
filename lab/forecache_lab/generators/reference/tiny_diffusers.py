"""Pipelines of diffusers around tiny random networks: no text encoder, embeddings are given; latents come out.

Random weights say nothing about pictures. They show the plumbing: which steps call the transformer, with what, and what
happens to what it returns. Zero-initialised layers are drawn again, so that every network predicts something that
depends on all of its inputs, and time is embedded slowly, so that what it predicts moves smoothly from step to step,
as in a trained network: a forecast then follows it and its mirror image does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import TimestepEmbedding
from PIL import Image
from torch import nn
from torch.nn import functional

TEXT = 6  # tokens of a prompt


@dataclass(frozen=True)
class Tiny:
    """One pipeline.

    Attributes:
        pipeline, transformer, scheduler: names in diffusers.
        network, scheduling: arguments of the transformer and the scheduler.
        width, pooled: of an embedded token and of a pooled embedding (0: none).
        mask: dtype of the prompt's mask; ``None``: the pipeline wants none.
        call: further arguments of a call. per_step: calls of the transformer a step.
        negative: whether the pipeline takes negative embeddings.
        parts: components that are not ``None``. finish: changes the pipeline.
    """

    pipeline: str
    transformer: str
    scheduler: str
    network: Mapping[str, Any]
    width: int = 0
    pooled: int = 0
    mask: torch.dtype | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    per_step: int = 1
    negative: bool = True
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[], Mapping[str, Any]] = dict
    finish: Callable[[Any], None] = lambda pipe: None

    def build(self) -> Any:
        """The pipeline, always with the same weights."""
        torch.manual_seed(0)
        network = slow(wake(getattr(diffusers, self.transformer)(**self.network)))
        scheduler = getattr(diffusers, self.scheduler)(**self.scheduling)
        kind = getattr(diffusers, self.pipeline)
        given = {"transformer": network, "scheduler": scheduler, **self.parts()}
        expected = {name for name in kind._get_signature_keys(kind)[0] if name not in given}
        pipe = kind(**given, **dict.fromkeys(expected))
        self.finish(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Embeddings of a batch: each item's depend on its own seed alone."""

        def draw(offset: int, *shape: int) -> torch.Tensor:
            items = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 * s + offset)) for s in seeds]
            return torch.stack(items)

        if not self.width:
            return {"class_labels": [seed % 10 for seed in seeds]}
        given: dict[str, Any] = {}
        for k, prefix in enumerate(("", "negative_") if self.negative else ("",)):
            given[f"{prefix}prompt_embeds"] = draw(k, TEXT, self.width)
            if self.pooled:
                given[f"{prefix}pooled_prompt_embeds"] = draw(10 + k, self.pooled)
            if self.mask is not None:
                name = "prompt_embeds_mask" if self.pipeline.startswith("Qwen") else "prompt_attention_mask"
                given[f"{prefix}{name}"] = torch.ones(len(seeds), TEXT, dtype=self.mask)
        return given

    def run(self, pipe: Any, seeds: Sequence[int] = (0,), steps: int = 10, **options: Any) -> torch.Tensor:
        """Latents (of DiT: pictures) of one call for a batch of seeds."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = {**self.inputs(seeds), "output_type": "latent", **self.call, **options}
        out: torch.Tensor = torch.as_tensor(
            pipe(num_inference_steps=steps, generator=generators, return_dict=False, **given)[0]
        )
        return out


def wake(network: nn.Module) -> nn.Module:
    """Draw zero layers and zero scales again."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return network.eval()


def slow(network: nn.Module) -> nn.Module:
    """Damp what turns by more than a radian over t = 0 ... 1000: a random layer mixes all frequencies of t alike.

    Those of a timestep's embedding are 10000^(-k / n), k < n, so that at 12 steps most of them jump between any two.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, TimestepEmbedding):
                n = module.linear_1.in_features // 2
                turns = 1000 * 10000.0 ** (-torch.arange(n) / n)
                module.linear_1.weight /= turns.clamp(min=1).repeat(2)  # cosines and sines
    return network


def _autoencoder() -> dict[str, Any]:
    kind = diffusers.AutoencoderKL
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return {"vae": wake(kind(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8, **blocks))}


def _edits_small_pictures(pipe: Any) -> None:
    """Pictures of 64x64 instead of a megapixel; averages of 8x8 pixels stand for the autoencoder."""
    sys.modules[type(pipe).__module__].calculate_dimensions = lambda area, ratio: (64, 64, None)  # type: ignore[attr-defined]

    def encode(image: torch.Tensor, generator: Any) -> torch.Tensor:
        return functional.avg_pool3d(image[:, :1], (1, 8, 8)).expand(-1, 4, -1, -1, -1)

    pipe._encode_vae_image, pipe.latent_channels = encode, 4


FLOW = "FlowMatchEulerDiscreteScheduler"
ROPE = {"attention_head_dim": 16, "num_attention_heads": 2}
FRAMES = {"height": 32, "width": 32, "num_frames": 5}

QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 16,
    "attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip

PIPELINES: dict[str, Tiny] = {
    "flux": Tiny(
        "FluxPipeline", "FluxTransformer2DModel", FLOW,
        {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32,
         "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True, **ROPE},
        width=32, pooled=8, call={"true_cfg_scale": 3.0, "height": 64, "width": 64}, per_step=2,
    ),
    "flux2": Tiny(
        "Flux2Pipeline", "Flux2Transformer2DModel", FLOW,
        {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32,
         "axes_dims_rope": (4, 4, 4, 4), **ROPE},
        width=32, negative=False, call={"height": 64, "width": 64},
    ),
    "qwen-image": Tiny(
        "QwenImagePipeline", "QwenImageTransformer2DModel", FLOW, QWEN,
        width=16, mask=torch.long, call={"true_cfg_scale": 3.0, "height": 64, "width": 64}, per_step=2,
    ),
    "sd3": Tiny(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel", FLOW,
        {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2,
         "caption_projection_dim": 32, "joint_attention_dim": 32, "pooled_projection_dim": 8, **ROPE},
        width=32, pooled=8, call={"height": 64, "width": 64},
    ),
    "pixart": Tiny(
        "PixArtSigmaPipeline", "PixArtTransformer2DModel", "DPMSolverMultistepScheduler",
        {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
         "caption_channels": 32, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8},
        width=32, mask=torch.long,
        call={"height": 64, "width": 64, "use_resolution_binning": False, "negative_prompt": None},
        scheduling={"beta_end": 0.004},
    ),
    "dit": Tiny(
        "DiTPipeline", "DiTTransformer2DModel", "DDIMScheduler",
        {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2,
         "in_channels": 4, "out_channels": 8},
        call={"output_type": "np"}, parts=_autoencoder, scheduling={"beta_end": 0.004, "clip_sample": False},
    ),
    "sana": Tiny(
        "SanaPipeline", "SanaTransformer2DModel", "DPMSolverMultistepScheduler",
        {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2,
         "attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4,
         "cross_attention_dim": 8, "caption_channels": 8, "sample_size": 8},
        width=8, mask=torch.long,
        call={"height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None},
        scheduling={"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "wan": Tiny(
        "WanPipeline", "WanTransformer3DModel", "UniPCMultistepScheduler",
        {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
         "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32},
        width=16, call={"guidance_scale": 3.0, **FRAMES}, per_step=2,
        scheduling={"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "ltx": Tiny(
        "LTXPipeline", "LTXVideoTransformer3DModel", FLOW,
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8,
         "cross_attention_dim": 16, "num_layers": 1, "caption_channels": 16},
        width=16, mask=torch.long, call={"height": 64, "width": 64, "num_frames": 9},
        scheduling={"use_dynamic_shifting": True},
    ),
    "hunyuan-video": Tiny(
        "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", FLOW,
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
         "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "text_embed_dim": 16,
         "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)},
        width=16, pooled=8, mask=torch.long, call={"true_cfg_scale": 3.0, **FRAMES}, per_step=2,
    ),
    "qwen-image-edit": Tiny(
        "QwenImageEditPipeline", "QwenImageTransformer2DModel", FLOW, QWEN,
        width=16, mask=torch.long, per_step=2, finish=_edits_small_pictures,
        call={"true_cfg_scale": 5.0, "height": 64, "width": 64, "image": Image.linear_gradient("L").convert("RGB")},
    ),
}  # fmt: skip
