"""The generators at their production sizes, with random weights: what one network call is, and what is forecast.

The network's own class where its code is at hand, else :class:`.networks.Plain` of the same width, depth and tokens.
The stand-ins do less work than the networks (no mixture of experts, no convolutions, no second stream of weights), so
that a share of a network call measured on one is an upper bound.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from forecache import Guided

from .networks import Plain, Size, random_network
from .problems import Place, Problem, count, grid, noise

GUIDANCE = 5.0
REFERENCE = "forecache_lab.generators.reference"  # loads the networks' own classes from a checkout
GIB = 1 << 30


def why_missing(place: Place, upstream: str, *packages: str) -> str:
    """Why the code of an upstream cannot be imported; "": it can."""
    if upstream not in place.checkouts:
        return f"no checkout of {upstream} was given"
    absent = [name for name in ("forecache_lab", *packages) if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


# --- Hunyuan3D-2.1 ----------------------------------------------------------------------------------------------------
HUNYUAN21: dict[str, dict[str, Any]] = {
    "full": {
        "input_size": 4096, "in_channels": 64, "hidden_size": 2048, "context_dim": 1024, "depth": 21, "num_heads": 16,
        "text_len": 1370, "num_moe_layers": 6, "num_experts": 8, "moe_top_k": 2,
    },
    "tiny": {
        "input_size": 16, "in_channels": 8, "hidden_size": 32, "context_dim": 16, "depth": 3, "num_heads": 2,
        "text_len": 5, "num_moe_layers": 1, "num_experts": 2, "moe_top_k": 1,
    },
}  # fmt: skip
OF_HUNYUAN21 = {"qk_norm": True, "qk_norm_type": "rms", "qkv_bias": False, "use_attention_pooling": False}


def hunyuan21(place: Place) -> Problem:
    """The shape model: 4096 latents of 64 channels, both branches of the guidance in one call of twice the batch, the
    combined velocity forecast, float16, 50 steps.
    """
    config, device, dtype = HUNYUAN21[place.size], place.device, torch.float16
    tokens, channels, words = config["input_size"], config["in_channels"], config["text_len"]
    context = noise((2, words, config["context_dim"]), device, dtype)()
    given: Any = context
    absent = why_missing(place, "hunyuan21", "diffusers", "einops")
    network: nn.Module
    if absent:
        width, depth, heads = config["hidden_size"], config["depth"], config["num_heads"]
        size = Size(tokens, channels, width, depth, heads, words, config["context_dim"])
        network = random_network(lambda: Plain(size), device, dtype)
    else:
        upstream = importlib.import_module(f"{REFERENCE}.hunyuan21").load(place.checkouts["hunyuan21"])
        network = random_network(lambda: upstream.Network(**config, **OF_HUNYUAN21), device, dtype)
        given = {"main": context}

    def call(x: torch.Tensor, t: float) -> torch.Tensor:
        when = torch.full((2,), t, device=device)
        cond, uncond = network(torch.cat([x, x]), when if absent else when.to(dtype), given).chunk(2)
        velocity: torch.Tensor = uncond + GUIDANCE * (cond - uncond)
        return velocity

    return Problem(
        "hunyuan3d-2.1", type(network).__name__, absent, "", count(network), f"[1, {tokens}, {channels}] {dtype}",
        grid(50 if place.size == "full" else 20), noise((1, tokens, channels), device, dtype), call, lambda v: v,
    )  # fmt: skip


# --- TRELLIS ----------------------------------------------------------------------------------------------------------
FULL = {"model_channels": 1024, "cond_channels": 1024, "num_blocks": 24, "num_heads": 16}
TINY = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}
STRUCTURE: dict[str, dict[str, Any]] = {"full": {"resolution": 16, **FULL}, "tiny": {"resolution": 4, **TINY}}
SLAT: dict[str, dict[str, Any]] = {
    "full": {"resolution": 64, "io_block_channels": [128], **FULL},
    "tiny": {"resolution": 8, "io_block_channels": [16], **TINY},
}
SHARED: dict[str, Any] = {"in_channels": 8, "out_channels": 8, "pe_mode": "ape", "qk_rms_norm": True, "use_fp16": True}
WORDS = {"full": 1374, "tiny": 5}  # image tokens of the condition
RADIUS = 0.9  # of a sphere in a cube of half-side 1 whose surface is in about 20,000 voxels of 64^3


def trellis_structure(place: Place) -> Problem:
    """TRELLIS's first stage: a latent of 16^3 voxels and 8 channels, each branch a stream, float16 within, 25 steps."""
    config = STRUCTURE[place.size]
    side = config["resolution"]
    return _trellis(
        place, "trellis-structure", (1, 8, side, side, side), _size(config, side**3, place),
        lambda plain, x, t, context: plain(x.flatten(2).mT, t, context).mT.reshape(x.shape),
        "SparseStructureFlowModel", {**config, "patch_size": 1},
        lambda upstream, flow, x, t, context: flow(x, t, context),
    )  # fmt: skip


