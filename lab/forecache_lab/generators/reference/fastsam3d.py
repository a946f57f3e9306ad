"""Fast-SAM3D's own accelerated generators around the small networks of :mod:`.sam3d`.

Real upstream code: ``ShortCut_faster`` and its Taylor cache, ``FlowMatching_faster`` with ``Euler_end_slat``, its
adaptive schedule and its token carving, the 3D FFT saliency that the carving reads. Ours: as in :mod:`.sam3d`;
stand-ins for plotting packages that it imports and does not need here.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from . import sam3d
from .stubs import stub

# the values of the repository's infer.sh
STRUCTURE = {"ss_cache_stride": 3, "ss_warmup": 2, "ss_order": 1, "ss_momentum_beta": 0.5}
SLAT = {"slat_thresh": 1.5, "slat_warmup": 3, "slat_carving_ratio": 0.1}
GRID = 16  # of the coordinates here; 64 upstream


def load(checkout: Path | str) -> SimpleNamespace:
    """As :func:`forecache_lab.generators.reference.sam3d.load`, and the accelerated generators.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the package.
        RuntimeError: another checkout's ``sam3d_objects`` is already imported (a process holds one).
    """
    stub("seaborn")
    stub("plotly", "plotly.graph_objects")
    stub("sklearn", "sklearn.decomposition")
    stub("matplotlib", "matplotlib.pyplot", "matplotlib.ticker")
    root = str(Path(checkout).resolve())
    if root not in sys.path:
        sys.path.insert(0, root)  # its caches are packages beside sam3d_objects
    upstream = sam3d.load(checkout)
    # CUDA events around every block
    modulated = importlib.import_module(f"{sam3d.BACKBONE}.tdfy_dit.modules.transformer.modulated")
    modulated.CudaTimer = lambda name: contextlib.nullcontext()  # type: ignore[attr-defined]
    upstream.ShortCut_faster = importlib.import_module(upstream.ShortCut.__module__).ShortCut_faster
    upstream.FlowMatching_faster = importlib.import_module(upstream.FlowMatching.__module__).FlowMatching_faster
    upstream.fft3d = importlib.import_module("fft.fft3d")
    return upstream


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    """``FlowMatching_faster`` parses the arguments of the process when it is made."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept


def accelerated(upstream: SimpleNamespace, plain: sam3d.Pipeline) -> sam3d.Pipeline:
    """``plain``, its networks and guidance, in the generators that have a cache of their own, at infer.sh's values."""
    classes = {"ss_generator": upstream.ShortCut_faster, "slat_generator": upstream.FlowMatching_faster}
    made = {}
    for name, old in plain.models.items():
        with _no_arguments():
            new = classes[name](reverse_fn=old.reverse_fn, inference_steps=old.inference_steps, rescale_t=old.rescale_t)
        new.no_shortcut = True  # the pipeline sets it; what is given to ShortCut_faster is lost
        new.ss_params, new.slat_params = dict(STRUCTURE), dict(SLAT)
        made[name] = new.eval().requires_grad_(False)
    found = copy.copy(plain)
    found.models = made
    return found


def scores(upstream: SimpleNamespace, coords: torch.Tensor) -> torch.Tensor:
    """What the carving reads, ``[N, 4]``: the upstream's FFT saliency of a smooth occupancy, and the coordinates."""
    middle = (GRID - 1) / 2
    value = 1 + torch.cos((coords[:, 1:] - middle).float()).sum(1, keepdim=True) / 3
    voxels = torch.cat([coords[:, :1], value, coords[:, 1:]], 1)
    spatial, _ = upstream.fft3d.analyze_voxel_frequency(voxels, filter_radius=2, grid_size=GRID)
    found: torch.Tensor = upstream.fft3d.package_to_tensor(spatial)
    return found
