"""What a pipeline or a transformer has attached to it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from forecache import fingerprint

from ..branches import StageTrace
from .grid import Scheduled, Steps
from .hook import TransformerHook, innermost, register, remove

NAME = "forecache"


class Handle:
    """``traces`` are those of each transformer's newest run, by its name in the pipeline.

    Args:
        target: a pipeline or a transformer. settings: or a cache.
    """

    def __init__(self, target: Any, settings: Any) -> None:
        self.target, self.settings = target, settings
        self.traces: dict[str, StageTrace] = {}

    @property
    def trace(self) -> StageTrace:
        """Of the first transformer that ran."""
        return next(iter(self.traces.values()), StageTrace())

    def hook(self, name: str, transformer: Any, owner: Any, steps: Steps) -> TransformerHook:
        """A hook that writes ``traces[name]``."""

        def made_for() -> Mapping[str, Any]:
            return plan_key(name, transformer, getattr(owner, "guidance_scale", None))

        def traced(trace: StageTrace) -> None:
            self.traces[name] = trace

        return TransformerHook(owner, self.settings, steps, made_for, traced)


class OnTransformer(Handle):
    """Attached until :meth:`detach`; a run ends where the next begins, or with :meth:`reset`."""

    def __init__(self, target: Any, settings: Any, steps: Steps) -> None:
        super().__init__(target, settings)
        self.steps = steps

    def attach(self) -> None:
        """Register the hook."""
        self.registered = self.hook("transformer", self.target, None, self.steps)
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
            with handle.running(pipe):
                return former.__call__(pipe, *args, **kwargs)

        body = {"__call__": call, "__module__": former.__module__, "__doc__": former.__doc__, NAME: handle}
        self.target.__class__ = type(former.__name__, (former,), body)

    def detach(self) -> None:
        """Give the pipeline its former class back."""
        self.target.__class__ = type(self.target).__bases__[0]

    @contextmanager
    def running(self, pipe: Any) -> Iterator[None]:
        """Encloses one call."""
        running = innermost()
        name = f"{NAME}-{len(running)}"  # calls nested in a callback may share the transformer
        hooks = {
            key: (each, self.hook(key, each, pipe, Scheduled(lambda: pipe.scheduler)))
            for key, each in transformers(pipe).items()
        }
        for each, hook in hooks.values():
            register(each, hook, name)
        self.traces.clear()
        running.append(pipe)
        try:
            yield
        finally:
            running.pop()
            for each, hook in hooks.values():
                remove(each, name)
                hook.close()


def transformers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The denoising transformers of a pipeline by name: ``transformer``, ``transformer_2``.

    Raises:
        TypeError: a UNet; no transformer; one with another cache, or compiled as a whole.
    """
    if getattr(pipe, "unet", None) is not None:
        check(pipe.unet)
    found = {
        name: each
        for name, each in getattr(pipe, "components", {}).items()
        if name.startswith("transformer") and isinstance(each, torch.nn.Module)
    }
    if not found or not hasattr(pipe, "scheduler"):
        raise TypeError(f"pipe_or_transformer: {type(pipe).__name__} has no transformer and scheduler")
    for each in found.values():
        check(each)
    return found


def check(network: torch.nn.Module) -> None:
    """Raises ``TypeError`` where the cache cannot be attached, and says why."""
    name = type(network).__name__
    if "UNet" in name:
        raise TypeError(
            f"pipe_or_transformer: {name} is a UNet. Rules and defaults are checked on transformers only; caches that"
            " reuse what stands behind a UNet's skip connections (DeepCache) fit it better"
        )
    if getattr(network, "is_cache_enabled", False):
        raise TypeError(f"pipe_or_transformer: {name} has a cache of diffusers' own; call its disable_cache() first")
    if hasattr(network, "_orig_mod") or network._compiled_call_impl is not None:
        raise TypeError(f"pipe_or_transformer: {name} is compiled as a whole; use compile_repeated_blocks() instead")


def plan_key(name: str, transformer: Any, guidance_scale: float | None) -> dict[str, Any]:
    """What a plan was made for; the grid (steps, shift) is compared beside it."""
    return {
        "generator": f"diffusers/{type(transformer).__name__}", "stage": name, "guidance_scale": guidance_scale,
        "weights": fingerprint(transformer), "dtype": str(transformer.dtype),
    }  # fmt: skip


def attached(target: Any) -> Handle | None:
    """What a pipeline or transformer has attached to it."""
    if isinstance(target, torch.nn.Module):
        hook = target._diffusers_hook.get_hook(NAME) if hasattr(target, "_diffusers_hook") else None
        return None if hook is None else hook.handle
    return vars(type(target)).get(NAME)
