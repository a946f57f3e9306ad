"""Stand-ins for the CUDA packages of the sparse generators: attention over ragged rows, submanifold convolution.

Torch on any device, deterministic at any number of threads; slow, and exact where the packages are approximate. The
spconv wheel for CPUs is no alternative: its scatter-add races with more than one thread.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def provide(name: str, **contents: Any) -> types.ModuleType:
    """Register a module of ours as ``name``, also as an attribute of its parent, unless the package is installed."""
    parent, _, leaf = name.rpartition(".")
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(contents)
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], leaf, module)
    return sys.modules[name]


def installed(name: str) -> bool:
    """Whether the real package is there (and none of our modules in its place)."""
    return name not in sys.modules and importlib.util.find_spec(name) is not None


# --- attention ------------------------------------------------------------------------------------------------------
def ragged_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor
) -> torch.Tensor:
    """Attention of rows ``[T, H, C]`` within each item; ``ends`` are the cumulative lengths ``[B + 1]``."""
    parts = []
    for rows, others in zip(itertools.pairwise(q_ends.tolist()), itertools.pairwise(k_ends.tolist()), strict=True):
        one, other = slice(*rows), slice(*others)
        a, b, c = (x.transpose(0, 1)[None] for x in (q[one], k[other], v[other]))
        parts.append(functional.scaled_dot_product_attention(a, b, c)[0].transpose(0, 1))
    return torch.cat(parts)


def provide_flash_attn() -> None:
    """The three ragged functions of ``flash_attn`` that the upstreams call."""
    if installed("flash_attn"):
        return

    def packed(qkv: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
        q, k, v = qkv.unbind(1)
        return ragged_attention(q, k, v, ends, ends)

    def key_value(
        q: torch.Tensor, kv: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor, *longest: int
    ) -> torch.Tensor:
        k, v = kv.unbind(1)
        return ragged_attention(q, k, v, q_ends, k_ends)

    def apart(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor, *longest: int
    ) -> torch.Tensor:
        return ragged_attention(q, k, v, q_ends, k_ends)

    provide(
        "flash_attn",
        flash_attn_varlen_qkvpacked_func=packed,
        flash_attn_varlen_kvpacked_func=key_value,
        flash_attn_varlen_func=apart,
    )


# --- convolution ----------------------------------------------------------------------------------------------------
def _flat(coords: torch.Tensor, size: list[int]) -> torch.Tensor:
    b, x, y, z = coords.unbind(1)
    return ((b * size[0] + x) * size[1] + y) * size[2] + z


def neighbours(coords: torch.Tensor, shape: list[int], kernel: tuple[int, ...]) -> list[torch.Tensor]:
    """Per offset of the kernel, the row that lies there for every row; ``len(coords)`` where there is none."""
    pad = [k // 2 for k in kernel]
    size = [int(s) + 2 * p for s, p in zip(shape[-3:], pad, strict=True)]
    origin = coords.long() + torch.tensor([0, *pad], device=coords.device)
    known, order = _flat(origin, size).sort()
    found = []
    for offset in itertools.product(*map(range, kernel)):
        shift = torch.tensor([0, *(o - p for o, p in zip(offset, pad, strict=True))], device=coords.device)
        wanted = _flat(origin + shift, size)
        slot = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        found.append(torch.where(known[slot] == wanted, order[slot], len(coords)))
    return found


def convolve(feats: torch.Tensor, rows: list[torch.Tensor], weight: torch.Tensor, bias: Any) -> torch.Tensor:
    """Submanifold convolution: ``out_i = sum_o W_o f_{i + o} + b``; ``weight [out, k, k, k, in]``."""
    padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])
    flat = weight.flatten(1, 3).to(feats.dtype)
    out = torch.stack([padded[row] @ flat[:, k].T for k, row in enumerate(rows)]).sum(0)
    return out if bias is None else out + bias.to(out.dtype)


class SparseConvTensor:
    """The attributes of spconv's tensor that TRELLIS touches."""

    def __init__(
        self, features: torch.Tensor, indices: torch.Tensor, spatial_shape: Any, batch_size: int, grid: Any = None,
        voxel_num: Any = None, indice_dict: dict[Any, Any] | None = None, **unused: Any,
    ) -> None:  # fmt: skip
        self.features, self.indices = features, indices
        self.spatial_shape, self.batch_size, self.grid, self.voxel_num = spatial_shape, batch_size, grid, voxel_num
        self.indice_dict = {} if indice_dict is None else indice_dict
        self.benchmark, self.benchmark_record = False, {}  # type: ignore[var-annotated]
        self.thrust_allocator = self._timer = self.force_algo = self.int8_scale = None

    @property
    def _features(self) -> torch.Tensor:
        return self.features

    @_features.setter
    def _features(self, value: torch.Tensor) -> None:
        self.features = value


