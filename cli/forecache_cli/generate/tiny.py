"""``tiny:NAME``: the lab's pipelines around tiny random networks, to try the launcher without weights.

A prompt's embedding is drawn from its hash. Decoders, where there are any, are random too: what comes out are pictures
of nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import diffusers

from forecache_lab.generators.reference.tiny_diffusers import PIPELINES, Tiny, wake

from .jobs import Job


def _pictures() -> Mapping[str, Any]:
    levels = 4  # a latent pixel is 8 x 8 pixels, as the pipelines expect
    kind: Any = diffusers.AutoencoderKL
    decoder = kind(
        block_out_channels=(4,) * levels, latent_channels=4, norm_num_groups=2, sample_size=8, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return {"vae": wake(decoder)}


def _videos() -> Mapping[str, Any]:
    kind: Any = diffusers.AutoencoderKLWan
    decoder = kind(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {"vae": wake(decoder)}


NAMES = tuple(PIPELINES)
DECODERS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "flux": _pictures, "sd3": _pictures, "pixart": _pictures, "wan": _videos,
}  # fmt: skip


def find(name: str) -> Tiny:
    """The pipeline ``name``, with a decoder if there is one for it.

    Raises:
        KeyError: no such pipeline.
    """
    tiny = PIPELINES[name]
    return replace(tiny, parts=DECODERS[name]) if name in DECODERS else tiny


def inputs(tiny: Tiny, job: Job) -> dict[str, Any]:
    """Arguments of the call for one job."""
    if not tiny.width:
        label = _hashed(job.prompt) % 1000 if job.class_label is None else job.class_label
        return {"class_labels": [label]}
    given = tiny.inputs([_hashed(job.prompt)])
    if job.negative_prompt is not None:
        against = tiny.inputs([_hashed(job.negative_prompt)])
        given |= {name: value for name, value in against.items() if name.startswith("negative_")}
    return given


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
