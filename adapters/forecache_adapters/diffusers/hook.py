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

    It is a string up to 0.40 and has a ``name`` since.
    """

    def __init__(self) -> None:
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Called by ``cache_context``, with ``None`` where it is left."""
        self.name = getattr(context, "name", context)


class TransformerHook(ModelHook):  # type: ignore[misc]
    """Forecasts the transformer's whole output; on a forecast step nothing of the transformer runs.

    Args:
        owner: the pipeline whose calls are served; ``None``: calls that belong to no pipeline's.
        settings: or a cache. steps: tells the steps apart.
        made_for: the key of a plan. traced: takes the trace of each run.
    """

    _is_stateful = True

    def __init__(
        self,
        owner: Any,
        settings: Any,
        steps: Steps,
        made_for: Callable[[], Mapping[str, Any]],
        traced: Callable[[StageTrace], None],
    ) -> None:
        super().__init__()
        self.owner, self.settings, self.steps = owner, settings, steps
        self.made_for, self.traced = made_for, traced
        self.context = Context()
        self.run: Run | None = None
        self.names: list[str] = []

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """The names of the positional arguments."""
        self.names = list(inspect.signature(module.forward).parameters)
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """In place of the transformer's ``forward``."""
        if not self.is_asked():
            return self.fn_ref.original_forward(*args, **kwargs)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        fresh, i = self.steps.locate(lambda: timestep_of(given))
        if fresh or self.run is None:
            self.close()
            self.run = Run(self.settings, self.steps.times, self.made_for)
            self.traced(self.run.trace)
        return self.run.call(
            i, self.context.name, not given.get("return_dict", True), given.get("hidden_states"),
            lambda: self.fn_ref.original_forward(*args, **kwargs),
        )  # fmt: skip

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
    """Attach, outside of every hook that is there: what an offload hook would fetch stays where it is."""
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def remove(module: torch.nn.Module, name: str) -> None:
    """Detach. The registry leaves ``forward`` in the instance where the class's own would do: that goes too."""
    HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)
    left = vars(module).get("forward")
    if inspect.ismethod(left) and left.__self__ is module and left.__func__ is type(module).forward:
        del module.forward
