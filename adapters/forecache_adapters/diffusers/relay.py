"""What a transformer wears while a cache is attached to it, or to a pipeline whose call is under way.

A transformer may be shared, by pipelines in threads and by calls within one another's callbacks. So it wears one
relay, which hands each call to the session of the pipeline's call that it belongs to: the innermost of this thread. One
that belongs to none is the bare transformer's, or passes through. The relay encloses whatever hooks a module has,
offloading and graphs compiled in place, whenever they are set up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ..attach import Worn, attached
from .head import Head
from .network import original

_lock = threading.RLock()
_here = threading.local()


class Session(Protocol):
    """Serves the calls of one transformer, in one pipeline's call or as long as it is attached."""

    def serve(self, relay: Relay, module: Any, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The output of one call."""


def under_way() -> list[dict[int, Session]]:
    """The pipelines' calls of this thread, innermost last: their sessions by the transformer's id."""
    if not hasattr(_here, "calls"):
        _here.calls = []
    calls: list[dict[int, Session]] = _here.calls
    return calls


class Relay:
    """``context``: the name of the cache context that this thread has entered, if any.

    Attributes:
        bare: the session of calls that belong to no pipeline's.
    """

    of_diffusers = True

    def __init__(self, module: torch.nn.Module) -> None:
        self.bare: Session | None = None
        self.users = 0
        self._head: Head | None = None
        self._entered = threading.local()
        methods: dict[str, Any] = {"__call__": self._called}
        shown: dict[str, Any] = {}
        if hasattr(type(module), "cache_context"):
            methods["cache_context"] = self._context
        elif hasattr(module, "cache_context"):  # of a module that torch.compile wrapped
            inner = original(module)
            shown["cache_context"] = lambda *args, **kwargs: self._context(inner.cache_context, *args, **kwargs)
        self.worn = Worn(module, self, methods, shown)
        self.worn.attach()

    @property
    def context(self) -> str | None:
        """See above."""
        entered = getattr(self._entered, "names", None)
        return entered[-1] if entered else None

    def head(self, module: torch.nn.Module) -> Head:
        """The head of the transformer, which is put on once.

        Raises:
            TypeError: see :class:`Head`.
        """
        with _lock:
            if self._head is None:
                self._head = Head(module)
                self._head.put_on()
            return self._head

    def leave(self) -> None:
        """One user less; the last takes the relay off."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                self.worn.detach()
                if self._head is not None:
                    self._head.take_off()

    def _called(self, inside: Any, *args: Any, **kwargs: Any) -> Any:
        module, calls = inside.__self__, under_way()
        session = calls[-1].get(id(module)) if calls else self.bare
        return inside(*args, **kwargs) if session is None else session.serve(self, module, inside, args, kwargs)

    @contextmanager
    def _context(self, inside: Any, name: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if not hasattr(self._entered, "names"):
            self._entered.names = []
        names = self._entered.names
        names.append(getattr(name, "name", name))
        try:
            with inside(name, *args, **kwargs) as entered:
                yield entered
        finally:
            names.pop()


def seat(module: torch.nn.Module) -> Relay:
    """The relay that a transformer wears, for one user more.

    Raises:
        TypeError: it wears something else, or cannot wear anything.
    """
    with _lock:
        found = attached(module)
        relay = found if isinstance(found, Relay) else Relay(module)
        relay.users += 1
        return relay
