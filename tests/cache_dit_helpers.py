"""cache-dit's own DBCache around small random transformers: what its tests share."""

from __future__ import annotations

import dataclasses

import cache_dit
import torch
from diffusers import FluxTransformer2DModel

from forecache_lab.generators.reference.tiny_diffusers import PIPELINES, Tiny

STEPS = 28


def transformer() -> FluxTransformer2DModel:
    """Always the same random weights, none of them zero."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip


@torch.no_grad()
def denoise(network, guided=lambda i: False, seed=1, steps=STEPS, of=STEPS, change=None, more=None) -> torch.Tensor:
    """Euler from fixed noise, ``steps`` of a grid of ``of``; where ``guided(i)``, a second call with the other text.

    ``change(i, x, text)`` comes before a step and gives another state and text; ``more(i)`` further arguments.
    """
    draw = torch.Generator().manual_seed(seed)
    x, text = torch.randn(1, 16, 4, generator=draw), torch.randn(1, 8, 16, generator=draw)
    ids = torch.zeros(16, 3)
    ids[:, 1] = torch.arange(16)
    for i in range(steps):
        x, text = change(i, x, text) if change else (x, text)
        t = torch.tensor([1 - i / of])

        def velocity(words, x=x, t=t, i=i):
            return network(
                hidden_states=x, encoder_hidden_states=words, pooled_projections=words[:, 0, :8], timestep=t,
                img_ids=ids, txt_ids=torch.zeros(words.shape[1], 3), return_dict=False, **(more(i) if more else {}),
            )[0]  # fmt: skip

        v = velocity(text)
        if guided(i):
            other = velocity(-text)
            v = other + 2 * (v - other)
        x = x - v / of
    return x


def always(i: int) -> bool:
    return True


def schedule(separate_cfg=False, policy="medium") -> cache_dit.DBCacheConfig:
    mask = cache_dit.steps_mask(total_steps=STEPS, mask_policy=policy)
    return cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=6, num_inference_steps=STEPS,
        steps_computation_mask=mask, steps_computation_policy="static", enable_separate_cfg=separate_cfg,
    )  # fmt: skip


# --- pipelines --------------------------------------------------------------------------------------------------------
N = 10
MASK = [1, 1, 1, 1, 0, 1, 0, 0, 1, 1]


def tiny(name: str) -> Tiny:
    """With blocks enough that some lie between the computed ones."""
    one = PIPELINES[name]
    blocks = {key: 3 for key in ("num_layers", "num_single_layers") if key in one.network}
    return dataclasses.replace(one, network={**one.network, **blocks})


def masked(one: Tiny, **settings) -> cache_dit.DBCacheConfig:
    usual = {
        "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "num_inference_steps": N, "max_warmup_steps": 3,
        "steps_computation_mask": MASK, "steps_computation_policy": "static", "enable_separate_cfg": one.per_step == 2,
    }  # fmt: skip
    return cache_dit.DBCacheConfig(**{**usual, **settings})
