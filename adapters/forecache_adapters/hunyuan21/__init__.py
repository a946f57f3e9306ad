"""Hunyuan3D-2.1, shape generation. Needs the patch: ``forecache patch apply hunyuan21 CHECKOUT``.

::

    from forecache_adapters import hunyuan21

    handle = hunyuan21.enable(pipe, basis="dmd", interval=5, warmup=4)
    mesh = pipe(image="chair.png")[0]
    print(handle.trace.computed)
    hunyuan21.disable(pipe)

The patch forecasts the guided velocity ``u + g (c - u)`` (one history; guidance is on at every step here, so
forecasting the branches apart with equal weights is the same). The pipeline's last step has
dt = 0 and never calls the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forecache import Forecaster, Trace, fingerprint

from ..settings import Settings

__all__ = ["Handle", "disable", "enable", "enabled", "key"]


class Handle:
    """What the patched loop asks. ``trace`` is that of the newest run; no snapshot outlives its run."""

    def __init__(self, settings: Settings, pipe: Any) -> None:
        self.settings, self.pipe = settings, pipe
        self.trace = Trace()

    def begin(self, scheduler: Any, guidance_scale: float | None) -> Forecaster | None:
        """Called by the patched loop before its first step; the run's state belongs to that call.

        ``guidance_scale`` is ``None`` where the network gets guidance as an input or not at all.
        """
        if getattr(scheduler, "order", 1) != 1:
            raise ValueError(f"scheduler: {type(scheduler).__name__} calls the network {scheduler.order} times a step")
        # the consistency scheduler of the turbo models keeps its grid in `sigmas_`
        grid = scheduler.sigmas_ if hasattr(scheduler, "sigmas_") else scheduler.sigmas
        made_for = key(self.pipe, guidance_scale) if self.settings.plan is not None else {}
        run, self.trace = self.settings.begin([float(t) for t in grid], made_for)
        return run


def key(pipe: Any, guidance_scale: float | None) -> dict[str, Any]:
    """What a plan for this pipeline was made for; the grid (steps, shift) is checked beside it."""
    return {
        "generator": "hunyuan21", "stage": "shape", "guidance_scale": guidance_scale,
        "weights": fingerprint(pipe.model), "dtype": str(pipe.dtype),
    }  # fmt: skip


def enable(pipe: Any, **settings: Any) -> Handle:
    """Attach the cache to a patched pipeline; a pipeline that has one gets the new settings.

    Args:
        pipe: ``Hunyuan3DDiTFlowMatchingPipeline`` from a patched checkout.
        settings: see :class:`forecache_adapters.settings.Settings`.

    Raises:
        RuntimeError: the pipeline's class is not patched. ValueError, TypeError: a setting out of its range.
    """
    if not hasattr(type(pipe), "forecache"):
        raise RuntimeError(
            f"pipe: {type(pipe).__module__}.{type(pipe).__name__} is not patched;"
            " run `forecache patch apply hunyuan21 CHECKOUT` on the checkout it comes from"
        )
    pipe.forecache = Handle(Settings(**settings), pipe)
    return pipe.forecache  # type: ignore[no-any-return]


def disable(pipe: Any) -> None:
    """Detach the cache; nothing happens if there is none."""
    vars(pipe).pop("forecache", None)


@contextmanager
def enabled(pipe: Any, **settings: Any) -> Iterator[Handle]:
    """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
    before = vars(pipe).get("forecache")
    handle = enable(pipe, **settings)
    try:
        yield handle
    finally:
        disable(pipe)
        if before is not None:
            pipe.forecache = before
