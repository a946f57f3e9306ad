"""One sampling run: what serves it, of what kind its calls are, and how the cache goes off."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .branches import Compute, Kind, Server, close
from .handle import StageTrace
from .kinds import Kinds

FAULTS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)  #: of ours: the run goes on without us


class Run:
    """What every run has, however its sampler is attached to. It is freed when the sampler's call ends.

    Which step it is rests on two signals: how many there were, and the time that the sampler names. What cannot be
    followed switches the cache off for the rest of the run, and the trace says why.

    Args:
        trace: filled.
        given: the cache is the user's own, such as a calibration's, which misses what it cannot follow.
    """

    def __init__(self, trace: Any = None, given: bool = False) -> None:
        self.trace = StageTrace() if trace is None else trace
        self.given = given
        self.server: Any = None  # a Server; a forecaster, where the loop itself asks what to do at a step
        self.kinds: dict[Any, Kinds] = {}

    def off(self, why: str, since: str = "off") -> None:
        """Every call from now on is the sampler's own.

        Raises:
            ValueError: with a cache of the user's own.
        """
        if self.given:
            raise ValueError(f"cache: it cannot follow this run: {why}")
        note = f"{since}: {why}"
        warnings.warn(f"forecache is {note}", stacklevel=4)
        self.note(note)
        self.close()

    def note(self, text: str) -> None:
        """Say something of the run, once."""
        if text not in self.trace.notes:
            self.trace.notes.append(text)

    def close(self) -> None:
        """Free every snapshot, and what calls were compared with."""
        server, self.server, self.kinds = self.server, None, {}
        if server is not None:
            close(server)

    def kind(self, name: Any, arguments: Mapping[str, Any], moving: Collection[str] = ()) -> dict[str, Any]:
        """The kind of a branch's call with these arguments; ``moving``: see :class:`~forecache_adapters.kinds.Kinds`"""
        if name not in self.kinds:
            self.kinds[name] = Kinds(moving)
        return self.kinds[name].of(arguments)

    def branch_or_off(self, server: Server, name: str, compute: Compute, kind: Callable[[], Kind]) -> Any:
        """The server's value for a branch. What it cannot serve switches it off, and the value is computed."""
        made: list[Any] = []
        inside = False

        def noted() -> Any:
            nonlocal inside
            inside = True
            made.append(compute())
            inside = False
            return made[0]

        try:
            return server.branch(name, noted, kind())
        except FAULTS as error:
            if inside or self.given:  # the network's own error, or for the user's cache to say
                raise
            self.off(str(error))
            return made[0] if made else compute()

    def asks_again(self, server: Server | None) -> bool:
        """See :meth:`Server.asks_again`; what it cannot serve switches it off."""
        try:
            return server is not None and server.asks_again()
        except FAULTS as error:
            if self.given:
                raise
            self.off(str(error))
            return False


def misplaced(i: int, t: Any, times: Sequence[float], beyond: str = "", elsewhere: str = "") -> str | None:
    """Why a call at the time ``t`` cannot be step ``i`` of a grid; ``None``: it is.

    ``beyond``, ``elsewhere``: put before the reason that there is no such step, or that the time is another step's.
    """
    if i >= len(times) - 1:
        return f"{beyond}step {i} of a grid of {len(times) - 1}"
    try:
        gaps = [abs(float(t) - known) for known in times[:-1]]
    except FAULTS:
        return f"step {i} has no time that could be compared, but {t!r}"
    if gaps[i] <= min(gaps):
        return None
    return f"{elsewhere}step {i} as they are counted, but step {gaps.index(min(gaps))} by its time {float(t):.6g}"
