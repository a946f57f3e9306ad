"""TRELLIS's own pipelines, samplers and network classes around small networks: woken ones, or trained ones.

Real upstream code: ``run``, ``run_multi_image`` and ``run_variant``, the guidance-interval Euler sampler, both flow
networks with their sparse convolutions, the occupancy decoder. Ours: the packages of :mod:`.sparse`, the image or text
features, the decoders of the structured latent. Of the trained pipeline, the occupancy decoder too: see
:mod:`.trellis_latents`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import trellis_latents
from .pictures import PictureConditioner
from .sparse import provide, provide_flash_attn, provide_spconv
from .stubs import require_origin, stub
from .weights import fill

COND_TOKENS, COND_CHANNELS = 5, 32
OCCUPIED = 0.06  # share of the 16^3 voxels that the untrained occupancy decoder is set to
# Defaults of the weights' pipeline.json (25 steps) and of the application (12 steps), field by field the same
SAMPLER: dict[str, Any] = {"steps": 25, "rescale_t": 3.0, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0]}


SIGMA_MIN = 1e-5
GUIDANCE = 1.0  # of 0, 0.5, ... 2 the one with the best voxels of 24 calibration solids at 12 and at 25 steps
PICTURES: dict[str, Any] = {"cond_channels": 64, "pe_mode": "ape", "qk_rms_norm": True}
STRUCTURE: dict[str, Any] = {
    "resolution": 8, "in_channels": 8, "out_channels": 8, "patch_size": 2, "model_channels": 160, "num_blocks": 5,
    "num_heads": 5, **PICTURES,
}  # fmt: skip
# Two blocks a level, as the upstream's: with one, the only skip is behind the pooling, and the noise of a single voxel
# never reaches the output
SLAT: dict[str, Any] = {
    "resolution": 16, "in_channels": 8, "out_channels": 8, "patch_size": 2, "num_io_res_blocks": 2,
    "io_block_channels": [24], "model_channels": 96, "num_blocks": 4, "num_heads": 3, **PICTURES,
}  # fmt: skip
SLAT_MEAN, SLAT_STD = -0.025, 0.0625  # of the distances in occupied voxels
STRUCTURE_WEIGHTS = "trellis_sparse_structure"
SLAT_WEIGHTS = "trellis_slat"


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the pipelines, samplers and networks of a checkout that holds ``trellis``; classes by role.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the package.
        RuntimeError: another checkout's ``trellis`` is already imported (a process holds one).
    """
    root = Path(checkout).resolve() / "trellis"
    if not (root / "pipelines" / "samplers" / "flow_euler.py").is_file():
        raise FileNotFoundError(f"checkout: {checkout} holds no trellis/pipelines/samplers/flow_euler.py")
    # read when the package is imported; sparse attention knows no SDPA, hence the stand-in of its flash_attn
    os.environ.update(
        ATTN_BACKEND="sdpa", SPARSE_ATTN_BACKEND="flash_attn", SPARSE_BACKEND="spconv", SPCONV_ALGO="native"
    )
    provide_flash_attn()
    provide_spconv()
    stub("torchvision", "torchvision.transforms")
    stub("open3d", "open3d.geometry")
    stub("rembg")
    stub("transformers")
    for name in ("trellis", "trellis.pipelines"):  # their __init__ import kaolin, nvdiffrast, ...
        provide(name).__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    import trellis.models as models  # type: ignore[import-not-found]
    import trellis.modules.sparse as sparse  # type: ignore[import-not-found]
    import trellis.pipelines.samplers as samplers  # type: ignore[import-not-found]

    sys.modules["trellis.pipelines"].samplers = samplers  # type: ignore[attr-defined]
    from trellis.pipelines import trellis_image_to_3d, trellis_text_to_3d

    require_origin(samplers, root / "pipelines" / "samplers" / "__init__.py", checkout)
    return SimpleNamespace(
        samplers=samplers,
        models=models,
        SparseTensor=sparse.SparseTensor,
        ImagePipeline=trellis_image_to_3d.TrellisImageTo3DPipeline,
        TextPipeline=trellis_text_to_3d.TrellisTextTo3DPipeline,
    )


def wake(network: nn.Module, seed: int, std: float = 0.05) -> nn.Module:
    """Draw all-zero parameters anew: with its zero output layer an untouched network predicts v = 0, and every cache
    test passes vacuously.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() and not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * std
    return network.eval()


def networks(upstream: SimpleNamespace) -> dict[str, nn.Module]:
    """Small woken networks by the pipeline's names: latents 8^3 x 4, occupancy 16^3."""
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "model_channels": 48, "cond_channels": COND_CHANNELS, "num_blocks": 2, "num_heads": 2, "pe_mode": "ape",
        "qk_rms_norm": True,
    }  # fmt: skip
    models = upstream.models
    return {
        "sparse_structure_flow_model": wake(
            models.SparseStructureFlowModel(resolution=8, in_channels=4, out_channels=4, patch_size=1, **small), 1
        ),
        "slat_flow_model": wake(
            models.SLatFlowModel(
                resolution=16, in_channels=8, out_channels=8, patch_size=2, num_io_res_blocks=2, io_block_channels=[16],
                **small,
            ), 2,
        ),
        "sparse_structure_decoder": wake(
            models.SparseStructureDecoder(
                out_channels=1, latent_channels=4, num_res_blocks=1, channels=[32, 16], num_res_blocks_middle=1
            ), 3,
        ),
    }  # fmt: skip


