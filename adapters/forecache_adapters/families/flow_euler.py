"""The accelerator of the TRELLIS family: it encloses a run of the patched ``FlowEulerSampler``, each step, each branch.

The sampler's own code goes on making the velocity from the branches (guidance, its interval and rescale, the mean over
several images), so whatever it does there stays exact on forecast steps.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from forecache import Corrector, fingerprint

from ..branches import Server
from ..handle import Handle, StageTrace
from ..serving import server_of
from ..settings import Settings
from ..sparse import is_sparse, register
from .flow_run import FlowRun, Guidance

__all__ = ["Accelerator", "FlowRun", "Guidance", "plan_key", "stage_of"]


def stage_of(network: str) -> str | None:
    """``shape_slat_flow_model_512`` -> ``shape_slat_512``; ``None``: not a flow network."""
    return network.replace("_flow_model", "") if "_flow_model" in network else None


class Accelerator(Handle):
    """Attached to the samplers of one pipeline; the newest run's trace of each stage is in ``traces``.

    It keeps neither the pipeline nor its networks. A copy of it has the settings and the traces, and serves nothing.

    Args:
        generator: for a plan's key. models: returns the pipeline's networks by name.
        stages: settings by stage, or a cache, or ``None`` (off). samplers: stage by sampler.
        guidance_of: reads the keywords of ``sample``.
    """

    def __init__(
        self,
        generator: str,
        models: Callable[[], Mapping[str, Any]],
        stages: Mapping[str, Any],
        samplers: Mapping[str, Any],
        guidance_of: Callable[[Mapping[str, Any]], Guidance | None],
    ) -> None:
        self.generator, self.models, self.stages = generator, models, stages
        self.samplers, self.guidance_of = weakref.WeakValueDictionary(samplers), guidance_of
        self.traces: dict[str, StageTrace] = {}
        self._here = threading.local()  # runs of this thread, innermost last

    def __reduce__(self) -> Any:
        return type(self), (self.generator, dict, self.stages, {}, self.guidance_of), {"traces": self.traces}

    @property
    def _runs(self) -> list[FlowRun]:
        if not hasattr(self._here, "runs"):
            self._here.runs = []
        runs: list[FlowRun] = self._here.runs
        return runs

    def _at(self, call: Any) -> FlowRun | None:
        """The run that a call of a sampler's method belongs to; ``None``: a loop of somebody's own."""
        run = self._runs[-1] if self._runs else None
        return run if run is not None and call.args[0] is run.sampler else None

    def _stage(self, sampler: Any, model: Any) -> str:
        """The network's stage if the pipeline knows it (a cascade uses one sampler for two), else the sampler's."""
        known = [stage_of(name) for name, each in self.models().items() if each is model]
        known += [name for name, each in self.samplers.items() if each is sampler]
        return next((stage for stage in known if stage is not None), type(sampler).__name__)

    def _settings(self, stage: str) -> Any:
        if stage in self.stages:
            return self.stages[stage]
        return next((self.stages[name] for name in self.samplers if stage.startswith(name)), None)

    # --- what the patched sampler calls -----------------------------------------------------------------------------
    def run(self, call: Any, model: Any, noise: Any, cond: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Encloses ``sample``."""
        if is_sparse(noise):
            register(type(noise))
        sampler = call.args[0]
        stage = self._stage(sampler, model)
        run = FlowRun(sampler, stage, model, cond, kwargs.get("neg_cond"), self.guidance_of(kwargs))
        self.traces[stage] = run.trace
        self._runs.append(run)
        try:
            return call(model, noise, cond, *args, **kwargs)
        finally:
            self._runs.pop()
            run.close()
            if run.i < 0 and not run.trace.notes:
                run.trace.notes.append("off: no step came through `sample_once` before `sample` ended")
            if len(run.images) > 1 and run.i + 1 == len(run.images):
                run.trace.notes.append("nothing was forecast: every step came with a condition tensor of its own")

    def begin(self, pairs: Any) -> None:
        """The grid of the run, as the sampler made it."""
        run = self._runs[-1] if self._runs else None
        if run is None or run.trace.notes:  # without a run: of a `sample` that yields, and has ended already
            return
        if run.times:
            return run.off("the loop begins again within one run")
        settings = self._settings(run.stage)
        reason = "not asked for in this stage" if settings is None else run.grid(pairs)
        if reason is None:
            run.server = self._server(run, settings)
        else:
            run.trace.notes.append(f"off: {reason}")

    def _server(self, run: FlowRun, settings: Any) -> Server | None:
        times, guidance = run.times, run.guidance
        on = [guidance is not None and guidance.reaches([t]) for t in times[:-1]]
        scale = guidance.scale if guidance is not None and any(on) else 1.0
        strengths = [] if scale == 0 else [abs(scale - 1) * each for each in on]
        changes = [i for i in range(1, len(on)) if on[i] != on[i - 1]]
        finite = all(map(math.isfinite, times))
        run.given = not isinstance(settings, Settings)
        return server_of(
            settings, times, run.trace, lambda: plan_key(self.generator, run.stage, run.model, guidance),
            guided=any(on), strengths=strengths,
            corrector=finite and Corrector(tuple(times), changes, strength=scale),
        )  # fmt: skip

    def step(self, call: Any, model: Any, x_t: Any, *args: Any, **kwargs: Any) -> Any:
        """Encloses ``sample_once``."""
        run = self._at(call)
        if run is None:
            return call(model, x_t, *args, **kwargs)
        run.advance(args[0] if args else kwargs.get("t"))
        if run.server is not None:
            run.server.open(run.i, x_t)
        try:
            run.asked = []
            out = call(model, x_t, *args, **kwargs)
            if run.asks_again(run.server):
                run.asked = []
                out = call(model, x_t, *args, **kwargs)
            return out
        finally:
            run.asked = None

    def branch(self, call: Any, model: Any, x_t: Any, t: Any, cond: Any = None, **kwargs: Any) -> Any:
        """Encloses one call of the network."""
        run = self._at(call)
        if run is None:
            return call(model, x_t, t, cond, **kwargs)
        name = run.name(cond, x_t)

        def compute() -> Any:
            run.trace.count(name)
            return call(model, x_t, t, cond, **kwargs)

        if run.server is None or run.asked is None:  # between two steps: a corrector of somebody's own
            return compute()
        arguments = {"model": model, "cond": cond, **kwargs}
        return run.branch_or_off(run.server, name, compute, lambda: run.kind_of(name, x_t, arguments))


def plan_key(generator: str, stage: str, network: Any, guidance: Guidance | None) -> dict[str, Any]:
    """What a plan for a stage was made for; the grid (steps, rescale_t) is compared beside it."""
    scale, interval, rescale = guidance or (None, None, None)
    return {
        "generator": generator, "stage": stage, "guidance_scale": scale, "guidance_interval": interval,
        "guidance_rescale": rescale, "weights": fingerprint(network),
    }  # fmt: skip
