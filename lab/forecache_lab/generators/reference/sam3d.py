"""SAM 3D Objects' own generators, solver, guidance and network classes around small woken networks.

Real upstream code: ``ShortCut`` and ``FlowMatching`` with their ODE solvers, the guidance wrappers, both flow networks
(the first with a velocity that is a dictionary: shape and four pose leaves), the occupancy decoder. Ours: the packages
of :mod:`.sparse` and the condition tokens. The pipeline's modules need CUDA; :class:`Pipeline` drives the generators as
they do.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import pictures
from .sparse import provide, provide_spconv
from .stubs import require_origin, stub
from .trellis import wake

BACKBONE = "sam3d_objects.model.backbone"
SOLVER = Path("sam3d_objects", "model", "backbone", "generator", "flow_matching", "solver.py")
COND_TOKENS, COND_CHANNELS = 5, 32
SIDE = 8  # of the structure stage's latent grid
POSE = {"6drotation_normalized": 6, "scale": 3, "translation": 3, "translation_scale": 1}
# Defaults of the weights' configuration; guidance is on for t x 1000 in the interval, both ends included
STRUCTURE = {"inference_steps": 25, "rescale_t": 3.0, "strength": 7.0, "interval": (0, 500)}
SLAT = {"inference_steps": 25, "rescale_t": 1.0, "strength": 1.0, "interval": (0, 500)}
GUIDANCE = ("strength", "interval", "strength_pm")


def load(checkout: Path | str) -> SimpleNamespace:
    """Import the generators and networks of a checkout that holds ``sam3d_objects``; classes by role.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the package.
        RuntimeError: another checkout's ``sam3d_objects`` is already imported (a process holds one).
    """
    root = Path(checkout).resolve()
    if not (root / SOLVER).is_file():
        raise FileNotFoundError(f"checkout: {checkout} holds no {SOLVER}")
    # read when the package is imported; its own __init__ imports a module that is not published
    os.environ.update(LIDRA_SKIP_INIT="1", ATTN_BACKEND="sdpa", SPARSE_ATTN_BACKEND="sdpa", SPARSE_BACKEND="spconv")
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")
    provide_spconv()
    stub("omegaconf")
    package, models = root / "sam3d_objects", f"{BACKBONE}.tdfy_dit.models"
    provide("sam3d_objects").__path__ = [str(package)]
    importlib.import_module(f"{BACKBONE}.tdfy_dit")
    provide(models).__path__ = [str(root.joinpath(*models.split(".")))]  # its __init__ imports kaolin, plyfile, ...

    def of(module: str, *names: str) -> dict[str, Any]:
        found = importlib.import_module(f"{BACKBONE}.{module}")
        return {name: getattr(found, name) for name in names}

    solver = importlib.import_module(f"{BACKBONE}.generator.flow_matching.solver")
    require_origin(solver, root / SOLVER, checkout)
    return SimpleNamespace(
        solver=solver,
        **of("generator.flow_matching.model", "FlowMatching", "ConditionalFlowMatching"),
        **of("generator.shortcut.model", "ShortCut"),
        **of(
            "generator.classifier_free_guidance",
            "ClassifierFreeGuidance",
            "PointmapCFG",
            "ClassifierFreeGuidanceWithExternalUnconditionalProbability",
        ),
        **of("tdfy_dit.models.mm_latent", "Latent", "ShapePositionEmbedder", "LearntPositionEmbedder"),
        **of("tdfy_dit.models.mot_sparse_structure_flow", "SparseStructureFlowTdfyWrapper"),
        **of("tdfy_dit.models.sparse_structure_vae", "SparseStructureDecoderTdfyWrapper"),
        **of("tdfy_dit.models.structured_latent_flow", "SLatFlowModelTdfyWrapper"),
    )


def structure_network(upstream: SimpleNamespace, width: int = 64, side: int = SIDE, **options: Any) -> nn.Module:
    """The structure stage's network: latents side^3 x 8 and the pose leaves, which share one stream."""
    leaves = {"shape": upstream.Latent(8, width, upstream.ShapePositionEmbedder(width, side, 1))}
    for name, size in POSE.items():
        leaves[name] = upstream.Latent(size, width, upstream.LearntPositionEmbedder(width, 1))
    small: dict[str, Any] = {
        "in_channels": 8, "out_channels": 8, "model_channels": width, "cond_channels": COND_CHANNELS, "num_blocks": 2,
        "num_heads": 4, "qk_rms_norm": True, "is_shortcut_model": True, "freeze_shared_parameters": True,
        "force_zeros_cond": True,
    }  # fmt: skip
    network: nn.Module = upstream.SparseStructureFlowTdfyWrapper(
        latent_mapping=leaves, latent_share_transformer={"6drotation_normalized": list(POSE)}, **{**small, **options}
    )
    return network


