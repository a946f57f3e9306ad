"""TRELLIS.2's own pipeline, samplers and network classes around small woken networks.

Real upstream code: ``run`` with every ``pipeline_type``, the samplers with guidance interval and rescale, the flow
networks, both decoder networks and, from the repository, the dual grid's conversion to a mesh; ``run`` of the texturing
pipeline with the encoder of a given mesh. Ours: the packages of :mod:`.sparse`, the two hash functions of
``o_voxel._C`` and its conversion of a mesh to the dual grid, the image features.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .pictures import tokens
from .sparse import provide, provide_flash_attn, provide_flex_gemm, voxel_hash
from .stubs import require_origin
from .trellis import COND_CHANNELS, set_occupancy, wake

PIPELINE_TYPES = ("512", "1024", "1024_cascade", "1536_cascade")
OCCUPIED = 0.001  # share of the 64^3 voxels that the untrained occupancy decoder is set to


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the pipeline, samplers and networks of a checkout that holds ``trellis2``; classes by role.

    ``mesh`` tells whether the checkout has ``o-voxel``, without which the dual grid gets no faces.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the package.
        RuntimeError: another checkout's ``trellis2`` is already imported (a process holds one).
    """
    top = Path(checkout).resolve()
    root = top / "trellis2"
    if not (root / "pipelines" / "samplers" / "flow_euler.py").is_file():
        raise FileNotFoundError(f"checkout: {checkout} holds no trellis2/pipelines/samplers/flow_euler.py")
    os.environ.update(ATTN_BACKEND="sdpa", SPARSE_ATTN_BACKEND="flash_attn", SPARSE_CONV_BACKEND="flex_gemm")
    provide_flash_attn()
    provide_flex_gemm()
    for name in ("cumesh", "cv2", "nvdiffrast", "nvdiffrast.torch"):  # of the texture's rasterisation, which needs CUDA
        provide(name)
    provide("trellis2").__path__ = [str(root)]
    mesh = _provide_o_voxel(top / "o-voxel" / "o_voxel")
    import trellis2.modules.sparse as sparse  # type: ignore[import-not-found]

    provide("trellis2.modules.image_feature_extractor")
    importlib.import_module("trellis2.pipelines")  # before the next line: it becomes an attribute of this one
    provide("trellis2.pipelines.rembg")
    import trellis2.models as models  # type: ignore[import-not-found]
    import trellis2.models.sc_vaes.sparse_unet_vae as unet_vae  # type: ignore[import-not-found]
    import trellis2.pipelines.samplers as samplers  # type: ignore[import-not-found]
    from trellis2.pipelines import trellis2_image_to_3d, trellis2_texturing

    require_origin(samplers, root / "pipelines" / "samplers" / "__init__.py", checkout)
    return SimpleNamespace(
        samplers=samplers,
        models=models,
        SparseTensor=sparse.SparseTensor,
        Pipeline=trellis2_image_to_3d.Trellis2ImageTo3DPipeline,
        TexturingPipeline=trellis2_texturing.Trellis2TexturingPipeline,
        TextureDecoder=unet_vae.SparseUnetVaeDecoder,
        mesh=mesh,
    )


def _provide_o_voxel(folder: Path) -> bool:
    """The repository's own conversion on hash functions of ours; without it the dual vertices and no faces."""
    provide("o_voxel")
    convert = provide("o_voxel.convert", mesh_to_flexible_dual_grid=vertex_grid)
    insert, look_up = voxel_hash()
    provide("o_voxel._C", hashmap_insert_3d_idx_as_val_cuda=insert, hashmap_lookup_3d_cuda=look_up)
    if folder.is_dir():
        convert.__path__ = [str(folder / "convert")]
        from o_voxel.convert.flexible_dual_grid import flexible_dual_grid_to_mesh  # type: ignore[import-not-found]

        convert.flexible_dual_grid_to_mesh = flexible_dual_grid_to_mesh  # type: ignore[attr-defined]
        return True
    faces = torch.zeros(0, 3, dtype=torch.int32)
    convert.flexible_dual_grid_to_mesh = lambda coords, vertices, *a, **k: (vertices, faces)  # type: ignore[attr-defined]
    return False