class SubMConv3d(nn.Module):
    """spconv's submanifold convolution; the look-up is kept with the coordinates, as spconv keeps its own."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = True,
        indice_key: Any = None, algo: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dilation != 1:
            raise ValueError(f"dilation must be 1 here, got {dilation}")
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, (kernel_size,) * 3
        scale = (in_channels * kernel_size**3) ** -0.5
        self.weight = nn.Parameter(torch.randn(out_channels, *self.kernel, in_channels) * scale)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        key = ("neighbours", self.kernel, x.indices.data_ptr(), len(x.indices))
        if key not in x.indice_dict:
            shape = [int(s) for s in x.spatial_shape]
            x.indice_dict[key] = neighbours(x.indices, shape, self.kernel), x.indices  # keeps the address in use
        feats = convolve(x.features, x.indice_dict[key][0], self.weight, self.bias)
        return SparseConvTensor(feats, x.indices, x.spatial_shape, x.batch_size, indice_dict=x.indice_dict)


def provide_spconv() -> None:
    """``spconv.pytorch`` as TRELLIS uses it, in the place of an installed one too (see the top of this module)."""
    provide("spconv")
    algorithms = types.SimpleNamespace(Native=0, MaskImplicitGemm=1)
    provide("spconv.pytorch", SparseConvTensor=SparseConvTensor, SubMConv3d=SubMConv3d, ConvAlgo=algorithms)


def provide_flex_gemm() -> None:
    """``flex_gemm``'s submanifold convolution as TRELLIS.2's decoders use it."""

    def convolution(
        feats: torch.Tensor, coords: torch.Tensor, shape: Any, weight: torch.Tensor, bias: Any, cache: Any = None,
        dilation: Any = (1, 1, 1),
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        rows = neighbours(coords, list(shape), tuple(weight.shape[1:4])) if cache is None else cache
        return convolve(feats, rows, weight, bias), rows

    def ignore(*args: Any, **kwargs: Any) -> None:
        """Settings that mean nothing here."""

    provide("flex_gemm")
    provide("flex_gemm.ops")
    provide("flex_gemm.ops.grid_sample", grid_sample_3d=None)
    provide(
        "flex_gemm.ops.spconv", sparse_submanifold_conv3d=convolution, set_algorithm=ignore, set_hashmap_ratio=ignore
    )


def voxel_hash() -> tuple[Callable[..., None], Callable[..., torch.Tensor]]:
    """Insert and look up rows by voxel, in the place of the two CUDA functions of ``o_voxel._C``."""
    rows: dict[int, int] = {}

    def insert(keys: Any, values: Any, coords: torch.Tensor, *grid: int) -> None:
        rows.clear()
        rows.update({key: row for row, key in enumerate(_flat(coords.long(), list(grid)).tolist())})

    def look_up(keys: Any, values: Any, coords: torch.Tensor, *grid: int) -> torch.Tensor:
        outside = ((coords[:, 1:] < 0) | (coords[:, 1:] >= torch.tensor(grid))).any(1).tolist()
        found = _flat(coords.long(), list(grid)).tolist()
        return torch.tensor([-1 if out else rows.get(key, -1) for out, key in zip(outside, found, strict=True)]).int()

    return insert, look_up
