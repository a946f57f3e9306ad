"""Put cache-dit on a target and hand our calibrators to the contexts that cache-dit makes."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import cache_dit
import torch
from cache_dit import DBCacheConfig
from diffusers import DiffusionPipeline

from ..attach import Worn, attached, functions
from ..handle import Piece
from ..others import cache_on, counters
from .calibrator import Config
from .handle import Handle
from .run import Run

SETS = (  # what cache-dit leaves in a pipeline or a transformer, and copies are not to have
    "_context_manager", "_context_names", "_context_kwargs", "_original_forward", "_is_cached", "_forward_pattern",
    "_has_separate_cfg",
)  # fmt: skip


def make_handle(target: Any, cache_config: Any, *, options: Mapping[str, Any] | None = None, **settings: Any) -> Handle:
    """``cache_dit.enable_cache`` with forecasts of this package. What was enabled here before is replaced.

    Copies of an enabled target, by whatever means, are not enabled; another pipeline that has its transformer runs it
    without a cache. cache-dit is put on ``target`` alone, not on its class.

    Args:
        target: a diffusers pipeline, or a transformer by itself.
        cache_config: cache-dit's ``DBCacheConfig``: schedule, warm-up, step mask, separate guidance.
        options: other keywords of ``cache_dit.enable_cache``, such as ``params_modifiers``.
        settings: fields of :class:`Config`: ``basis``, ``history``, ``order``, ``sigma``, ``times``,
            ``calibrator_cache_type``, ``enable_encoder_calibrator``.

    Raises:
        TypeError: a target or a cache_config of another kind; a setting that does not exist.
        ValueError: a setting out of its range; a transformer by itself without ``num_inference_steps``.
        RuntimeError: another cache is on the target or its transformer: cache-dit's, one of diffusers, or of another
            adapter; a network with Chipmunk's layers; cache-dit does not know the model, or lacks a name that this
            needs.
    """
    if not isinstance(target, (DiffusionPipeline, torch.nn.Module)):
        raise TypeError(f"target must be a diffusers pipeline or a transformer, got {type(target).__name__}")
    if not isinstance(cache_config, DBCacheConfig):
        raise TypeError(f"cache_config must be a cache_dit.DBCacheConfig, got {type(cache_config).__name__}")
    steps = cache_config.num_inference_steps
    if isinstance(target, torch.nn.Module) and steps is None:
        raise ValueError("cache_config: num_inference_steps must be set for a transformer without its pipeline")
    config = Config(**settings)
    if config.times is not None and steps is not None and len(config.times) < steps:
        raise ValueError(f"times must have one for each of num_inference_steps={steps}, got {len(config.times)}")
    if other := cache_on(target, but=own(target)):
        raise RuntimeError(f"target: {other} cache is enabled on it or its transformer already; disable that first")
    if any(counters(each.modules()) for each in networks(target)):
        raise RuntimeError(
            "target: Chipmunk's layers count the calls of every block, and cache-dit leaves blocks out; use one of them"
        )
    handle = Handle(target)
    handle.pieces = [OfTarget(handle, cache_config, config, options or {})]
    return handle


class OfTarget(Piece):
    """cache-dit on a target, with our calibrators in it.

    Args:
        handle: of the target. cache_config, config, options: see :func:`make_handle`.
    """

    def __init__(self, handle: Handle, cache_config: Any, config: Config, options: Mapping[str, Any]) -> None:
        self.handle, self.cache_config, self.config, self.options = handle, cache_config, config, options

    def current(self) -> Piece | None:
        """See :class:`Piece`."""
        handle = own(self.handle.owner())
        return None if handle is None else handle.pieces[0]

    def attach(self) -> None:
        """See :class:`Piece`.

        Raises:
            RuntimeError: cache-dit does not know the model, or lacks a name that this needs.
        """
        handle, target, config = self.handle, self.handle.owner(), self.config
        if target is None:
            return
        config.at_work = True
        former = {each: ({**vars(each), "_modules": set(each._modules)}, patched(each)) for each in networks(target)}
        if not isinstance(target, torch.nn.Module):
            wear_pipeline(target, handle)  # first: what cache-dit sets in the class it sets in one of this pipeline
        try:
            cache_dit.enable_cache(target, cache_config=self.cache_config, calibrator_config=config, **self.options)
            manager = vars(target).get("_context_manager")
            if manager is None:
                raise RuntimeError(f"cache-dit {version('cache-dit')} made no cache for {type(target).__name__}")
            handle.follow(manager)
        except BaseException as error:
            if "_context_manager" in vars(target):
                cache_dit.disable_cache(target)
            for worn, _ in handle.parts:
                if (piece := worn()) is not None:
                    piece.detach()
            handle.parts = []
            if not isinstance(error, AssertionError):
                raise
            raise RuntimeError(
                f"cache-dit {version('cache-dit')} refuses {type(target).__name__}"
                f"{f': {error}' if str(error) else ''}; before 1.5.2 it takes one transformer without a pipeline a"
                " process"
            ) from error
        for each, (given, blocks) in former.items():
            if handle.is_manager(vars(each).get("_context_manager")):
                wear_transformer(each, given if patched(each) == blocks else None, handle)

    def detach(self) -> None:
        """See :class:`Piece`; frees what cache-dit holds."""
        handle, target = self.handle, self.handle.owner()
        if target is None or own(target) is not handle:
            return
        handle.close()
        for worn, added in reversed(handle.parts):
            piece = worn()
            each = None if piece is None else piece.target
            if piece is None or each is None:
                continue
            piece.detach()
            for name in added:
                each._modules.pop(name, None)
            if handle.is_manager(vars(each).get("_context_manager")):
                vars(each).pop("_original_forward", None)  # `forward` is what it was, and not for cache-dit to set
                cache_dit.disable_cache(each)
        handle.parts, handle.runs = [], []
        if handle.is_manager(vars(target).get("_context_manager")):
            cache_dit.disable_cache(target)


def own(target: Any) -> Handle | None:
    """The handle of what :func:`enable` put on the target; ``None``: nothing, or its pipeline has it."""
    handle = attached(target)
    return handle if isinstance(handle, Handle) and handle.owner() is target else None


def networks(target: Any) -> list[torch.nn.Module]:
    """A transformer itself, or the networks of a pipeline."""
    parts = [target] if isinstance(target, torch.nn.Module) else list(vars(target).values())
    return [each for each in parts if isinstance(each, torch.nn.Module)]


def wear_pipeline(pipe: Any, handle: Handle) -> None:
    """Tell the handle where a call of the pipeline begins and ends."""

    def call(inside: Any, *args: Any, **kwargs: Any) -> Any:
        with handle.call(sys._getframe()):
            return inside(*args, **kwargs)

    wear(pipe, handle, {"__call__": call}, set())


def wear(part: Any, handle: Handle, methods: Mapping[str, Any], added: set[str]) -> None:
    """Put functions around methods of a part of the target. ``added``: the modules that cache-dit added to it."""
    piece = Worn(part, handle, methods, private=SETS)
    piece.attach()
    handle.parts.append((weakref.ref(piece), added))


def patched(network: torch.nn.Module) -> int:
    """How many modules within a network have a ``forward`` of their own, as cache-dit gives some models' blocks."""
    return sum("forward" in vars(each) for each in network.modules() if each is not network)


