"""``enable``, ``disable``, ``enabled`` and ``key`` of generators whose stages run a patched ``FlowEulerSampler``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache import Plan

from .flow_euler import Accelerator, Guidance, plan_key, stage_of
from .settings import Settings

CALLS = ("needs_compute", "observe", "forecast")  # of a cache that a stage may be given instead of settings
SCHEDULE = {"interval", "warmup", "end", "calls", "plan"}  # settings that a stage gives or takes over together


@dataclass(frozen=True)
class Adapter:
    """One generator.

    Attributes:
        generator: its name in the lock and in plans.
        stages: those that have a sampler, ``<stage>_sampler``, and parameters, ``<stage>_sampler_params``, in the
            pipeline. Several networks may run under one: ``<stage>_flow_model_<resolution>``.
        guidance: reads the keywords of ``sample``.
    """

    generator: str
    stages: tuple[str, ...]
    guidance: Callable[[Mapping[str, Any]], Guidance | None]

    def _samplers(self, pipeline: Any) -> dict[str, Any]:
        names = {stage: f"{stage}_sampler" for stage in self.stages}
        return {stage: getattr(pipeline, name) for stage, name in names.items() if hasattr(pipeline, name)}

    def enable(
        self, pipeline: Any, *, stages: Mapping[str, Any] | None = None, plan: Any = None, **settings: Any
    ) -> Accelerator:
        """Attach the cache to the samplers of a pipeline from a patched checkout.

        Args:
            pipeline: of the generator.
            stages: settings of single stages, on top of the others; ``None`` for a stage: off; or a cache of your own,
                such as what :func:`forecache.calibrate` hands to ``run``.
            plan: a plan, its file, or a list of them: each serves the stage that it was made for, the others are off.
            settings: of every stage; see :class:`forecache_adapters.settings.Settings`.

        Raises:
            RuntimeError: the samplers' class is not patched.
            ValueError, TypeError: a stage that does not exist, a setting out of its range.
        """
        samplers = self._samplers(pipeline)
        if not samplers:
            wanted = ", ".join(f"{stage}_sampler" for stage in self.stages)
            raise TypeError(f"pipeline: {type(pipeline).__name__} has none of {wanted}")
        for sampler in samplers.values():
            if not hasattr(type(sampler), "forecache"):
                raise RuntimeError(
                    f"pipeline: {type(sampler).__module__}.{type(sampler).__name__} is not patched;"
                    f" run `forecache patch apply {self.generator} CHECKOUT` on the checkout it comes from"
                )
        networks = [stage for stage in map(stage_of, pipeline.models) if stage is not None]
        known = list(dict.fromkeys([*samplers, *networks]))
        foreign = sorted(set(stages or {}) - set(known))
        if foreign:
            raise ValueError(f"stages must be among {', '.join(known)}, got {', '.join(foreign)}")
        chosen: dict[str, Any] = dict.fromkeys(samplers, Settings(**settings))
        if plan is not None:
            chosen = dict.fromkeys(samplers, None) | _plans(plan, known, settings)
        chosen |= {stage: _stage_settings(stage, value, settings) for stage, value in (stages or {}).items()}
        accelerator = Accelerator(self.generator, pipeline.models, chosen, samplers, self.guidance)
        for sampler in samplers.values():
            sampler.forecache = accelerator
        return accelerator

    def disable(self, pipeline: Any) -> None:
        """Detach the cache; nothing happens if there is none."""
        for sampler in self._samplers(pipeline).values():
            vars(sampler).pop("forecache", None)

    @contextmanager
    def enabled(
        self, pipeline: Any, *, stages: Mapping[str, Any] | None = None, plan: Any = None, **settings: Any
    ) -> Iterator[Accelerator]:
        """Attach for a ``with`` block; whatever was attached before is attached again afterwards."""
        samplers = list(self._samplers(pipeline).values())
        before = [vars(sampler).get("forecache") for sampler in samplers]
        accelerator = self.enable(pipeline, stages=stages, plan=plan, **settings)
        try:
            yield accelerator
        finally:
            self.disable(pipeline)
            for sampler, old in zip(samplers, before, strict=True):
                if old is not None:
                    sampler.forecache = old

    def key(self, pipeline: Any, stage: str, **sampler_params: Any) -> dict[str, Any]:
        """What a plan for a stage is made for (``made_for``), at the pipeline's sampler parameters or those given.

        Raises:
            ValueError: a stage that the pipeline has no network for.
        """
        networks = {stage_of(name): network for name, network in pipeline.models.items()}
        if stage not in networks:
            raise ValueError(f"stage must be among {', '.join(name for name in networks if name)}, got {stage!r}")
        sampler = next(name for name in self.stages if stage.startswith(name))
        given = {**getattr(pipeline, f"{sampler}_sampler_params"), **sampler_params, "neg_cond": True}
        return plan_key(self.generator, stage, networks[stage], self.guidance(given))


def _plans(plan: Any, known: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Settings]:
    """Plans by the stage that they were made for."""
    found: dict[str, Settings] = {}
    for each in plan if isinstance(plan, (list, tuple)) else [plan]:
        loaded = Plan.load(each) if isinstance(each, (str, Path)) else each
        stage = str(loaded.made_for.get("stage"))
        if stage not in known or stage in found:
            twice = "twice" if stage in found else f"but the pipeline has {', '.join(known)}"
            raise ValueError(f"plan: made for stage {stage!r}, {twice}")
        found[stage] = Settings(**{**settings, "plan": loaded})
    return found


def _stage_settings(stage: str, value: Any, settings: Mapping[str, Any]) -> Any:
    if value is None or all(hasattr(value, name) for name in CALLS):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"stages[{stage!r}] must be a mapping of settings, a cache, or None, got {value!r}")
    inherited = {k: v for k, v in settings.items() if not (k in SCHEDULE and SCHEDULE & set(value))}
    return Settings(**{**inherited, **value})
