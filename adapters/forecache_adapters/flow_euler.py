"""The accelerator of the TRELLIS family: it encloses a run of the patched ``FlowEulerSampler``, each step, each branch.

The sampler's own code goes on making the velocity from the branches (guidance, its interval and rescale, the mean over
several images), so whatever it does there stays exact on forecast steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from forecache import fingerprint

from .branches import Adaptive, Apart, Joint, Server, StageTrace, same_tensor
from .settings import Settings
from .sparse import is_sparse, register


class Guidance(NamedTuple):
    """Classifier-free guidance of one run: ``g`` of ``u + g (c - u)``, where it is on, and its rescale."""

    scale: float
    interval: tuple[float, float]
    rescale: float = 0.0

    def reaches(self, times: Sequence[float]) -> bool:
        """Whether it is on at any of ``times``: both ends included, compared as the samplers do it."""
        return any(self.interval[0] <= t <= self.interval[1] for t in times)


class Run:
    """One call of ``sample``: its grid, its step, and what serves its branches. Freed when the call ends."""

    def __init__(self, stage: str, model: Any, cond: Any, negative: Any, guidance: Guidance | None) -> None:
        self.stage, self.model, self.cond, self.negative, self.guidance = stage, model, cond, negative, guidance
        self.trace = StageTrace()
        self.server: Server | None = None
        self.i = -1
        self.images: list[Any] = []

    def name(self, cond: Any) -> str:
        """The branch that a condition stands for."""
        if self.negative is not None and same_tensor(cond, self.negative):
            return "uncond"
        if same_tensor(cond, self.cond):
            return "cond"
        for k, known in enumerate(self.images):
            if same_tensor(cond, known):
                return f"cond[{k}]"
        self.images.append(cond)  # kept, so that its address is not given to another
        return f"cond[{len(self.images) - 1}]"


def stage_of(network: str) -> str | None:
    """``shape_slat_flow_model_512`` -> ``shape_slat_512``; ``None``: not a flow network."""
    return network.replace("_flow_model", "") if "_flow_model" in network else None


class Accelerator:
    """Attached to the samplers of one pipeline; the newest run's trace of each stage is in ``traces``.

    Args:
        generator: for a plan's key. models: the pipeline's networks by name.
        stages: settings by stage, or a cache, or ``None`` (off). samplers: stage by sampler.
        guidance_of: reads the keywords of ``sample``.
    """

    def __init__(
        self,
        generator: str,
        models: Mapping[str, Any],
        stages: Mapping[str, Any],
        samplers: Mapping[str, Any],
        guidance_of: Callable[[Mapping[str, Any]], Guidance | None],
    ) -> None:
        self.generator, self.models, self.stages, self.samplers = generator, models, stages, samplers
        self.guidance_of = guidance_of
        self.traces: dict[str, StageTrace] = {}
        self._here = threading.local()  # runs of this thread, innermost last

    @property
    def _runs(self) -> list[Run]:
        if not hasattr(self._here, "runs"):
            self._here.runs = []
        runs: list[Run] = self._here.runs
        return runs

    def _stage(self, sampler: Any, model: Any) -> str:
        """The network's stage if the pipeline knows it (a cascade uses one sampler for two), else the sampler's."""
        found = next((stage_of(name) for name, each in self.models.items() if each is model), None)
        return found or next(name for name, each in self.samplers.items() if each is sampler)

    def _settings(self, stage: str) -> Any:
        if stage in self.stages:
            return self.stages[stage]
        return self.stages[next(name for name in self.samplers if stage.startswith(name))]

    # --- what the patched sampler calls -----------------------------------------------------------------------------
    def run(self, call: Any, model: Any, noise: Any, cond: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Encloses ``sample``."""
        if is_sparse(noise):
            register(type(noise))
        stage = self._stage(call.args[0], model)
        run = Run(stage, model, cond, kwargs.get("neg_cond"), self.guidance_of(kwargs))
        self.traces[stage] = run.trace
        self._runs.append(run)
        try:
            return call(model, noise, cond, *args, **kwargs)
        finally:
            self._runs.pop()
            if run.server is not None:
                run.server.close()
            if len(run.images) > 1 and run.i + 1 == len(run.images):
                run.trace.notes.append("nothing was forecast: every step came with a condition tensor of its own")

    def begin(self, pairs: Sequence[tuple[float, float]]) -> None:
        """The grid of the run, as the sampler made it."""
        run = self._runs[-1]
        times = [float(pairs[0][0]), *(float(after) for _, after in pairs)]
        settings = self._settings(run.stage)
        if settings is None:
            run.trace.notes.append("off: not asked for in this stage")
            return
        guided = run.guidance is not None and run.guidance.reaches(times[:-1])
        if not isinstance(settings, Settings):
            run.server = Joint(settings, guided)
            return
        reason = settings.off(times)
        if reason is not None:
            run.trace.notes.append(reason)
        elif settings.plan is not None:
            cache, run.trace.branches["plan"] = settings.begin(
                times, plan_key(self.generator, run.stage, run.model, run.guidance)
            )
            run.server = Joint(cache, guided)
        elif (
            settings.adaptive_guidance is not False and run.guidance is not None and guided and run.guidance.scale != 1
        ):
            strengths = [abs(run.guidance.scale - 1) * run.guidance.reaches([t]) for t in times[:-1]]
            run.server = Adaptive(settings, times, run.trace, strengths)
        else:
            run.server = Apart(settings, times, run.trace.branches)

    def step(self, call: Any, model: Any, x_t: Any, *args: Any, **kwargs: Any) -> Any:
        """Encloses ``sample_once``."""
        run = self._runs[-1] if self._runs else None
        if run is None:
            return call(model, x_t, *args, **kwargs)
        run.i += 1
        if run.server is None:
            return call(model, x_t, *args, **kwargs)
        run.server.open(run.i, x_t)
        out = call(model, x_t, *args, **kwargs)
        return call(model, x_t, *args, **kwargs) if run.server.again() else out

    def branch(self, call: Any, model: Any, x_t: Any, t: Any, cond: Any = None, **kwargs: Any) -> Any:
        """Encloses one call of the network."""
        run = self._runs[-1] if self._runs else None
        if run is None or run.i < 0:  # called outside of a run, by a user's own loop
            return call(model, x_t, t, cond, **kwargs)
        name = run.name(cond)

        def compute() -> Any:
            run.trace.count(name)
            return call(model, x_t, t, cond, **kwargs)

        return compute() if run.server is None else run.server.branch(name, compute)


def plan_key(generator: str, stage: str, network: Any, guidance: Guidance | None) -> dict[str, Any]:
    """What a plan for a stage was made for; the grid (steps, rescale_t) is compared beside it."""
    scale, interval, rescale = guidance or (None, None, None)
    return {
        "generator": generator, "stage": stage, "guidance_scale": scale, "guidance_interval": interval,
        "guidance_rescale": rescale, "weights": fingerprint(network),
    }  # fmt: skip
