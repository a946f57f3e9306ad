"""Plans for a DiT pipeline with a DDIM sampler.

DDIM without noise is Euler in ``s = (1/a - 1)^(1/2)``, a the scheduler's cumulative product: with ``y = x / a^(1/2)``,
``y' = y + (s' - s) eps``. So a plan is calibrated in s on the guided eps. One set of weights serves both branches and
the variance, which are one output of the transformer; guidance is linear, so the guided forecast is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forecache import Calibration, Plan
from forecache_adapters import diffusers as adapter
from forecache_adapters.diffusers.grid import grid

from .sampling import Model, label_of


class Guided:
    """The sampler as :class:`forecache.Calibration` calls it.

    Raises:
        ValueError: a scheduler that is not DDIM with predicted noise and no clipping.
    """

    def __init__(self, model: Model, steps: int, guidance: float) -> None:
        self.model, self.guidance, scheduler = model, guidance, model.pipe.scheduler
        config = scheduler.config
        if (
            type(scheduler).__name__ != "DDIMScheduler"
            or config.prediction_type != "epsilon"
            or (config.clip_sample or config.thresholding)
        ):
            raise ValueError(
                f"model: plans are made for DDIMScheduler that predicts epsilon and does not clip, got"
                f" {type(scheduler).__name__} {config.prediction_type}, clip_sample={config.clip_sample}"
            )
        scheduler.set_timesteps(steps)
        self.timesteps = [int(t) for t in scheduler.timesteps]
        gap = config.num_train_timesteps // steps
        product = scheduler.alphas_cumprod.double()
        left = [product[t] for t in self.timesteps]
        last = self.timesteps[-1] - gap
        left.append(product[last] if last >= 0 else scheduler.final_alpha_cumprod.double())
        self.alphas = [float(a) for a in left]
        self.times = [math.sqrt(1 / a - 1) for a in self.alphas]

    def run(self, index: int, cache: Any) -> torch.Tensor:
        """Final latents of picture ``index``."""
        y = self.noise(index) / math.sqrt(self.alphas[0])
        for i in range(len(self.timesteps)):
            eps = cache.step(i, lambda y=y, i=i: self.epsilon(y * math.sqrt(self.alphas[i]), i, index))
            y = y + (self.times[i + 1] - self.times[i]) * eps
        return y * math.sqrt(self.alphas[-1])

    def noise(self, index: int) -> torch.Tensor:
        """[1, 4, h, w]."""
        config = self.model.pipe.transformer.config
        draw = torch.Generator().manual_seed(index)
        noise = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=draw)
        return noise.to(self.model.device)

    @torch.no_grad()
    def epsilon(self, x: torch.Tensor, i: int, index: int) -> torch.Tensor:
        """``u + s (c - u)``, or ``c`` where s is 1."""
        transformer, labels = self.model.pipe.transformer, [label_of(index)]
        if self.guidance > 1:
            labels, x = [*labels, 1000], torch.cat([x, x])
        out: torch.Tensor = transformer(
            x.to(transformer.dtype),
            timestep=torch.tensor([self.timesteps[i]] * len(x), device=x.device),
            class_labels=torch.tensor(labels, device=x.device),
        ).sample[:, : x.shape[1]].float()  # fmt: skip
        return out[1:] + self.guidance * (out[:1] - out[1:]) if self.guidance > 1 else out


def check(path: Path, guidance: float, measured: range) -> None:
    """Refuse a plan before the first picture.

    Raises:
        ValueError: a plan for another guidance, or one that was calibrated on noise that is ``measured``.
    """
    plan = Plan.load(path)
    own = plan.made_for.get("guidance_scale")
    if own != guidance:
        raise ValueError(f"plan: {path} is for guidance {own}, got {guidance:g}")
    both = sorted(set(plan.statistics.get("seeds", ())) & set(measured))
    if both:
        raise ValueError(f"plan: {path} was calibrated on noise that is measured here, seeds {both[0]}..{both[-1]}")


def make(
    model: Model,
    steps: int,
    guidance: float,
    budgets: Sequence[int],
    seeds: Sequence[int],
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Plan]:
    """A plan per budget of calls; interrupted, the same call goes on from the recordings in ``folder``.

    Raises:
        ValueError: an argument out of its range, another scheduler, a folder with other recordings.
    """
    sampler = Guided(model, steps, guidance)
    key = adapter.key(model.pipe, guidance_scale=guidance)
    calibration = Calibration(
        sampler.run, times=sampler.times, seeds=seeds, made_for=key | {"steps": steps},
        folder=folder, progress=progress,
    )  # fmt: skip
    found = []
    for calls in budgets:
        plan = calibration.plan(calls)
        model.pipe.scheduler.set_timesteps(steps)
        found.append(replace(plan, times=tuple(grid(model.pipe.scheduler)), made_for=key))
    return found