def set_occupancy(decoder: nn.Module, latent: torch.Tensor, share: float) -> None:
    """Shift an untrained occupancy decoder, which fills half of the voxels, so that it fills ``share`` of them."""
    with torch.no_grad():
        decoder.out_layer[-1].bias.data -= torch.quantile(decoder(latent), 1 - share)  # type: ignore[index,union-attr]


def features(conditions: Sequence[Any]) -> torch.Tensor:
    """A row of random tokens per condition (an integer seed)."""
    return torch.stack(
        [torch.randn(COND_TOKENS, COND_CHANNELS, generator=torch.Generator().manual_seed(int(c))) for c in conditions]
    )


def build(upstream: SimpleNamespace, text: bool = False) -> Any:
    """The upstream's image (or text) pipeline around small woken networks; a condition is an integer."""
    base = upstream.TextPipeline if text else upstream.ImagePipeline

    class Small(base):  # type: ignore[misc,valid-type]
        def _init_image_cond_model(self, name: str) -> None:
            """No DINOv2."""

        def _init_text_cond_model(self, name: str) -> None:
            """No CLIP: as there, one tensor stands for the empty prompt in every run."""
            self.text_cond_model = {"null_cond": torch.zeros(1, COND_TOKENS, COND_CHANNELS)}

        def encode_image(self, conditions: Sequence[Any]) -> torch.Tensor:
            return features(conditions)

        encode_text = encode_image

        def decode_slat(self, latent: Any, formats: Sequence[str] = ()) -> dict[str, Any]:
            return {"slat": latent}

    pipe = assemble(upstream, Small, networks(upstream), SAMPLER)
    torch.manual_seed(1)
    given = {**pipe.get_cond([1]), **SAMPLER, "steps": 12, "verbose": False}
    network, decoder = (pipe.models[f"sparse_structure_{name}"] for name in ("flow_model", "decoder"))
    set_occupancy(
        decoder, pipe.sparse_structure_sampler.sample(network, torch.randn(1, 4, 8, 8, 8), **given).samples, OCCUPIED
    )
    return pipe


def build_reference(upstream: SimpleNamespace, guidance: float = GUIDANCE) -> Any:
    """The upstream's image pipeline around the trained networks; an image is a picture ``[1, 32, 32]`` of a solid."""
    modules = {
        "sparse_structure_flow_model": upstream.models.SparseStructureFlowModel(**STRUCTURE),
        "slat_flow_model": upstream.models.SLatFlowModel(**SLAT),
        "sparse_structure_decoder": trellis_latents.StructureDecoder(),
        "image_cond_model": PictureConditioner(),
    }
    fill(
        STRUCTURE_WEIGHTS,
        {"network": modules["sparse_structure_flow_model"], "conditioner": modules["image_cond_model"]},
    )
    fill(SLAT_WEIGHTS, {"network": modules["slat_flow_model"]})

    class Reference(upstream.ImagePipeline):  # type: ignore[misc,name-defined]
        def _init_image_cond_model(self, name: str) -> None:
            """No DINOv2: the conditioner is among the models."""

        def preprocess_image(self, picture: torch.Tensor) -> torch.Tensor:
            return picture

        @torch.no_grad()
        def encode_image(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
            tokens: torch.Tensor = self.models["image_cond_model"](torch.stack(list(pictures)))["main"]
            return tokens

        def decode_slat(self, slat: Any, formats: Sequence[str] = ()) -> dict[str, Any]:
            grids = trellis_latents.to_grid(slat.feats, slat.coords, slat.shape[0])
            return {"slat": slat, "mesh": [trellis_latents.to_mesh(grid) for grid in grids]}

    norm = {"mean": [SLAT_MEAN] * 8, "std": [SLAT_STD] * 8}
    return assemble(upstream, Reference, modules, {**SAMPLER, "cfg_strength": guidance}, norm)


def assemble(
    upstream: SimpleNamespace, pipeline: type, modules: dict[str, nn.Module], settings: dict[str, Any],
    norm: dict[str, list[float]] | None = None,
) -> Any:  # fmt: skip
    """A pipeline with the upstream's sampler, at the same ``settings``, in both stages."""
    sampler = upstream.samplers.FlowEulerGuidanceIntervalSampler
    norm = norm or {"mean": [0.0] * 8, "std": [1.0] * 8}
    pipe = pipeline(modules, sampler(SIGMA_MIN), sampler(SIGMA_MIN), norm, None)
    pipe.sparse_structure_sampler_params = dict(settings)
    pipe.slat_sampler_params = dict(settings)
    return pipe
