"""``enable``, ``disable`` and ``enabled``: hand our calibrators to the contexts that cache-dit makes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import cache_dit
import torch
from cache_dit import DBCacheConfig
from diffusers import DiffusionPipeline

from forecache import Trace

from .calibrator import Config, Forecasts

SLOTS = ("calibrator", "encoder_calibrator", "cfg_calibrator", "cfg_encoder_calibrator")
MANAGER = ("new_context", "reset_context", "_cached_context_manager")


class Handle:
    """What :func:`enable` returns: the calibrators at work, and what they did."""

    def __init__(self, manager: Any, transformers: list[torch.nn.Module]) -> None:
        missing = [name for name in MANAGER if not hasattr(manager, name)]
        if missing:
            raise RuntimeError(f"cache-dit {version('cache-dit')}: its context manager has no {', '.join(missing)}")
        self._manager, self._hooks = manager, []
        native = manager.new_context

        def new_context(*args: Any, **kwargs: Any) -> Any:
            context = native(*args, **kwargs)
            if isinstance(context.calibrator_config, Config):
                for slot in SLOTS:
                    if getattr(context, slot) is not None:
                        setattr(context, slot, Forecasts(context.calibrator_config))
            return context

        manager.new_context = new_context  # of the instance: no class of cache-dit is touched
        for context in self._contexts.values():
            self._renew(context)
        for transformer in transformers:
            run = Run(self, transformer)
            self._hooks.append(transformer.register_forward_pre_hook(run.begin, with_kwargs=True))
            self._hooks.append(transformer.register_forward_hook(run.end))

    @property
    def _contexts(self) -> dict[str, Any]:
        return dict(self._manager._cached_context_manager)

    def _renew(self, context: Any) -> None:
        self._manager.reset_context(context, *context._init_args, **context._init_kwargs)

    @property
    def calibrators(self) -> dict[str, dict[str, Forecasts]]:
        """By context (a list of blocks) and slot: ``calibrator``, ``encoder_calibrator``, ``cfg_calibrator``, ..."""
        return {
            name: {slot: each for slot in SLOTS if isinstance(each := getattr(context, slot), Forecasts)}
            for name, context in self._contexts.items()
        }

    @property
    def traces(self) -> dict[str, dict[str, Trace]]:
        """Of the latest generation, as :attr:`calibrators`."""
        return {name: {slot: each.trace for slot, each in own.items()} for name, own in self.calibrators.items()}

    @property
    def shares(self) -> dict[str, dict[str, dict[str, float]]]:
        """Rules by their share of the skipped steps, as :attr:`calibrators`."""
        return {name: {slot: each.shares for slot, each in own.items()} for name, own in self.calibrators.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(each.nbytes for own in self.calibrators.values() for each in own.values())

    def close(self) -> None:
        """Take the hooks off the transformers and free every snapshot."""
        for hook in self._hooks:
            hook.remove()
        for own in self.calibrators.values():
            for each in own.values():
                each.close()


class Run:
    """Counts the calls of one transformer, around its contexts."""

    def __init__(self, handle: Handle, transformer: torch.nn.Module) -> None:
        self.handle, self.last = handle, None
        self.signature = inspect.signature(type(transformer).forward)

    def begin(self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before a call: count a branch that was left out, renew a context whose generation is over."""
        time = self.timestep(transformer, args, kwargs)
        same = time is not None and self.last is not None and torch.equal(time, self.last)
        for context in self.contexts(transformer):
            if time is not None and context.transformer_executed_steps and not self.over(context):
                self.align(context, same)
            if self.over(context):
                self.handle._renew(context)
        self.last = time

    def end(self, transformer: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a call: the last one of a generation frees the snapshots."""
        for context in self.contexts(transformer):
            if self.over(context):
                for slot in SLOTS:
                    if isinstance(each := getattr(context, slot), Forecasts):
                        each.close()

    def contexts(self, transformer: torch.nn.Module) -> list[Any]:
        known = self.handle._contexts
        return [known[name] for name in vars(transformer)["_context_names"] if name in known]

    def over(self, context: Any) -> bool:
        """Whether the context has had all calls of a generation; never, where their number is not known."""
        config = context.cache_config
        steps = config.num_inference_steps
        return steps is not None and context.accumulated_transformer_executed_steps >= steps * branches(config)

    def align(self, context: Any, same: bool) -> None:
        """Count the call of the second branch if the sampler left it out.

        Raises:
            RuntimeError: a third call at one timestep; the first branch left out.
        """
        if branches(context.cache_config) == 1:
            return
        second = context.transformer_executed_steps % 2 == 1
        if same and not second:
            raise RuntimeError(
                "enable_separate_cfg: three calls at one timestep; a solver with several calls a step, or a third"
                " branch, cannot be told from the two branches"
            )
        if second and not same:
            if context.cache_config.cfg_compute_first:
                raise RuntimeError("cfg_compute_first: a timestep with one call, which may have been either branch")
            context.mark_step_begin()

    def timestep(self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A copy of the argument ``timestep``; ``None`` if the network has none, or if nothing depends on it."""
        if not any(branches(context.cache_config) == 2 for context in self.contexts(transformer)):
            return None
        value = self.signature.bind_partial(transformer, *args, **kwargs).arguments.get("timestep")
        return None if value is None else torch.as_tensor(value).detach().clone()


def branches(config: Any) -> int:
    """Calls of a transformer per step."""
    return 2 if config.enable_separate_cfg else 1


def enable(target: Any, cache_config: Any, *, options: Mapping[str, Any] | None = None, **settings: Any) -> Handle:
    """``cache_dit.enable_cache`` with forecasts of this package. What was enabled here before is replaced.

    Args:
        target: a diffusers pipeline, or a transformer by itself.
        cache_config: cache-dit's ``DBCacheConfig``: schedule, warm-up, step mask, separate guidance.
        options: other keywords of ``cache_dit.enable_cache``, such as ``params_modifiers``.
        settings: fields of :class:`Config`: ``basis``, ``history``, ``order``, ``sigma``, ``times``,
            ``calibrator_cache_type``, ``enable_encoder_calibrator``.

    Raises:
        TypeError: a target or a cache_config of another kind; a setting that does not exist.
        ValueError: a setting out of its range; a transformer by itself without ``num_inference_steps``.
        RuntimeError: cache-dit was enabled elsewhere; it does not know the model, or lacks a name that this needs.
    """
    if not isinstance(target, (DiffusionPipeline, torch.nn.Module)):
        raise TypeError(f"target must be a diffusers pipeline or a transformer, got {type(target).__name__}")
    if not isinstance(cache_config, DBCacheConfig):
        raise TypeError(f"cache_config must be a cache_dit.DBCacheConfig, got {type(cache_config).__name__}")
    if isinstance(target, torch.nn.Module) and cache_config.num_inference_steps is None:
        raise ValueError("cache_config: num_inference_steps must be set for a transformer without its pipeline")
    config = Config(**settings)
    disable(target)
    if "_context_manager" in vars(target):
        raise RuntimeError("target: cache-dit is enabled on it already; call cache_dit.disable_cache first")
    config.at_work = True
    try:
        cache_dit.enable_cache(target, cache_config=cache_config, calibrator_config=config, **(options or {}))
    except AssertionError as error:
        raise RuntimeError(
            f"cache-dit {version('cache-dit')} refuses {type(target).__name__}"
            f"{f': {error}' if str(error) else ''}; before 1.5.2 it takes one transformer without a pipeline a process"
        ) from error
    manager = vars(target).get("_context_manager")
    if manager is None:
        raise RuntimeError(f"cache-dit {version('cache-dit')} made no cache for {type(target).__name__}")
    parts = [target] if isinstance(target, torch.nn.Module) else list(vars(target).values())
    handle = Handle(manager, [each for each in parts if getattr(each, "_context_manager", None) is manager])
    vars(target)["forecache"] = handle
    return handle


def disable(target: Any) -> None:
    """Take the cache off and free its state; nothing happens if :func:`enable` put none there."""
    handle = vars(target).pop("forecache", None)
    if handle is not None:
        handle.close()
        cache_dit.disable_cache(target)


@contextmanager
def enabled(target: Any, cache_config: Any, **settings: Any) -> Iterator[Handle]:
    """:func:`enable` for a ``with`` block."""
    handle = enable(target, cache_config, **settings)
    try:
        yield handle
    finally:
        disable(target)
