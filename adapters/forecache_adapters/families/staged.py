"""The handle and the plan's key of generators whose stages run a patched ``FlowEulerSampler``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..attach import Worn
from ..by_stage import by_stage
from .flow_euler import Accelerator, Guidance, plan_key, stage_of


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

    def make_handle(
        self, pipeline: Any, *, stages: Mapping[str, Any] | None = None, plan: Any = None, **settings: Any
    ) -> Accelerator:
        """Attach the cache to the samplers of a pipeline from a patched checkout.

        A copy of the pipeline is plain, and so are its samplers. Another pipeline that is given these very samplers has
        the cache with them, until it is taken off this one.

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
        chosen = by_stage(samplers, known, stages, plan, settings)
        accelerator = Accelerator(self.generator, _networks(pipeline), chosen, samplers, self.guidance)
        parts = [Worn(each, accelerator, {}, {"forecache": accelerator}) for each in dict.fromkeys(samplers.values())]
        accelerator.pieces = [OfPipeline(pipeline, accelerator, {}), *parts]
        return accelerator

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


class OfPipeline(Worn):
    """What the pipeline wears: with it, its samplers lose what they wear."""

    def detach(self) -> None:
        """See :class:`Piece`."""
        super().detach()
        for each in self.handle.pieces[1:]:
            each.detach()


def _networks(pipeline: Any) -> Callable[[], Mapping[str, Any]]:
    """What returns the pipeline's networks, which wrappers load when they are needed, and does not keep it."""
    reference = weakref.ref(pipeline)

    def networks() -> Mapping[str, Any]:
        alive = reference()
        return {} if alive is None else alive.models

    return networks
