"""What the shape pipelines of Hunyuan3D-2 and 2.1 share: one sampling loop, so one handle and one way to attach it.

The patched loop asks a handle once per call for a run, and the run at every step. It hands over what the network
returned, both branches in one batch, and goes on with what it gets back. Guidance is on at every step or at none, so a
rule forecasts the velocity after guidance (one history; the branches apart with equal weights would be the same); a
plan may have weights of its own for the difference of the branches. Which steps can be left out exactly follows from
the scheduler's own grid: the flow scheduler ends with a step of dt = 0, the consistency scheduler of the turbo models
does not.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from forecache import Corrector, Guided, Trace, fingerprint, tree

from .. import handle
from ..attach import Worn
from ..branches import match
from ..run import Run
from ..settings import Settings

#: schedulers that read a velocity only at the step it belongs to: there, a step of dt = 0 needs none
ONE_STEP = (EULER := "FlowMatchEulerDiscreteScheduler", "ConsistencyFlowMatchEulerDiscreteScheduler")


def corrector(scheduler: Any, times: Sequence[float], strength: float | None) -> bool | Corrector:
    """What the scheduler admits at this strength of guidance (``None``: without)."""
    if stepping(scheduler) != EULER or not all(map(math.isfinite, times)):
        return False
    return Corrector(tuple(times), strength=strength or 1.0)


class LoopRun(Run):
    """One call of the pipeline, as the patched loop asks for it.

    The loop says the step's number; that it is right is read from the scheduler's own count.

    Args:
        cache: of this run.
        trace: takes the notes.
        guidance_scale: g of ``u + g (c - u)``; ``None``: the network's output is the velocity.
        scheduler: of this run. steps: of its grid.
        network: returns the one in use; a callback may put another in its place.
        given: the cache is the user's own, such as a calibration's.
    """

    def __init__(
        self, cache: Any, trace: Trace, guidance_scale: float | None, scheduler: Any, steps: int,
        network: Callable[[], Any] = lambda: None, given: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(trace, given)
        self.server, self.guidance_scale, self.scheduler, self.steps = cache, guidance_scale, scheduler, steps
        self.apart = getattr(cache, "needs_branches", True)  # it takes ``Guided(c, u)``, and not the velocity
        self.network, self.i, self.reshaped = network, -1, 0

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network."""
        if self.server is not None and (lost := self._lost(i)):
            self.off(lost)
        if self.server is None:
            return True
        self.i = i
        match(self.server, {"network": self.network(), "form of the latents after a callback": self.reshaped})
        return bool(self.server.needs_compute(i))

    def _lost(self, i: int) -> str | None:
        counted = getattr(self.scheduler, "step_index", None)
        if i != self.i + 1 or i >= self.steps:
            return f"step {i} after step {self.i}, of {self.steps}"
        if counted != i and not (i == 0 and counted is None) and hasattr(self.scheduler, "step_index"):
            return f"step {i} of the loop, but step {counted} by the scheduler's own count"
        return None

    def observe(self, i: int, output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Take the network's output at step ``i``, conditional half first; returns what guidance is to be applied to:
        the output itself, unless a plan or the corrector adds to it.
        """
        if self.server is None:
            return output
        value: Any = output
        if self.guidance_scale is not None:
            value = Guided(*output.chunk(2))
            value = value if self.apart else self._combined(value)
        try:
            corrected = self.server.observe(i, value, state)
        except ValueError as reason:  # such as groups or a plan's state that do not fit
            self.off(str(reason))
            return output
        if self.guidance_scale is None:
            used: torch.Tensor = corrected
            return used
        if corrected is value:
            return output
        return torch.cat(corrected if self.apart else (corrected, corrected))

    def forecast(self, i: int, state: torch.Tensor) -> torch.Tensor:
        """The velocity of step ``i``, after guidance."""
        value = self.server.forecast(i, state)
        return self._combined(value) if isinstance(value, Guided) else value

    def _combined(self, branches: Guided) -> torch.Tensor:
        velocity: torch.Tensor = branches.uncond + self.guidance_scale * (branches.cond - branches.uncond)
        return velocity


def stepping(scheduler: Any) -> str:
    """The class whose ``step`` a scheduler has."""
    return next(kind.__name__ for kind in type(scheduler).__mro__ if "step" in vars(kind))


def grid_of(scheduler: Any) -> list[float]:
    """The N + 1 times of a scheduler whose timesteps are set.

    Raises:
        ValueError: a scheduler that calls the network more than once a step, or whose steps cannot be told.
    """
    name, order = type(scheduler).__name__, getattr(scheduler, "order", 1)
    if order != 1:
        raise ValueError(f"scheduler: {name} calls the network {order} times a step")
    # the consistency scheduler of the turbo models keeps its grid in `sigmas_`
    sigmas = getattr(scheduler, "sigmas_", getattr(scheduler, "sigmas", None))
    steps = len(getattr(scheduler, "timesteps", ()))
    if sigmas is None or len(sigmas) != steps + 1:
        raise ValueError(f"scheduler: {name} has no grid of one sigma more than its {steps} timesteps")
    times = [float(t) for t in sigmas]
    one_step = stepping(scheduler) in ONE_STEP
    still = any(a == b for a, b in pairwise(times))
    return times if one_step or not still else [float(i) for i in range(len(times))]


class Handle(handle.Handle):
    """What the patched loop asks; its one stage is ``shape``. No snapshot outlives its run.

    It does not keep the pipeline. A copy of it has the settings and the trace, and serves nothing.
    """

    trace_type = Trace

    def __init__(self, adapter: Adapter, settings: Settings, pipe: Any, cache: Any = None) -> None:
        self.adapter, self.settings, self.cache = adapter, settings, cache
        self.pipe = _gone if pipe is None else weakref.ref(pipe)
        self.traces: dict[str, Trace] = {}
        self._here = threading.local()  # runs by call of the pipeline in this thread, innermost last

    def __reduce__(self) -> Any:
        return type(self), (self.adapter, self.settings, None, self.cache), {"traces": self.traces}

    def call(self, inside: Any, *args: Any, callback: Any = None, **kwargs: Any) -> Any:
        """Encloses the pipeline's call: a callback may change the latents, which the loop does not say."""
        if callback is None:
            return inside(*args, **kwargs)
        runs: list[LoopRun] = []

        def watched(step: int, t: Any, outputs: Any) -> None:
            latents = getattr(outputs, "prev_sample", None)
            before = tree.form(latents)
            callback(step, t, outputs)
            if tree.form(latents) != before:
                for run in runs:
                    run.reshaped += 1

        calls = vars(self._here).setdefault("calls", [])
        calls.append(runs)
        try:
            return inside(*args, callback=watched, **kwargs)
        finally:
            calls.pop()

    def begin(self, scheduler: Any, guidance_scale: float | None) -> LoopRun | None:
        """Called by the patched loop before its first step; the run's state belongs to that call.

        ``guidance_scale`` is ``None`` where the network gets guidance as an input or not at all.
        """
        run = self._begin(scheduler, guidance_scale)
        calls = vars(self._here).get("calls")
        if run is not None and calls:
            calls[-1].append(run)
        return run

    def _begin(self, scheduler: Any, guidance_scale: float | None) -> LoopRun | None:
        trace, pipe, cache = getattr(self.cache, "trace", None) or Trace(), self.pipe(), self.cache
        self.traces["shape"] = trace
        try:
            if pipe is None:
                raise ValueError("the pipeline that this handle was made for is gone")
            times = grid_of(scheduler)
        except ValueError as reason:
            if cache is not None:
                raise
            Run(trace).off(str(reason))
            return None
        if cache is None:
            made_for = {} if self.settings.plan is None else self.adapter.key(pipe, guidance_scale)
            cache, trace = self.settings.begin(times, made_for, corrector(scheduler, times, guidance_scale))
            self.traces["shape"] = trace
            if cache is None:
                return None
        network = lambda: getattr(self.pipe(), "model", None)  # noqa: E731
        return LoopRun(cache, trace, guidance_scale, scheduler, len(times) - 1, network, self.cache is not None)


def _gone() -> None:
    """A weak reference to nothing."""


@dataclass(frozen=True)
class Adapter:
    """One generator, called ``generator`` in plans.

    ``upstreams`` are the names of its pins in the lock, for the message to a user whose pipeline is not patched.
    """

    generator: str
    upstreams: tuple[str, ...]

    def make_handle(self, pipe: Any, *, cache: Any = None, **settings: Any) -> Handle:
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
        made = Handle(self, Settings(**settings), pipe, cache)
        made.pieces = [Worn(pipe, made, {"__call__": made.call}, {"forecache": made})]
        return made

    def key(self, pipe: Any, guidance_scale: float | None) -> dict[str, Any]:
        """What a plan for this pipeline was made for; the grid (steps, shift) is checked beside it."""
        return {
            "generator": self.generator, "stage": "shape", "guidance_scale": guidance_scale,
            "weights": fingerprint(pipe.model), "dtype": str(pipe.dtype),
        }  # fmt: skip
