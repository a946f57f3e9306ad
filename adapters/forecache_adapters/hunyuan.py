"""What the shape pipelines of Hunyuan3D-2 and 2.1 share: one sampling loop, so one handle and one way to attach it.

The patched loop asks a handle once per call for a run, and the run at every step. It hands over what the network
returned, both branches in one batch, and goes on with what it gets back. Guidance is on at every step or at none, so a
rule forecasts the velocity after guidance (one history; the branches apart with equal weights would be the same); a
plan may have weights of its own for the difference of the branches. Which steps can be left out exactly follows from
the scheduler's own grid: the flow scheduler ends with a step of dt = 0, the consistency scheduler of the turbo models
does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from forecache import Guided, Trace, fingerprint

from .settings import Settings


class Run:
    """One call of the pipeline.

    Args:
        cache: of this run.
        guidance_scale: g of ``u + g (c - u)``; ``None``: the network's output is the velocity.
        apart: whether ``cache`` takes ``Guided(c, u)``, and not the velocity.
    """

    def __init__(self, cache: Any, guidance_scale: float | None, apart: bool) -> None:
        self.cache, self.guidance_scale, self.apart = cache, guidance_scale, apart

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network."""
        return bool(self.cache.needs_compute(i))

    def observe(self, i: int, output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Take the network's output at step ``i``, conditional half first; returns what guidance is to be applied to:
        the output itself, unless a plan corrects it.
        """
        if self.guidance_scale is None:
            used: torch.Tensor = self.cache.observe(i, output, state)
            return used
        cond, uncond = output.chunk(2)
        value = Guided(cond, uncond) if self.apart else self._combined(Guided(cond, uncond))
        corrected = self.cache.observe(i, value, state)
        if corrected is value:
            return output
        return torch.cat(corrected if self.apart else (corrected, corrected))

    def forecast(self, i: int, state: torch.Tensor) -> torch.Tensor:
        """The velocity of step ``i``, after guidance."""
        value = self.cache.forecast(i, state)
        return self._combined(value) if isinstance(value, Guided) else value

    def _combined(self, branches: Guided) -> torch.Tensor:
        velocity: torch.Tensor = branches.uncond + self.guidance_scale * (branches.cond - branches.uncond)
        return velocity


class Handle:
    """What the patched loop asks. ``trace`` is that of the newest run; no snapshot outlives its run."""

    def __init__(self, adapter: Adapter, settings: Settings, pipe: Any, cache: Any = None) -> None:
        self.adapter, self.settings, self.pipe, self.cache = adapter, settings, pipe, cache
        self.trace = Trace()

    def begin(self, scheduler: Any, guidance_scale: float | None) -> Run | None:
        """Called by the patched loop before its first step; the run's state belongs to that call.

        ``guidance_scale`` is ``None`` where the network gets guidance as an input or not at all.
        """
        if getattr(scheduler, "order", 1) != 1:
            raise ValueError(f"scheduler: {type(scheduler).__name__} calls the network {scheduler.order} times a step")
        # the consistency scheduler of the turbo models keeps its grid in `sigmas_`
        grid = scheduler.sigmas_ if hasattr(scheduler, "sigmas_") else scheduler.sigmas
        if self.cache is not None:
            self.trace = getattr(self.cache, "trace", Trace())
            return Run(self.cache, guidance_scale, getattr(self.cache, "needs_branches", True))
        made_for = self.adapter.key(self.pipe, guidance_scale) if self.settings.plan is not None else {}
        cache, self.trace = self.settings.begin([float(t) for t in grid], made_for)
        return None if cache is None else Run(cache, guidance_scale, cache.needs_branches)


@dataclass(frozen=True)
class Adapter:
    """``enable``, ``disable`` and ``enabled`` of one generator, called ``generator`` in plans.

    ``upstreams`` are the names of its pins in the lock, for the message to a user whose pipeline is not patched.
    """

    generator: str
    upstreams: tuple[str, ...]

    def enable(self, pipe: Any, *, cache: Any = None, **settings: Any) -> Handle:
        """Attach the cache to a patched pipeline; a pipeline that has one gets the new settings.

        Args:
            pipe: ``Hunyuan3DDiTFlowMatchingPipeline`` from a patched checkout.
            cache: for one run, instead of settings: a forecaster, or what :func:`forecache.calibrate` hands to ``run``
                (it gets the branches apart, as ``Guided``).
            settings: see :class:`forecache_adapters.settings.Settings`.

        Raises:
            RuntimeError: the pipeline's class is not patched.
            ValueError, TypeError: a setting out of its range.
        """
        if not hasattr(type(pipe), "forecache"):
            commands = " or ".join(f"`forecache patch apply {name} CHECKOUT`" for name in self.upstreams)
            raise RuntimeError(
                f"pipe: {type(pipe).__module__}.{type(pipe).__name__} is not patched;"
                f" run {commands} on the checkout it comes from"
            )
        if cache is not None and settings:
            raise ValueError(f"cache: give it alone, not with {', '.join(settings)}")
        if settings.get("adaptive_guidance", False) is not False:
            raise ValueError("adaptive_guidance: here one call of the network serves both branches")
        pipe.forecache = Handle(self, Settings(**settings), pipe, cache)
        return pipe.forecache  # type: ignore[no-any-return]

    def disable(self, pipe: Any) -> None:
        """Detach the cache; nothing happens if there is none."""
        vars(pipe).pop("forecache", None)

    @contextmanager
    def enabled(self, pipe: Any, *, cache: Any = None, **settings: Any) -> Iterator[Handle]:
        """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
        before = vars(pipe).get("forecache")
        handle = self.enable(pipe, cache=cache, **settings)
        try:
            yield handle
        finally:
            self.disable(pipe)
            if before is not None:
                pipe.forecache = before

    def key(self, pipe: Any, guidance_scale: float | None) -> dict[str, Any]:
        """What a plan for this pipeline was made for; the grid (steps, shift) is checked beside it."""
        return {
            "generator": self.generator, "stage": "shape", "guidance_scale": guidance_scale,
            "weights": fingerprint(pipe.model), "dtype": str(pipe.dtype),
        }  # fmt: skip