def wear_transformer(transformer: Any, former: Mapping[str, Any] | None, handle: Handle) -> None:
    """Put cache-dit's ``forward`` behind one that decides at each call whether it may serve.

    Args:
        transformer: with cache-dit's ``forward`` in its instance.
        former: what was in its instance before; ``None``: cache-dit has changed its blocks for good, and ``forward``
            with them.
        handle: of the target.
    """
    given = vars(transformer)
    cached, plain, added = given.pop("forward"), given["_original_forward"], set()
    if former is not None:
        plain, added = former.get("forward"), set(given["_modules"]) - former["_modules"]
        if "_is_patched" not in former:
            given.pop("_is_patched", None)
    if plain is not None:
        given["forward"] = plain
    run = Run(handle, given["_context_names"], type(transformer))

    def forward(inside: Any, *args: Any, **kwargs: Any) -> Any:
        return run(lambda: inside(*args, **kwargs), lambda: cached(*args, **kwargs), args, kwargs)

    def enable_cache(inside: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("enable_cache: cache-dit is on this transformer, through forecache; disable it there first")

    methods: dict[str, Any] = {"forward": forward}
    if hasattr(transformer, "enable_cache"):
        methods["enable_cache"] = enable_cache
    wear(transformer, handle, methods, added)
    handle.runs.append(run)


def _on(target: Any) -> Sequence[Piece]:
    handle = own(target)
    return () if handle is None else handle.pieces


enable, enabled, disable = functions(make_handle, _on)
