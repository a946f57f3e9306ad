"""Diffusers (0.40 and newer): pipelines with a transformer, or a transformer in a loop of your own. No patch.

::

    from forecache_adapters import diffusers as forecache_diffusers

    handle = forecache_diffusers.enable(pipe, basis="auto", calls=14)
    image = pipe("a chair", num_inference_steps=28).images[0]
    print(handle.trace.calls)
    forecache_diffusers.disable(pipe)

The transformer's whole output, the velocity or noise that it predicts, is forecast: one small stream a branch. On a
forecast step the transformer does not run; guidance, scheduler, callbacks and progress bar do, as ever. With
``level="last_block"`` the hidden states behind its last block are forecast instead: embeddings and head run at every
step, so that the head's modulation by the time is exact, and a snapshot is larger (``tokens x width``).

Branches: a cache context (``cond``, ``uncond``) has a history of its own; where a pipeline enters none, calls at one
step are told apart by their order. A batch that holds both branches is one stream, whose items are independent anyway.

Grid: that of the pipeline's scheduler, read when its call makes its first step. Time is sigma for flow-matching models,
the timestep otherwise. A ControlNet runs at forecast steps too; its residuals are not needed there.

Offloading fetches nothing at a forecast step, in whichever order it and the cache were set up. ``torch.compile``:
``compile_repeated_blocks()``, or the transformer as a whole in either way; the cache stays outside of every graph.

A run that works without the cache works with it: where calls change within a run (guidance, batch, prompt, ControlNet,
adapters) a new history begins, and where the steps cannot be told apart the cache goes off, with a note in the trace. A
copy of what has a cache has none: ``copy``, ``deepcopy``, ``pickle``, ``from_pipe``.
"""

from __future__ import annotations

from typing import Any

import torch

from ..attach import functions
from ..handle import Piece
from ..settings import Settings
from .attach import Handle, OnPipeline, OnTransformer, attached, guidance, plan_key
from .counted import Counted
from .head import Head
from .network import check, transformers
from .steps import Scheduled

__all__ = ["Handle", "disable", "enable", "enabled", "key"]

LEVELS = ("velocity", "last_block")


def make_handle(
    pipe_or_transformer: Any,
    *,
    scheduler: Any = None,
    steps: int | None = None,
    cache: Any = None,
    level: str = "velocity",
    **settings: Any,
) -> Handle:
    """Attach the cache; what has one gets the new settings.

    Args:
        pipe_or_transformer: ``DiffusionPipeline`` with a transformer, or a transformer.
        scheduler: for a transformer: the one of the loop that calls it; ``set_timesteps`` begins a run.
        steps: for a transformer, instead: how many steps its loop has. Then another timestep is another step, and the
            step's number is the time, since later timesteps are not known. Requests that take turns, in threads too,
            are told apart by their latents. A run's memory is freed where one begins after another has come to its
            end, or with ``handle.reset()``.
        cache: for one run, instead of settings: a forecaster, or what :func:`forecache.calibrate` hands to ``run``.
            It serves one branch.
        level: what is forecast: ``velocity``, the whole output, or ``last_block``, the hidden states before
            ``norm_out``, from settings without a plan, which is fitted to velocities.
        settings: see :class:`forecache_adapters.settings.Settings`. A plan serves each branch alone.

    Raises:
        TypeError: no transformer; a UNet; another cache; ``last_block`` for a transformer that is compiled as a whole,
            or has no ``norm_out`` behind blocks.
        ValueError: a setting out of its range.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be among {', '.join(LEVELS)}, got {level!r}")
    if level != "velocity" and (cache is not None or settings.get("plan") is not None):
        raise ValueError(f"level: cache and plan are for velocities, not for {level!r}")
    if cache is not None and settings:
        raise ValueError(f"cache: give it alone, not with {', '.join(settings)}")
    if settings.get("adaptive_guidance", False) is not False:
        raise ValueError("adaptive_guidance: the pipeline's own code makes its calls")
    chosen = Settings(**settings) if cache is None else cache
    return _handle(pipe_or_transformer, chosen, level, scheduler, steps)


def _handle(target: Any, chosen: Any, level: str, scheduler: Any, steps: int | None) -> Handle:
    if not isinstance(target, torch.nn.Module):
        if scheduler is not None or steps is not None:
            raise ValueError("scheduler, steps: they belong to a transformer; a pipeline has a scheduler")
        for each in transformers(target).values():
            if level == "last_block":
                Head(each)  # refuses now what it would at the first call
        return OnPipeline(target, chosen, level)
    check(target)
    if level == "last_block":
        Head(target)
    if (scheduler is None) == (steps is None):
        raise ValueError("scheduler, steps: a transformer needs one of them")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    return OnTransformer(
        target, chosen, level, Scheduled(lambda: scheduler, shared=True) if steps is None else Counted(steps)
    )


def _on(target: Any) -> list[Piece]:
    handle = attached(target)
    return [] if handle is None else list(handle.pieces)


enable, enabled, disable = functions(make_handle, _on)


def key(pipe: Any, *, transformer: str = "transformer", **strengths: float) -> dict[str, Any]:
    """What a plan for a pipeline's transformer is made for (``made_for``).

    ``strengths``: of guidance, as the pipeline's call names them (``guidance_scale``, ``true_cfg_scale``,
    ``guidance_scale_2``); what is left out is the call's default.

    Raises:
        ValueError: a transformer that the pipeline does not have, a strength that its call does not take.
    """
    found, known = transformers(pipe), guidance(pipe, strengths)
    if transformer not in found:
        raise ValueError(f"transformer must be among {', '.join(found)}, got {transformer!r}")
    if unknown := sorted(set(strengths) - set(known)):
        raise ValueError(f"strengths must be among {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return plan_key(transformer, found[transformer], known)
