"""Hunyuan3D's shape pipeline as wrappers rewrote it: its loop is not patched, its network is answered for.

All of them keep the upstream's form: a scheduler that counts its steps, and one call of ``pipe.model`` a step, with
both branches in one batch. The items of a batch have weights of their own, so the branches stay apart.
"""

from __future__ import annotations

import functools
from typing import Any

from forecache import Forecaster, Trace

from ..settings import Settings


class Handle:
    """Attached to a pipeline; ``trace`` is that of the newest run, whose snapshots do not outlive it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.trace = settings, Trace()
        self.run: Run | None = None


class Run:
    """One call of the pipeline. Args: handle: takes the trace. pipe: its scheduler is read at the first step."""

    def __init__(self, handle: Handle, pipe: Any) -> None:
        self.handle, self.pipe, self.begun = handle, pipe, False
        self.cache: Forecaster | None = None

    def output(self, network: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's output, or a forecast: once a step.

        Raises:
            ValueError: a scheduler, or a loop, that calls the network more than once a step.
        """
        scheduler = self.pipe.scheduler
        if not self.begun:
            if getattr(scheduler, "order", 1) != 1:
                raise ValueError(
                    f"scheduler: {type(scheduler).__name__} calls the network {scheduler.order} times a step"
                )
            grid = scheduler.sigmas_ if hasattr(scheduler, "sigmas_") else scheduler.sigmas
            self.cache, self.handle.trace = self.handle.settings.begin([float(t) for t in grid], {})
            self.begun = True
        if self.cache is None:
            return network(*args, **kwargs)
        step = scheduler.step_index
        return self.cache.step(0 if step is None else step, lambda: network(*args, **kwargs))


class Network:
    """What ``pipe.model`` is during a call of the pipeline: all of the network but its call."""

    def __init__(self, network: Any, run: Run) -> None:
        self.network, self.run = network, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`Run.output`."""
        return self.run.output(self.network, *args, **kwargs)


def enable(pipe: Any, **settings: Any) -> Handle:
    """Attach the cache to a pipeline that nobody else holds: it gets a class of its own, of the same name.

    Its network may be loaded, replaced or moved at any time: it is looked up when it is called.

    Args:
        pipe: ``Hunyuan3DDiTFlowMatchingPipeline`` of a wrapper.
        settings: see :class:`forecache_adapters.settings.Settings`.

    Raises:
        ValueError: a setting out of its range, or one that needs the patch.
    """
    for name in ("plan", "adaptive_guidance"):
        if settings.get(name):
            raise ValueError(f"{name}: the pipeline's own guidance has to be known for it, which takes the patch")
    handle, former = Handle(Settings(**settings)), type(pipe)

    @functools.wraps(former.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        handle.run = Run(handle, self)
        try:
            return former.__call__(self, *args, **kwargs)
        finally:
            run, handle.run = handle.run, None
            if run.cache is not None:
                run.cache.close()

    def network(self: Any) -> Any:
        if "model" not in vars(self):
            raise AttributeError("model")
        there = vars(self)["model"]
        return there if there is None or handle.run is None else Network(there, handle.run)

    def replace(self: Any, value: Any) -> None:
        vars(self)["model"] = value.network if isinstance(value, Network) else value

    body = {"__call__": call, "__module__": former.__module__, "model": property(network, replace)}
    pipe.__class__ = type(former.__name__, (former,), body)
    pipe.forecache = handle
    return handle


def disable(pipe: Any) -> None:
    """Detach; nothing happens if there is none."""
    if isinstance(vars(pipe).get("forecache"), Handle):
        del pipe.forecache
        pipe.__class__ = type(pipe).__bases__[0]
