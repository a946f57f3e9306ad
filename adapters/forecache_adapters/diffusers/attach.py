"""What a pipeline or a transformer has attached to it."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from forecache import fingerprint

from ..branches import StageTrace
from .grid import Scheduled, Steps
from .hook import TransformerHook, innermost, register, remove
from .network import original, transformers

NAME = "forecache"
STRENGTHS = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")  # of guidance, as the calls of pipelines name them
_calls = itertools.count()


class Handle:
    """``traces`` are those of each transformer's newest run, by its name in the pipeline.

    Args:
        target: a pipeline or a transformer. settings: or a cache. level: see :class:`~.hook.TransformerHook`.
    """

    def __init__(self, target: Any, settings: Any, level: str) -> None:
        self.target, self.settings, self.level = target, settings, level
        self.traces: dict[str, StageTrace] = {}

    @property
    def trace(self) -> StageTrace:
        """Of the first transformer that ran."""
        return next(iter(self.traces.values()), StageTrace())

    def hook(
        self, name: str, transformer: Any, owner: Any, steps: Steps, strengths: Mapping[str, Any]
    ) -> TransformerHook:
        """A hook that writes ``traces[name]``, in a call with these ``strengths`` of guidance."""

        def made_for() -> Mapping[str, Any]:
            return plan_key(name, transformer, strengths)

        def traced(trace: StageTrace) -> None:
            self.traces[name] = trace

        return TransformerHook(owner, self.settings, self.level, steps, made_for, traced)


class OnTransformer(Handle):
    """Attached until :meth:`detach`; a run ends where the next begins, where a call raises, or with :meth:`reset`."""

    def __init__(self, target: Any, settings: Any, level: str, steps: Steps) -> None:
        super().__init__(target, settings, level)
        self.steps = steps

    def attach(self) -> None:
        """Register the hook."""
        self.registered = self.hook("transformer", self.target, None, self.steps, {})
        self.registered.handle = self
        register(self.target, self.registered, NAME)

    def reset(self) -> None:
        """End the run: free every snapshot."""
        self.registered.close()

    def detach(self) -> None:
        """Remove the hook."""
        self.reset()
        remove(self.target, NAME)


class OnPipeline(Handle):
    """The hooks live from the beginning of the pipeline's call to its end.

    So they are outermost whatever offloading was set up in between, nothing outlives a call that raises, and another
    pipeline with the same transformer is untouched. Python looks ``__call__`` up in the class: while attached, the
    pipeline has a class of its own, derived from its former and of the same name.
    """

    def attach(self) -> None:
        """Give the pipeline its class."""
        former, handle = type(self.target), self

        @functools.wraps(former.__call__)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(former.__call__).bind(pipe, *args, **kwargs).arguments
            with handle.running(pipe, guidance(pipe, given)):
                return former.__call__(pipe, *args, **kwargs)

        body = {"__call__": call, "__module__": former.__module__, "__doc__": former.__doc__, NAME: handle}
        self.target.__class__ = type(former.__name__, (former,), body)

    def detach(self) -> None:
        """Give the pipeline its former class back."""
        self.target.__class__ = type(self.target).__bases__[0]

    @contextmanager
    def running(self, pipe: Any, strengths: Mapping[str, Any]) -> Iterator[None]:
        """Encloses one call, with these ``strengths`` of guidance."""
        running = innermost()
        name = f"{NAME}-{next(_calls)}"  # calls nested in a callback may share the transformer
        hooks = {
            key: (each, self.hook(key, each, pipe, scheduled(pipe, key), strengths))
            for key, each in transformers(pipe).items()
        }
        self.traces.clear()
        running.append(pipe)
        try:
            for each, hook in hooks.values():
                register(each, hook, name)
            yield
        finally:
            running.pop()
            for each, hook in hooks.values():
                remove(each, name)
                hook.close()


def scheduled(pipe: Any, name: str) -> Scheduled:
    """The steps of a pipeline's transformer: of two (Wan 2.2), the first has those at ``boundary_ratio`` and above."""

    def boundary() -> float | None:
        ratio = pipe.config.get("boundary_ratio") if name == "transformer" else None
        return None if ratio is None else float(ratio * pipe.scheduler.config.num_train_timesteps)

    return Scheduled(lambda: pipe.scheduler, boundary)


def guidance(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each strength of guidance that a call of ``pipe`` takes: ``given``, or its default."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: given.get(name, known[name].default) for name in STRENGTHS if name in known}


def plan_key(name: str, transformer: Any, strengths: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan was made for; the grid (steps, shift) is compared beside it.

    Raises:
        ValueError: weights that are not there to be compared.
    """
    network = original(transformer)
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError(
            f"plan: sequential offloading keeps the weights of {name} where they cannot be compared with the plan's;"
            " use model or group offloading"
        )
    return {
        "generator": f"diffusers/{type(network).__name__}", "stage": name, **strengths,
        "weights": fingerprint(network), "dtype": str(transformer.dtype),
    }  # fmt: skip


def attached(target: Any) -> Handle | None:
    """What a pipeline or transformer has attached to it."""
    handle: Handle | None
    if isinstance(target, torch.nn.Module):
        registry: Any = getattr(target, "_diffusers_hook", None)
        handle = None if registry is None else getattr(registry.get_hook(NAME), "handle", None)
    else:
        handle = vars(type(target)).get(NAME)
    return handle
