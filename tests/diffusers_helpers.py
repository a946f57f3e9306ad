"""Pipelines of diffusers around tiny networks, made once, and a denoising loop of one's own."""

from __future__ import annotations

import functools

import diffusers
import torch

from forecache_adapters import diffusers as adapter
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES

STEPS, CALLS = 10, 5


@functools.cache
def pipe_of(name):
    torch.set_num_threads(1)
    return PIPELINES[name].build()


@functools.cache
def reference_of(name):
    return PIPELINES[name].run(pipe_of(name))


@functools.cache
def served_of(name):
    with adapter.enabled(pipe_of(name), basis="linear", calls=CALLS):
        return PIPELINES[name].run(pipe_of(name))


def euler(sigmas=None, steps=STEPS):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if sigmas is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(sigmas=sigmas)
    return scheduler


def loop(transformer, scheduler, contexts=True, stop=None, **options):
    """A denoising loop of one's own with guidance; ``stop``: the step at which it is broken off."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 16, generator=generator)
    text, pooled = torch.randn(1, 6, 32, generator=generator), torch.randn(1, 8, generator=generator)
    ids = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], dim=1)

    def velocity(context, prompt, t):
        given = {
            "hidden_states": x, "encoder_hidden_states": prompt, "pooled_projections": pooled, "img_ids": ids,
            "txt_ids": torch.zeros(6, 3), "timestep": t[None] / 1000, "guidance": torch.ones(1), **options,
        }  # fmt: skip
        if not contexts:
            return transformer(**given)[0]
        with transformer.cache_context(context):
            return transformer(**given)[0]

    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            if i == stop:
                break
            cond, uncond = velocity("cond", text, t), velocity("uncond", -text, t)
            x = scheduler.step(uncond + 3 * (cond - uncond), t, x, return_dict=False)[0]
    return x
