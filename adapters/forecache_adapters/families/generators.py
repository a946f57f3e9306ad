"""The handle and the plan's key of pipelines whose stages are generators with an ODE solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..attach import attached, put_on
from ..by_stage import SCHEDULE, by_stage
from ..settings import Settings
from .ode_hooks import Accelerator, Hook, key_of

BRANCHES = ("apart", "combined")


@dataclass(frozen=True)
class Adapter:
    """One upstream.

    Attributes:
        name: in the lock and in plans.
        stages: the generators' names in ``pipeline.models``, by stage.
        stage_of: the stage of a generator that is given alone.
        groups_of: leaves of a generator's velocity that are forecast together, unless the settings say otherwise.
        others: endings of class names that have a cache of their own, and what to use with them.
        hook_of: what is attached to a generator.
    """

    name: str
    stages: Mapping[str, str]
    stage_of: Callable[[Any], str]
    groups_of: Callable[[Any], Mapping[str, Sequence[str]]] = lambda generator: {}
    others: Mapping[str, str] = field(default_factory=dict)
    hook_of: Callable[[Any], type[Hook]] = lambda generator: Hook

    def _generators(self, target: Any) -> dict[str, Any]:
        """By stage."""
        if hasattr(target, "reverse_fn") and hasattr(target, "_solver"):
            return {self.stage_of(target): target}
        models = getattr(target, "models", {})
        found = {stage: models[name] for stage, name in self.stages.items() if name in models}
        if not found:
            wanted = ", ".join(self.stages.values())
            raise TypeError(f"pipeline: {type(target).__name__} is no generator, and its models hold none of {wanted}")
        return found

    def make_handle(
        self,
        pipeline: Any,
        *,
        stages: Mapping[str, Any] | None = None,
        plan: Any = None,
        branches: str = "apart",
        **settings: Any,
    ) -> Accelerator:
        """Attach the cache to the generators of a pipeline, or to one of them; nothing needs to be patched.

        A copy of a generator is plain. A copy of the pipeline that has the same generators has their cache with them,
        until it is taken off the original or off the generators.

        Args:
            pipeline: of the upstream, or a generator of it.
            stages: settings of single stages, on top of the others; ``None`` for a stage: off; or a cache of your own,
                such as what :func:`forecache.calibrate` hands to ``run``.
            plan: a plan, its file, or a list of them: each serves the stage that it was made for, the others are off.
            branches: ``"apart"``: a history for each branch of guidance. ``"combined"``: one for the velocity after
                guidance, with a new history at each edge of the guidance interval; also chosen where the network is
                compiled, and then the trace says so.
            settings: of every stage; see :class:`forecache_adapters.settings.Settings`. A budget counts steps: solvers
                with several calls a step make that many times as many.

        Raises:
            TypeError: no generator, or one that has a cache of its own.
            ValueError: a stage that does not exist, a setting out of its range, a solver that is not supported, or not
                with these settings; a network that has another cache already.
        """
        if branches not in BRANCHES:
            raise ValueError(f"branches must be one of {', '.join(BRANCHES)}, got {branches!r}")
        generators = self._generators(pipeline)
        for each in generators.values():
            self._has_no_other(each)
        chosen = by_stage(generators, list(generators), stages, plan, settings)
        for stage, each in chosen.items():
            if isinstance(each, Settings) and each.groups is None and each.plan is None:
                chosen[stage] = replace(each, groups=self.groups_of(generators[stage]))
        return Accelerator(self.name, pipeline, generators, chosen, branches == "combined", self.hook_of)

    def change(self, generator: Any, **settings: Any) -> Accelerator:
        """Attach the cache to one generator with settings on top of those that it has; at first every step is computed.

        Raises:
            TypeError, ValueError: see :meth:`make_handle`.
        """
        hook = attached(generator)
        if not isinstance(hook, Hook) or not isinstance(hook.settings, Settings):
            return put_on(self.make_handle(generator, **{"interval": 1, **settings}))
        kept = {f.name: getattr(hook.settings, f.name) for f in fields(hook.settings)}
        if SCHEDULE & set(settings):
            kept = {name: value for name, value in kept.items() if name not in SCHEDULE}
        branches = "combined" if hook.accelerator.combined else "apart"
        return put_on(self.make_handle(generator, branches=branches, **{**kept, **settings}))

    def _has_no_other(self, generator: Any) -> None:
        for kind in type(generator).__mro__:
            for ending, advice in self.others.items():
                if kind.__name__.endswith(ending):
                    raise TypeError(f"generator: {kind.__name__} has a cache of its own; {advice}")

    def hooks_on(self, pipeline: Any) -> Iterator[Hook]:
        """What is to be detached from a pipeline or a generator. A copy of the pipeline that has the same generators
        does not switch off the original, and is told so.
        """
        for generator in self._generators(pipeline).values():
            hook = attached(generator)
            if not isinstance(hook, Hook):
                continue
            if generator is pipeline or hook.accelerator.belongs_to(pipeline, generator):
                yield hook
            else:
                warnings.warn(
                    f"forecache: the {hook.stage} generator keeps its cache, which another pipeline has put on; disable"
                    " that one or the generator",
                    stacklevel=3,
                )

    def key(self, pipeline: Any, stage: str) -> dict[str, Any]:
        """What a plan for a stage is made for (``made_for``), at the generator's settings.

        Raises:
            ValueError: a stage that the pipeline has no generator for.
        """
        generators = self._generators(pipeline)
        if stage not in generators:
            raise ValueError(f"stage must be among {', '.join(generators)}, got {stage!r}")
        return key_of(self.name, stage, generators[stage])