def vertex_grid(
    vertices: torch.Tensor, faces: torch.Tensor, grid_size: int, aabb: Sequence[Sequence[float]], **unused: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For the compiled conversion of a mesh: the voxels ``[N, 3]`` that hold its vertices, the mean vertex of each in
    the unit cube, and no edge crossed. Faces are not looked at: a surface at these resolutions has a million voxels.
    """
    low, high = torch.tensor(aabb)
    unit = (vertices - low) / (high - low)
    voxels, owner, count = (unit * grid_size).int().unique(dim=0, return_inverse=True, return_counts=True)
    means = torch.zeros(len(voxels), 3).index_add_(0, owner, unit) / count[:, None]
    return voxels, means, torch.zeros(len(voxels), 3, dtype=torch.bool)


def networks(upstream: SimpleNamespace) -> dict[str, nn.Module]:
    """Small woken networks by the pipeline's names."""
    torch.manual_seed(0)
    flow: dict[str, Any] = {
        "model_channels": 48, "cond_channels": COND_CHANNELS, "num_blocks": 2, "num_heads": 2, "pe_mode": "rope",
        "share_mod": True, "initialization": "scaled", "qk_rms_norm": True, "qk_rms_norm_cross": True,
    }  # fmt: skip
    blocks: dict[str, Any] = {
        "latent_channels": 8, "num_blocks": [1, 0, 0, 0, 0], "block_args": [{}] * 5,
        "block_type": ["SparseConvNeXtBlock3d"] * 5,
    }  # fmt: skip
    vae = {**blocks, "model_channels": [64, 32, 16, 16, 8], "up_block_type": ["SparseResBlockC2S3d"] * 4}
    models = upstream.models

    def slat(resolution: int, channels: int) -> nn.Module:
        made: nn.Module = models.SLatFlowModel(resolution=resolution, in_channels=channels, out_channels=8, **flow)
        return made

    made = {
        "sparse_structure_flow_model": models.SparseStructureFlowModel(
            resolution=8, in_channels=4, out_channels=4, **flow
        ),
        "sparse_structure_decoder": models.SparseStructureDecoder(
            out_channels=1, latent_channels=4, num_res_blocks=1, channels=[32, 16, 8, 8], num_res_blocks_middle=1
        ),
        "shape_slat_flow_model_512": slat(32, 8),
        "shape_slat_flow_model_1024": slat(64, 8),
        "tex_slat_flow_model_512": slat(32, 16),
        "tex_slat_flow_model_1024": slat(64, 16),
        "shape_slat_decoder": models.FlexiDualGridVaeDecoder(resolution=1024, **vae),
        "tex_slat_decoder": upstream.TextureDecoder(out_channels=6, pred_subdiv=False, **vae),
        "shape_slat_encoder": models.FlexiDualGridVaeEncoder(
            model_channels=[8, 16, 16, 32, 64], down_block_type=["SparseResBlockS2C3d"] * 4, **blocks
        ),
    }
    for seed, network in enumerate(made.values()):
        wake(network, seed)
    for layer in made["shape_slat_decoder"].modules():  # a few children a voxel and level, not half of them
        if hasattr(layer, "to_subdiv"):
            layer.to_subdiv.bias.data.fill_(-0.4)
    made["shape_slat_decoder"].output_layer.bias.data[3:6] = 1.0  # dual edges that cross, so that there are faces
    return made


class Conditions:
    """Of both pipelines: tokens of a picture ``[1, 32, 32]``, random ones for an integer, zeros for the negative
    branch.
    """

    def preprocess_image(self, picture: Any) -> Any:
        return picture

    def get_cond(self, conditions: Sequence[Any], resolution: int, include_neg_cond: bool = True) -> dict[str, Any]:
        shape = (resolution // 128, COND_CHANNELS)

        def one(condition: Any) -> torch.Tensor:
            if isinstance(condition, torch.Tensor):
                return tokens(condition, *shape)
            return torch.randn(shape, generator=torch.Generator().manual_seed(resolution + int(condition)))

        cond = torch.stack([one(condition) for condition in conditions])
        return {"cond": cond} | ({"neg_cond": torch.zeros_like(cond)} if include_neg_cond else {})


def params(rescale_t: float, strength: float, rescale: float, end: float) -> dict[str, Any]:
    """A stage's parameters in the application."""
    return {
        "steps": 12, "rescale_t": rescale_t, "guidance_strength": strength, "guidance_rescale": rescale,
        "guidance_interval": [0.6, end],
    }  # fmt: skip


TEXTURE = params(3.0, 1.0, 0.0, 0.9)
NORM = {"mean": [0.0] * 8, "std": [1.0] * 8}


def build(upstream: SimpleNamespace) -> Any:
    """The upstream's pipeline around them, with the defaults of its application; a condition is an integer."""

    class Small(Conditions, upstream.Pipeline):  # type: ignore[misc,name-defined]
        def decode_latent(self, shape_slat: Any, tex_slat: Any, resolution: int) -> Any:
            """Without hole filling and the textured mesh class, which need a GPU."""
            meshes, guides = self.decode_shape_slat(shape_slat, resolution)
            return meshes, self.decode_tex_slat(tex_slat, guides)

    nets = networks(upstream)
    sampler = upstream.samplers.FlowEulerGuidanceIntervalSampler

    structure = params(5.0, 7.5, 0.7, 1.0)
    pipe = Small(
        nets, sampler(1e-5), sampler(1e-5), sampler(1e-5), structure, params(3.0, 7.5, 0.5, 1.0), dict(TEXTURE), NORM,
        NORM, low_vram=False,
    )  # fmt: skip
    torch.manual_seed(1)
    latent = sampler(1e-5).sample(
        nets["sparse_structure_flow_model"], torch.randn(1, 4, 8, 8, 8), **pipe.get_cond([1], 512), **structure,
        verbose=False,
    ).samples  # fmt: skip
    set_occupancy(nets["sparse_structure_decoder"], latent, OCCUPIED)
    return pipe


def build_texturing(upstream: SimpleNamespace) -> Any:
    """The upstream's texturing pipeline around them: an image is an integer, the result the colours of its voxels."""

    class Small(Conditions, upstream.TexturingPipeline):  # type: ignore[misc,name-defined]
        def postprocess_mesh(self, mesh: Any, colours: Any, *unused: Any) -> Any:
            """Without the rasteriser, which needs a GPU."""
            return colours

    nets = {name: net for name, net in networks(upstream).items() if name in Small.model_names_to_load}
    sampler = upstream.samplers.FlowEulerGuidanceIntervalSampler
    return Small(nets, sampler(1e-5), dict(TEXTURE), NORM, NORM, low_vram=False)
