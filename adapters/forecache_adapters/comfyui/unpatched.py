"""Hunyuan3D's shape pipeline as wrappers rewrote it: its loop is not patched, its network is answered for.

All of them keep the upstream's form: a scheduler that counts its steps, and one call of ``pipe.model`` a step, with
both branches in one batch. The items of a batch have weights of their own, so the branches stay apart. A run that does
otherwise is passed through from there on, and the trace says why.
"""

from __future__ import annotations

import threading
import weakref
from itertools import pairwise
from typing import Any

from forecache import Trace

from .. import handle
from ..attach import Around, Worn, functions
from ..branches import match
from ..families.hunyuan import EULER, corrector
from ..run import Run
from ..settings import Settings

STRENGTH = 5.0  # of guidance, by default of the pipeline: a call keeps to itself what it was given
MOVING = ("0", "1", "x", "t", "timestep")  # the network's first arguments, by place or by name


class NetworkRun(Run):
    """One call of the pipeline. Args: handle: takes the trace. pipe: its scheduler is read at the first step."""

    def __init__(self, handle: Handle, pipe: Any) -> None:
        super().__init__(Trace())
        self.handle, self.pipe = handle, weakref.ref(pipe)
        self.steps, self.i = -1, -1
        handle.traces = {"shape": self.trace}

    def output(self, network: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's output, or a forecast: once a step."""
        scheduler = getattr(self.pipe(), "scheduler", None)
        self.i += 1
        if self.i == 0:
            self._begin(scheduler)
        since = f"off from step {self.i} on"
        if self.server is not None and (lost := self._lost(scheduler)):
            self.off(lost, since)
        if self.server is None:
            return network(*args, **kwargs)
        given = {**{str(place): each for place, each in enumerate(args)}, **kwargs}
        match(self.server, self.kind("velocity", given, MOVING), {"network": network})
        if not self.server.needs_compute(self.i):
            return self.server.forecast(self.i)
        value = network(*args, **kwargs)
        try:
            return self.server.observe(self.i, value)
        except (TypeError, ValueError) as reason:  # an output of another kind, groups that do not fit
            self.off(str(reason), since)
            return value

    def _begin(self, scheduler: Any) -> None:
        name, order = type(scheduler).__name__, getattr(scheduler, "order", 1)
        grid = getattr(scheduler, "sigmas_", getattr(scheduler, "sigmas", None))  # of the turbo models, of the others
        if order != 1 or grid is None or len(grid) < 2:
            reason = f"calls the network {order} times a step" if order != 1 else "has no steps"
            return self.off(f"scheduler {name} {reason}")
        times, self.steps = [float(t) for t in grid], len(grid) - 1
        if "FlowMatchEuler" not in name and any(a == b for a, b in pairwise(times)):
            times = [float(i) for i in range(len(grid))]  # it may read the velocity of a step of dt = 0 at another
        admitted = corrector(scheduler, times, STRENGTH) if name == EULER else False
        self.server, self.trace = self.handle.settings.begin(times, {}, admitted)
        self.handle.traces = {"shape": self.trace}

    def _lost(self, scheduler: Any) -> str | None:
        if self.i >= self.steps:
            return f"the network is called for the {self.i + 1}th time in {self.steps} steps"
        counted = getattr(scheduler, "step_index", self)
        if counted is self:
            return "the scheduler does not count its steps"
        here = 0 if counted is None else counted
        return None if here == self.i else f"call {self.i + 1} of the network, step {here} by the scheduler's count"


class Network:
    """What ``pipe.model`` is during a call of the pipeline: all of the network but its call."""

    def __init__(self, network: Any, run: NetworkRun) -> None:
        self.network, self.run = network, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`NetworkRun.output`."""
        return self.run.output(self.network, *args, **kwargs)


class Handle(handle.Handle):
    """Attached to a pipeline; its one stage is ``shape``. No snapshot outlives its run."""

    trace_type = Trace

    def __init__(self, settings: Settings, pipe: Any) -> None:
        self.settings, self.pipe = settings, weakref.ref(pipe)
        self.traces = {}
        self._here = threading.local()  # runs of this thread, the innermost last

    @property
    def runs(self) -> list[NetworkRun]:
        """The calls of the pipeline that go on in this thread."""
        runs: list[NetworkRun] = vars(self._here).setdefault("runs", [])
        return runs

    def call(self, inside: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the pipeline's call."""
        run = NetworkRun(self, self.pipe())
        self.runs.append(run)
        try:
            return inside(*args, **kwargs)
        finally:
            self.runs.pop()
            run.close()

    def looked_up(self, inside: Any, name: str) -> Any:
        """Around the look-up of the pipeline's attributes: the network may be loaded, replaced or moved at any time."""
        found = inside(name)
        if name != "model" or found is None or not self.runs:
            return found
        return Network(found.network if isinstance(found, Network) else found, self.runs[-1])

    def assigned(self, inside: Any, name: str, value: Any) -> None:
        """Around the assignment of the pipeline's attributes."""
        inside(name, value.network if isinstance(value, Network) else value)


def make_handle(pipe: Any, **settings: Any) -> Handle:
    """Attach the cache to a pipeline; one that has a cache gets the new settings.

    Args:
        pipe: ``Hunyuan3DDiTFlowMatchingPipeline`` of a wrapper.
        settings: see :class:`forecache_adapters.settings.Settings`.

    Raises:
        ValueError: a setting out of its range, or one that needs the patch.
    """
    for name in ("plan", "adaptive_guidance"):
        if settings.get(name):
            raise ValueError(f"{name}: the pipeline's own guidance has to be known for it, which takes the patch")
    made = Handle(Settings(**settings), pipe)
    looks: dict[str, Around] = {"__getattribute__": made.looked_up, "__setattr__": made.assigned}
    made.pieces = [Worn(pipe, made, {"__call__": made.call, **looks}, {"forecache": made})]
    return made


enable, enabled, disable = functions(make_handle)
