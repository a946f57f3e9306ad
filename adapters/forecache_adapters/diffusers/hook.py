"""The hook on a transformer, in diffusers' own registry."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from ..branches import StageTrace
from .grid import TIMESTEP, Steps
from .head import Head
from .network import check, original
from .run import Run

_here = threading.local()


def innermost() -> list[Any]:
    """The pipelines whose calls are under way in this thread, innermost last."""
    if not hasattr(_here, "running"):
        _here.running = []
    running: list[Any] = _here.running
    return running


class Context(StateManager):  # type: ignore[misc]
    """The name of the cache context that is entered: diffusers hands it to every ``StateManager`` of a hook.

    It is a string up to 0.40 and has a ``name`` since. A context that another thread enters is none of this thread's.
    """

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.entered = threading.local()

    @property
    def name(self) -> str | None:
        """``None``: none is entered."""
        return getattr(self.entered, "name", None)

    def set_context(self, context: Any) -> None:
        """Called by ``cache_context``, with ``None`` where it is left."""
        self.entered.name = getattr(context, "name", context)


class TransformerHook(ModelHook):  # type: ignore[misc]
    """Forecasts the transformer's output.

    Args:
        owner: the pipeline whose calls are served; ``None``: calls that belong to no pipeline's.
        settings: or a cache. steps: tells the steps apart.
        level: ``velocity``: the whole output is forecast, and on a forecast step nothing of the transformer runs;
            ``last_block``: what stands behind the last block, and everything but the blocks runs.
        made_for: the key of a plan. traced: takes the trace of each run.
    """

    _is_stateful = True

    def __init__(
        self,
        owner: Any,
        settings: Any,
        level: str,
        steps: Steps,
        made_for: Callable[[], Mapping[str, Any]],
        traced: Callable[[StageTrace], None],
    ) -> None:
        super().__init__()
        self.owner, self.settings, self.level, self.steps = owner, settings, level, steps
        self.made_for, self.traced = made_for, traced
        self.context = Context()
        self.thread = threading.get_ident()
        self.head: Head | None = None
        self.run: Run | None = None
        self.names: list[str] = []

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """The names of the positional arguments, and the head if it is needed."""
        self.names = list(inspect.signature(original(module).forward).parameters)
        self.head = Head(module) if self.level == "last_block" else None
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """In place of the transformer's ``forward``."""
        if not self.is_asked():
            return self.fn_ref.original_forward(*args, **kwargs)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        try:
            return self._served(module, given, lambda: self.fn_ref.original_forward(*args, **kwargs))
        except BaseException:
            self.close()
            raise

    def _served(self, module: torch.nn.Module, given: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        fresh, i = self.steps.locate(lambda: timestep_of(given))
        if fresh or self.run is None:
            self.close()
            check(module)  # diffusers does not know that there is a cache, and enables its own beside it
            self.run = Run(self.settings, self.steps.times, self.steps.whole, self.made_for)
            self.traced(self.run.trace)
        context, state = self.context.name, given.get("hidden_states")
        if self.head is None:
            return self.run.call(i, context, not given.get("return_dict", True), state, forward)
        output = hidden = None

        def split() -> Any:
            nonlocal output, hidden
            output, hidden = self.head.split(forward)  # type: ignore[union-attr]
            if fresh:
                self.head.check(forward, output, hidden)  # type: ignore[union-attr]
            return hidden

        served = self.run.call(i, context, True, state, split)
        return output if served is hidden else self.head(forward, served)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Called by diffusers where a pipeline's call ends, which may be one nested in the call that is served."""
        if self.is_asked():
            self.close()
        return module

    def is_asked(self) -> bool:
        """Whether what happens to the transformer now belongs to the owner's call."""
        running = innermost()
        return (running[-1] if running else None) is self.owner

    def close(self) -> None:
        """End the run: free every snapshot."""
        if self.run is not None:
            self.run.close()
        self.run = None


def timestep_of(arguments: Mapping[str, Any]) -> float:
    """The largest timestep of a call: where there is one a token, those of known frames are 0.

    Raises:
        TypeError: none among the arguments.
    """
    for name in TIMESTEP:
        if name in arguments:
            return float(torch.as_tensor(arguments[name]).max())
    raise TypeError(f"transformer: called without {', '.join(TIMESTEP)}, so its steps cannot be told apart")


def register(module: torch.nn.Module, hook: TransformerHook, name: str) -> None:
    """Attach, outside of every hook that is there: what an offload hook would fetch stays where it is.

    A module and what ``torch.compile`` made of it have one registry, whose hooks are on one of them: within the graph
    or, as wanted here, outside of it. An empty one is made anew.

    Raises:
        TypeError: a compiled transformer with hooks within the graph.
        RuntimeError: a pipeline's call in another thread has the transformer.
    """
    registry = HookRegistry.check_if_exists_or_initialize(module)
    name_of = type(original(module)).__name__
    if registry._module_ref is not module:
        if registry.hooks:
            raise TypeError(
                f"pipe_or_transformer: {name_of} is compiled with its hooks, {', '.join(registry.hooks)}; use"
                " compile_repeated_blocks() instead"
            )
        registry = HookRegistry(module)
        module._diffusers_hook = registry
    for other in registry.hooks.values():
        if isinstance(other, TransformerHook) and other.owner is not None and other.thread != hook.thread:
            raise RuntimeError(f"pipe: its {name_of} is at work for another thread's call; give each its own, or wait")
    registry.register_hook(hook, name)


def remove(module: torch.nn.Module, name: str) -> None:
    """Detach. The registry leaves ``forward`` in the instance where the class's own would do: that goes too."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.remove_hook(name, recurse=False)
    if registry._module_ref is not original(module) and not registry.hooks:
        del module._diffusers_hook
    left = vars(module).get("forward")
    if inspect.ismethod(left) and left.__self__ is module and left.__func__ is type(module).forward:
        del module.forward
