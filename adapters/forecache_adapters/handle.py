"""What ``enable`` returns for every target, and what it says of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forecache import Trace


@dataclass
class StageTrace:
    """What happened in one run of a stage.

    Attributes:
        calls: network calls by branch.
        branches: their traces; with a plan there is one, ``"plan"``.
        notes: why the cache stayed off, if it did.
        saved: unconditional calls that adaptive guidance left out at computed steps.
    """

    calls: dict[str, int] = field(default_factory=dict)
    branches: dict[str, Trace] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    saved: int = 0

    @property
    def computed(self) -> int:
        """Network calls of all branches."""
        return sum(self.calls.values())

    def count(self, name: str) -> None:
        """The network is called for a branch."""
        self.calls[name] = self.calls.get(name, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        branches = {name: trace.to_dict() for name, trace in self.branches.items()}
        return {"calls": dict(self.calls), "branches": branches, "notes": list(self.notes), "saved": self.saved}


class Piece:
    """What one object wears of a handle.

    Attributes:
        below: what a ``with`` block put this over. over: whether that block has ended.
    """

    below: Piece | None = None
    over = False

    def attach(self) -> None:
        """Put it on the object; nothing happens if the object is gone."""
        raise NotImplementedError

    def detach(self) -> None:
        """Take it off; nothing happens if it is not on."""
        raise NotImplementedError

    def current(self) -> Piece | None:
        """What the object wears now: this, another piece, or nothing."""
        raise NotImplementedError

    def end(self) -> None:
        """The ``with`` block that put this on has ended: what it was put over comes back, unless another block, which
        has not ended, put something over this.
        """
        self.over = True
        if self.current() not in (self, None):
            return
        self.detach()
        below = self.below
        while below is not None and below.over:
            below = below.below
        if below is not None:
            below.attach()


class Handle:
    """What ``enable`` returns. It keeps neither the target nor a snapshot of it.

    Attributes:
        traces: what the newest run of each stage did, by the stage's name.
        pieces: what each object of the target wears of this handle.
    """

    traces: dict[str, Any]
    pieces: Sequence[Piece] = ()
    trace_type: type = StageTrace

    @property
    def trace(self) -> Any:
        """The trace of the first stage that ran; an empty one before any run."""
        return next(iter(self.traces.values())) if self.traces else self.trace_type()

    @property
    def calls(self) -> int:
        """Network calls of the newest run, of all stages and branches."""
        return sum(trace.computed for trace in self.traces.values())

    @property
    def notes(self) -> list[str]:
        """What the traces of all stages and branches say: why a cache is off, where a history began anew."""
        found = [note for trace in self.traces.values() for note in _notes(trace)]
        return list(dict.fromkeys(found))


def _notes(trace: Any) -> list[str]:
    return [*trace.notes, *(note for each in getattr(trace, "branches", {}).values() for note in each.notes)]