def shell(resolution: int) -> torch.Tensor:
    """Voxels ``[N, 4]`` (batch, x, y, z) that a sphere's surface passes through, int32."""
    along = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    x, y, z = torch.meshgrid(along, along, along, indexing="ij")
    inside = ((x**2 + y**2 + z**2).sqrt() - RADIUS).abs() < 2 / resolution * 0.95
    where = inside.nonzero()
    return torch.cat([where.new_zeros(len(where), 1), where], 1).int()


def trellis_slat(place: Place) -> Problem:
    """TRELLIS's second stage: a row of 8 channels for each occupied voxel of 64^3, each branch a stream, 25 steps.

    The rows are one item. Where the upstream's class runs, the lab's convolution and ragged attention stand in for the
    CUDA packages; where a plain transformer does, four rows are one of its tokens, as the upstream pools them.
    """
    config = SLAT[place.size]
    coords = shell(config["resolution"])
    coords = coords[: len(coords) // 4 * 4].to(place.device)
    return _trellis(
        place, "trellis-slat", (len(coords), 8), _size(config, len(coords), place, fold=4),
        lambda plain, x, t, context: plain(x[None], t, context)[0],
        "SLatFlowModel", {**config, "patch_size": 2, "num_io_res_blocks": 2},
        lambda upstream, flow, x, t, context: flow(upstream.SparseTensor(feats=x, coords=coords), t, context).feats,
        "the lab's sparse convolution and ragged attention in place of spconv and flash_attn", items=None,
    )  # fmt: skip


def _size(config: Mapping[str, Any], tokens: int, place: Place, fold: int = 1) -> Size:
    width, depth, heads = config["model_channels"], config["num_blocks"], config["num_heads"]
    return Size(tokens, 8, width, depth, heads, WORDS[place.size], config["cond_channels"], fold)


def _trellis(
    place: Place, name: str, shape: tuple[int, ...], size: Size, plain: Callable[..., torch.Tensor], kind: str,
    given: Mapping[str, Any], own: Callable[..., torch.Tensor], stand_in: str = "", items: int | None = 0,
) -> Problem:  # fmt: skip
    """A stage whose network call is two, one for each branch, in float32 around a network of float16.

    ``plain(network, x, t, context)`` is the velocity of a plain transformer of ``size``, ``own(upstream, network, x,
    1000 t, context)`` that of the upstream's class ``kind``, made with ``given``, of which ``stand_in`` says what is
    not the upstream's own.
    """
    device, half = place.device, torch.float16
    contexts = noise((2, size.words, size.word_width), device, half)()
    absent = why_missing(place, "trellis", "easydict")
    network: nn.Module
    if absent:
        network = random_network(lambda: Plain(size), device, half)
    else:
        upstream = importlib.import_module(f"{REFERENCE}.trellis").load(place.checkouts["trellis"])
        network = random_network(lambda: getattr(upstream.models, kind)(**SHARED, **given), device)

    def forward(x: torch.Tensor, when: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        if absent:
            return plain(network, x, when / 1000, context)
        return own(upstream, network, x, when, context.float())

    def call(x: torch.Tensor, t: float) -> Guided:
        when = torch.full((1,), 1000 * t, device=x.device)
        return Guided(*(forward(x, when, context[None]) for context in contexts))

    def velocity(value: Guided) -> torch.Tensor:
        both: torch.Tensor = value.uncond + GUIDANCE * (value.cond - value.uncond)
        return both

    return Problem(
        name, type(network).__name__, absent or stand_in, "", count(network), f"2 x {list(shape)} {torch.float32}",
        grid(25 if place.size == "full" else 20), noise(shape, device, torch.float32), call, velocity, items=items,
    )  # fmt: skip


# --- FLUX -------------------------------------------------------------------------------------------------------------
FLUX: dict[str, dict[str, Any]] = {
    "full": {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
             "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56)},
    "tiny": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
             "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6)},
}  # fmt: skip
FLUX_TOKENS = {"full": (64, 512), "tiny": (4, 5)}  # side of the square of image tokens, words
DOUBLE, SINGLE = 36, 15  # weights of a block in squares of the width


class Keep(nn.Module):
    """Hands its first argument on, in place of the layers behind the last block."""

    def forward(self, x: torch.Tensor, *others: object) -> torch.Tensor:
        """``x``."""
        return x


def blocks_that_fit(config: Mapping[str, Any], device: torch.device) -> tuple[int, int]:
    """As many of the double and the single blocks as leave 4 GiB of a CUDA device free, in bfloat16."""
    double, single = int(config["num_layers"]), int(config["num_single_layers"])
    if device.type != "cuda":
        return double, single
    width = config["attention_head_dim"] * config["num_attention_heads"]
    needed = 2 * width**2 * (DOUBLE * double + SINGLE * single)
    share = min(1.0, max(torch.cuda.mem_get_info(device)[0] - 4 * GIB, 0) / needed)
    return max(int(double * share), 1), max(int(single * share), 1)


def flux(place: Place) -> Problem:
    """FLUX.1: 4096 image tokens beside 512 words; what the last block puts out, 3072 wide, is forecast, and the last
    layer runs at every step; bfloat16, 28 steps.
    """
    config, device = dict(FLUX[place.size]), place.device
    side, words = FLUX_TOKENS[place.size]
    heads, dtype = config["num_attention_heads"], torch.bfloat16
    tokens, width = side * side, config["attention_head_dim"] * heads
    double, single = blocks_that_fit(config, device)
    left_out = ""
    if (double, single) != (config["num_layers"], config["num_single_layers"]):
        left_out = (
            f"{double} of {config['num_layers']} double and {single} of {config['num_single_layers']} single blocks"
        )
    config.update(num_layers=double, num_single_layers=single)
    context = noise((1, words, config["joint_attention_dim"]), device, dtype)()
    absent = "" if importlib.util.find_spec("diffusers") is not None else "not installed: diffusers"
    if absent:
        size = Size(tokens, 64, width, double + single, heads, words, config["joint_attention_dim"], beside=True)
        plain = random_network(lambda: Plain(size), device, dtype)
        network: nn.Module = plain
        velocity: Callable[[Any], torch.Tensor] = plain.head

        def call(x: torch.Tensor, t: float) -> torch.Tensor:
            return plain.hidden(x, torch.full((1,), t, device=device), context)
    else:
        from diffusers import FluxTransformer2DModel

        network = transformer = random_network(
            lambda: FluxTransformer2DModel(**config, guidance_embeds=True), device, dtype
        )
        last: nn.Module = transformer.proj_out
        transformer.norm_out, transformer.proj_out = Keep(), Keep()
        pooled = noise((1, config["pooled_projection_dim"]), device, dtype)()
        places = torch.zeros(tokens, 3, device=device, dtype=dtype)
        places[:, 1:] = torch.cartesian_prod(*2 * (torch.arange(side, device=device, dtype=dtype),))
        still = torch.zeros(words, 3, device=device, dtype=dtype)
        strength = torch.full((1,), 3.5, device=device, dtype=dtype)

        def call(x: torch.Tensor, t: float) -> torch.Tensor:
            out: torch.Tensor = transformer(
                hidden_states=x, encoder_hidden_states=context, pooled_projections=pooled, guidance=strength,
                timestep=torch.full((1,), t, device=device, dtype=dtype), img_ids=places, txt_ids=still,
                return_dict=False,
            )[0]  # fmt: skip
            return out

        def velocity(value: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = last(functional.layer_norm(value, value.shape[-1:]))
            return out

    return Problem(
        "flux", type(network).__name__, absent, left_out, count(network), f"[1, {tokens}, {width}] {dtype}",
        tuple(1 - t for t in grid(28 if place.size == "full" else 20)), noise((1, tokens, 64), device, dtype), call,
        velocity,
    )  # fmt: skip


CASES: dict[str, Callable[[Place], Problem]] = {
    "hunyuan3d-2.1": hunyuan21,
    "trellis-structure": trellis_structure,
    "trellis-slat": trellis_slat,
    "flux": flux,
}
