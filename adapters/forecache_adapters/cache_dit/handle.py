"""What :func:`enable` returns, and the part of it that cache-dit's context manager asks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

import torch

from forecache import Trace
from forecache.turns import runs

from .. import handle
from ..attach import Worn
from ..handle import StageTrace
from .calibrator import Config, Forecasts

SLOTS = ("calibrator", "encoder_calibrator", "cfg_calibrator", "cfg_encoder_calibrator")
MANAGER = ("new_context", "reset_context", "can_cache", "get_context", "_cached_context_manager")


class Handle(handle.Handle):
    """The calibrators at work, and what they did. It holds neither the target nor its networks.

    Every context that cache-dit makes gets our calibrators, and a branch of it without a history is computed, whatever
    the step mask says.

    Args:
        target: a pipeline or a transformer.
    """

    def __init__(self, target: Any) -> None:
        self.within = not isinstance(target, torch.nn.Module)  #: a pipeline, whose calls are its runs
        self.owner = weakref.ref(target)
        # what parts wear, which they alone keep (it knows their forward), and the modules that cache-dit added
        self.parts: list[tuple[weakref.ref[Worn], set[str]]] = []
        self.runs: list[Any] = []
        self.remarks: list[str] = []  # of the newest run as a whole
        self.lock = threading.RLock()  # cache-dit exchanges a transformer's blocks while it runs
        self.at_work = False
        self._callers: list[tuple[FrameType, int]] = []  # calls of the pipeline under way, and their threads
        self._manager: Any = None
        self._kept: dict[str, dict[str, Forecasts]] = {}

    def follow(self, manager: Any) -> None:
        """Take a place in what cache-dit made for the target: in the instance, so that no class of it is touched."""
        missing = [name for name in MANAGER if not hasattr(manager, name)]
        if missing:
            raise RuntimeError(f"cache-dit {version('cache-dit')}: its context manager has no {', '.join(missing)}")
        self._manager = manager
        native_context, native_test = manager.new_context, manager.can_cache

        def new_context(*args: Any, **kwargs: Any) -> Any:
            context = native_context(*args, **kwargs)
            context.forecache_known = set()  # the branches with a history
            if isinstance(context.calibrator_config, Config):
                for slot in SLOTS:
                    if getattr(context, slot) is not None:
                        setattr(context, slot, Forecasts(context.calibrator_config))
            if not self.at_work:  # by `cache_dit.refresh_context`, or for a call of the pipeline
                for run in self.runs:
                    run.refreshed(context.name)
            return context

        def can_cache(*args: Any, **kwargs: Any) -> bool:
            context = manager.get_context()
            second = context.is_separate_cfg_step()
            slots = [each for each in calibrators(context, second) if isinstance(each, Forecasts)]
            known = second in context.forecache_known and not any(each.lost for each in slots)
            if known and native_test(*args, **kwargs):
                return True
            context.forecache_known.add(second)
            return False

        outside_of_graphs: Any = torch.compiler.disable
        manager.new_context, manager.can_cache = new_context, outside_of_graphs(can_cache)
        for context in self.contexts().values():
            self.renew(context)

    def is_manager(self, manager: Any) -> bool:
        """Whether it is the one that this serves."""
        return manager is not None and manager is self._manager

    # --- contexts: a list of blocks each -----------------------------------------------------------------------------
    def contexts(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Those of cache-dit, by name."""
        known = {} if self._manager is None else self._manager._cached_context_manager
        return {name: known[name] for name in (list(known) if names is None else names) if name in known}

    def renew(self, context: Any) -> None:
        """Begin a generation."""
        self._manager.reset_context(context, *context._init_args, **context._init_kwargs)

    def forget(self, context: Any, second: bool, note: str) -> None:
        """End a branch's history within a generation; its steps are counted on."""
        context.forecache_known.discard(second)
        for name in [name for name in context.buffers if name.endswith("_cfg") is second]:
            context.remove_buffer(name)
        for each in calibrators(context, second):
            if isinstance(each, Forecasts):
                each.forget(each.step + 1, note)
            elif each is not None:
                each.reset_cache()

    def free(self, context: Any) -> None:
        """Drop every tensor of a context. What it counted stays."""
        context.forecache_known.clear()
        context.clear_buffers()
        for second in (False, True):
            for each in calibrators(context, second):
                if isinstance(each, Forecasts):
                    each.close()
                elif each is not None:
                    each.reset_cache()

    # --- calls -------------------------------------------------------------------------------------------------------
    @property
    def scheduler(self) -> Any:
        """Of the pipeline."""
        return getattr(self.owner(), "scheduler", None)

    def asked(self) -> bool:
        """Whether a transformer is called by the target: another pipeline, a copy of it, may have the same one."""
        return not self.within or (bool(self._callers) and self._callers[-1][1] == threading.get_ident())

    @contextmanager
    def call(self, frame: FrameType) -> Iterator[None]:
        """Encloses a call of the pipeline, which runs in ``frame``."""
        mine = frame, threading.get_ident()
        self._callers = [*(each for each in self._callers if runs(each[0])), mine]  # an interrupt may have left one
        if len(self._callers) == 1:
            self.remarks = []
            for run in self.runs:
                run.begin()
        else:  # cache-dit has begun its contexts anew for this call
            for run in self.runs:
                run.stop("another call of the pipeline begins within or beside this one")
        try:
            yield
        finally:
            self._callers.remove(mine)
            if not self._callers:
                for run in self.runs:
                    run.end()

    # --- what happened -----------------------------------------------------------------------------------------------
    @property
    def calibrators(self) -> dict[str, dict[str, Forecasts]]:
        """By context (a list of blocks) and slot: ``calibrator``, ``encoder_calibrator``, ``cfg_calibrator``, ..."""
        found = {
            name: {slot: each for slot in SLOTS if isinstance(each := getattr(context, slot), Forecasts)}
            for name, context in self.contexts().items()
        }
        return found or self._kept

    @property
    def traces(self) -> dict[str, dict[str, Trace]]:  # type: ignore[override]
        """Of the latest generation, as :attr:`calibrators`."""
        return {name: {slot: each.trace for slot, each in own.items()} for name, own in self.calibrators.items()}

    @property
    def trace(self) -> StageTrace:
        """The same as one, of branches ``context/slot``, and every note."""
        branches = {f"{name}/{slot}": trace for name, own in self.traces.items() for slot, trace in own.items()}
        notes = dict.fromkeys([*self.remarks, *(note for trace in branches.values() for note in trace.notes)])
        return StageTrace({name: trace.computed for name, trace in branches.items()}, branches, list(notes))

    @property
    def calls(self) -> int:
        """Computed values of all streams."""
        return self.trace.computed

    @property
    def notes(self) -> list[str]:
        """Of the latest generation and its streams."""
        return self.trace.notes

    @property
    def shares(self) -> dict[str, dict[str, dict[str, float]]]:
        """Rules by their share of the skipped steps, as :attr:`calibrators`."""
        return {name: {slot: each.shares for slot, each in own.items()} for name, own in self.calibrators.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(each.nbytes for own in self.calibrators.values() for each in own.values())

    def close(self) -> None:
        """Free every snapshot; the traces stay."""
        for context in self.contexts().values():
            self.free(context)
        self._kept = self.calibrators


def calibrators(context: Any, second: bool) -> tuple[Any, Any]:
    """Of one branch: of the image stream and of the text stream."""
    found: tuple[Any, Any] = context.get_cfg_calibrators() if second else context.get_calibrators()
    return found
