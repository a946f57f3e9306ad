"""Hunyuan3D-2.1's network class with the trained reference weights, in an Euler loop of our own.

As the upstream's pipeline does it: noise of the seed's generator, ``model(x, t, cond)`` with t rising from 0,
``u + g (c - u)`` with the conditional half first, ``x += dt v``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from forecache import Guided
from forecache_lab.generators.reference import hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE

from .closed import BUDGETS
from .grids import GRIDS
from .problems import Problem, Seeds, noise
from .sampling import FINE

ROWS = 16  # of the network's batch: the fastest per row on a CPU
OCTREE = 64


class Hunyuan21:
    """Noise, branches and meshes of the reference network."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._tokens: dict[int, torch.Tensor] = {}

    def tokens(self, seeds: Seeds) -> torch.Tensor:
        """Condition tokens ``[B, 16, 64]`` of the seeds' solids."""
        for seed in seeds:
            if seed not in self._tokens:
                picture = solids.picture(solids.solid(seed)[1], PICTURE)[None]
                with torch.no_grad():
                    self._tokens[seed] = self.pipe.conditioner(image=picture)["main"][0]
        return torch.stack([self._tokens[seed] for seed in seeds])

    def noise(self, seeds: Seeds) -> torch.Tensor:
        """Noise ``[B, 64, 64]``."""
        return noise(seeds, hunyuan21.TOKENS, hunyuan21.CHANNELS)

    def branches(self, x: torch.Tensor, t: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor | Guided:
        """Conditional and, if ``guided``, unconditional velocity."""
        cond = self.tokens(seeds)
        if not guided:
            return self._forward(x, t, cond)
        empty = self.pipe.conditioner.unconditional_embedding(len(seeds))["main"]
        return Guided(*self._forward(torch.cat((x, x)), t, torch.cat((cond, empty))).chunk(2))

    def _forward(self, x: torch.Tensor, t: float, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = zip(torch.split(x, ROWS), torch.split(tokens, ROWS), strict=True)
            return torch.cat([self.pipe.model(a, torch.full((len(a),), t), {"main": b}) for a, b in parts])

    def decode(self, latent: torch.Tensor) -> Any:
        """The upstream's volume decoder and surface extraction."""
        with torch.inference_mode():
            return self.pipe._export(latent[None], octree_resolution=OCTREE, enable_pbar=False)[0]


def problems(checkout: Path) -> dict[str, Problem]:
    """The settings on the network: Hunyuan's own grid, without its last step, which has dt = 0, and shifted grids with
    a guidance interval (TRELLIS).

    Raises:
        FileNotFoundError: no such checkout.
    """
    model = Hunyuan21(hunyuan21.build(hunyuan21.load(checkout)))

    def problem(
        key: str, title: str, grid: str, steps: int, budgets: tuple[int, ...], interval: tuple[float, float]
    ) -> Problem:
        return Problem(
            key, "velocity", GRIDS[grid], steps, budgets, model.noise, model.branches, interval,
            strength=hunyuan21.GUIDANCE, title=f"Hunyuan3D-2.1 reference network, {title}",
            parts=math.ceil(FINE / steps),
            decode=model.decode,
        )  # fmt: skip

    whole = "50 steps (the last has dt = 0), guidance 3"
    made = [problem("hunyuan50", whole, "even", 49, BUDGETS, (0.0, 1.0))]
    for steps, shift, budgets in ((25, 3, (5, 7, 9, 12)), (12, 3, (5, 6, 7, 8)), (12, 5, (5, 6, 7, 8))):
        title = f"{steps} steps, shift {shift}, guidance 3 at noise >= 0.5"
        key = f"hunyuan{steps}shift{shift}"
        made.append(problem(key, title, f"shift{shift}", steps, budgets, (0.5, 1.0)))
    return {each.key: each for each in made}
