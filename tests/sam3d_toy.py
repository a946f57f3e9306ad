"""A toy network around which the upstream's own generators, solvers and guidance run; any velocity can be had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from forecache_lab.generators.reference import sam3d

CPU = torch.device("cpu")
SHAPES = {
    "shape": (1, 6, 2), "pose": {"scale": (1, 1, 1), "rotation": (1, 1, 6)}, "time": (), "row": (3,), "half": (1, 4),
}  # fmt: skip


class Toy(nn.Module):
    """Smooth in x and t, other without the condition; records when it is called. ``shapes``: of the velocity."""

    def __init__(self, dtypes: dict[str, torch.dtype] | None = None) -> None:
        super().__init__()
        self.dtypes, self.seen = dtypes or {}, []
        self.condition_embedder = self.Embedder()

    class Embedder:
        force_drop_modalities = None

    def leaf(self, name: str, x: torch.Tensor, t: torch.Tensor, shift: float) -> torch.Tensor:
        v = torch.tanh(x.float()) * (1 + shift) + torch.cos(3 * t + x.float()) + shift * torch.sin(2 * t + 0.3)
        return v.to(self.dtypes.get(name, x.dtype))

    def forward(self, x, t, *args, cfg=False, d=None, **kwargs):
        t = torch.as_tensor(t).float().reshape(()) / 1000
        dropped = self.condition_embedder.force_drop_modalities
        self.seen.append((round(float(t), 4), "uncond" if cfg else "no_pointmap" if dropped else "cond"))
        shift = 0.0 if cfg else 0.2 if dropped else 0.5
        return torch.utils._pytree.tree_map_with_path(
            lambda path, leaf: self.leaf(str(path[-1].key) if path else "v", leaf, t, shift), x
        )


def made(upstream: SimpleNamespace, network=None, cls=None, guidance=None, **options: Any) -> Any:
    """A generator of the upstream's around the toy network."""
    settings = {"inference_steps": 25, "rescale_t": 3.0, "strength": 7.0, "interval": (0, 500), **options}
    cls = cls or upstream.ShortCut
    return sam3d.generator(upstream, network or Toy(), settings, cls, guidance or upstream.ClassifierFreeGuidance)


@torch.no_grad()
def run(generator, seed: int = 0, shapes=None):
    torch.manual_seed(seed)
    return generator(shapes or SHAPES, CPU, torch.zeros(1))


def flat(tree) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(tree)


def same(a, b) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(flat(a), flat(b), strict=True))


def count(network: Toy, name: str) -> int:
    return sum(branch == name for _, branch in network.seen)
