"""What the shape pipelines of Hunyuan3D-2 and 2.1 share: one sampling loop, so one handle and one way to attach it.

The patched loop asks a handle once per call for a run, and the run at every step. It forecasts the velocity after
guidance (one history; guidance is on at every step or at none, so forecasting the branches apart with equal weights is
the same). Which steps can be left out exactly follows from the scheduler's own grid: the flow scheduler ends with a
step of dt = 0, the consistency scheduler of the turbo models does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from forecache import Forecaster, Trace, fingerprint

from .settings import Settings


class Handle:
    """What the patched loop asks. ``trace`` is that of the newest run; no snapshot outlives its run."""

    def __init__(self, adapter: Adapter, settings: Settings, pipe: Any) -> None:
        self.adapter, self.settings, self.pipe = adapter, settings, pipe
        self.trace = Trace()

    def begin(self, scheduler: Any, guidance_scale: float | None) -> Forecaster | None:
        """Called by the patched loop before its first step; the run's state belongs to that call.

        ``guidance_scale`` is ``None`` where the network gets guidance as an input or not at all.
        """
        if getattr(scheduler, "order", 1) != 1:
            raise ValueError(f"scheduler: {type(scheduler).__name__} calls the network {scheduler.order} times a step")
        # the consistency scheduler of the turbo models keeps its grid in `sigmas_`
        grid = scheduler.sigmas_ if hasattr(scheduler, "sigmas_") else scheduler.sigmas
        made_for = self.adapter.key(self.pipe, guidance_scale) if self.settings.plan is not None else {}
        run, self.trace = self.settings.begin([float(t) for t in grid], made_for)
        return run


@dataclass(frozen=True)
class Adapter:
    """``enable``, ``disable`` and ``enabled`` of one generator, called ``generator`` in plans.

    ``upstreams`` are the names of its pins in the lock, for the message to a user whose pipeline is not patched.
    """

    generator: str
    upstreams: tuple[str, ...]

    def enable(self, pipe: Any, **settings: Any) -> Handle:
        """Attach the cache to a patched pipeline; a pipeline that has one gets the new settings.

        Args:
            pipe: ``Hunyuan3DDiTFlowMatchingPipeline`` from a patched checkout.
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
        pipe.forecache = Handle(self, Settings(**settings), pipe)
        return pipe.forecache  # type: ignore[no-any-return]

    def disable(self, pipe: Any) -> None:
        """Detach the cache; nothing happens if there is none."""
        vars(pipe).pop("forecache", None)

    @contextmanager
    def enabled(self, pipe: Any, **settings: Any) -> Iterator[Handle]:
        """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
        before = vars(pipe).get("forecache")
        handle = self.enable(pipe, **settings)
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