def slat_network(upstream: SimpleNamespace, width: int = 64, **options: Any) -> nn.Module:
    """The latent stage's network: coordinates below 16, 8 channels."""
    small: dict[str, Any] = {
        "resolution": 16, "in_channels": 8, "out_channels": 8, "model_channels": width, "cond_channels": COND_CHANNELS,
        "num_blocks": 2, "num_heads": 4, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [16],
        "pe_mode": "ape", "use_fp16": False, "qk_rms_norm": True, "force_zeros_cond": True,
    }  # fmt: skip
    network: nn.Module = upstream.SLatFlowModelTdfyWrapper(**{**small, **options})
    return network


def generator(
    upstream: SimpleNamespace, network: nn.Module, settings: Mapping[str, Any], cls: Any = None, guidance: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """A generator of the upstream's around ``network``.

    Args:
        upstream: from :func:`load`.
        network: of either stage.
        settings: of guidance (``strength``, ``interval``) and of the generator (``inference_steps``, ``rescale_t``).
        cls: the generator's class; by default ``ShortCut`` for the structure network, ``FlowMatching`` otherwise.
        guidance: the wrapper's class; by default the one of the weights' configuration.
        options: of the generator, such as ``solver_method``.
    """
    structure = isinstance(network, upstream.SparseStructureFlowTdfyWrapper)
    cls = cls or (upstream.ShortCut if structure else upstream.FlowMatching)
    wrapper = guidance or (
        upstream.ClassifierFreeGuidanceWithExternalUnconditionalProbability
        if structure
        else upstream.ClassifierFreeGuidance
    )
    guided = {name: value for name, value in settings.items() if name in GUIDANCE}
    given = {name: value for name, value in settings.items() if name not in GUIDANCE}
    if issubclass(cls, upstream.ShortCut):
        given = {"no_shortcut": True, "batch_mode": True, **given}
    reverse = wrapper(network, p_unconditional=0.0, unconditional_handling="add_flag", **guided)
    return cls(reverse_fn=reverse, **{**given, **options}).eval().requires_grad_(False)


class Pipeline:
    """``models`` by the pipeline's names, and its two sampling stages without the parts that need CUDA.

    A condition is an integer, or a picture ``[1, 32, 32]``; :meth:`condition` makes its tokens.
    """

    def __init__(self, models: dict[str, Any]) -> None:
        self.models = models

    def condition(self, seed: int | torch.Tensor) -> torch.Tensor:
        if isinstance(seed, torch.Tensor):
            return pictures.tokens(seed, COND_TOKENS, COND_CHANNELS)[None]
        return torch.randn(1, COND_TOKENS, COND_CHANNELS, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def sample_sparse_structure(self, seed: int, picture: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The latents of shape and pose: noise of ``seed``, which is the condition too unless there is a picture."""
        stage = self.models["ss_generator"]
        leaves = stage.reverse_fn.backbone.latent_mapping
        shapes = {name: (1, leaf.pos_emb.shape[0], leaf.input_layer.in_features) for name, leaf in leaves.items()}
        torch.manual_seed(seed)
        found: dict[str, torch.Tensor] = stage(
            shapes, torch.device("cpu"), self.condition(seed if picture is None else picture)
        )
        return found

    @torch.no_grad()
    def sample_slat(self, seed: int, coords: torch.Tensor, picture: torch.Tensor | None = None) -> torch.Tensor:
        """Features ``[1, N, 8]`` of the voxels ``coords`` ``[N, 4]``; noise and condition as the other stage's."""
        torch.manual_seed(seed)
        shape = (1, len(coords), 8)
        found: torch.Tensor = self.models["slat_generator"](
            shape, torch.device("cpu"), self.condition(seed if picture is None else picture), coords.numpy()
        )
        return found


def build_small(upstream: SimpleNamespace, seed: int = 0, **options: Any) -> Pipeline:
    """Both generators around small woken networks; ``options`` go to either, such as ``inference_steps``."""
    torch.manual_seed(seed)
    structure, slat = structure_network(upstream), slat_network(upstream)
    return Pipeline(
        {
            "ss_generator": generator(upstream, wake(structure, seed + 1, 0.2), STRUCTURE, **options),
            "slat_generator": generator(upstream, wake(slat, seed + 2, 0.2), SLAT, **options),
        }
    )


def ball(count: int = 120) -> torch.Tensor:
    """Coordinates ``[count, 4]`` of the voxels of a 16^3 grid that are nearest to its middle."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inner = ((grid - 7.4) ** 2).sum(1).argsort(stable=True)[:count].sort().values
    return torch.cat([torch.zeros(count, 1, dtype=torch.int), grid[inner].int()], 1)
