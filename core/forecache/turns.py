"""One caller at a time; whoever is interrupted gives its turn back, wherever that happens."""

from __future__ import annotations

import sys
import threading
from types import FrameType, TracebackType


class Turns:
    """Refuses a second caller while a first is at work, in another thread or within the first.

    A ``KeyboardInterrupt`` may come between any two instructions, also between taking a lock and the ``try`` that would
    release it. So a turn belongs to the frame that took it: once that frame runs in no thread, the turn is free again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: FrameType | None = None

    def __call__(self, what: str) -> Turn:
        """``with turns("step 3"):`` a turn as long as the block; ``what`` begins the message of a refusal."""
        return Turn(self, what)

    def take(self, what: str, holder: FrameType) -> None:
        """Raises ``RuntimeError``, which begins with ``what``, where another frame is at work."""
        if not self._lock.acquire(blocking=False):
            # no holder yet: a thread that is about to name itself, or one that was interrupted before it could
            free = self._holder is None and self._lock.acquire(timeout=0.05)
            if not free and self._holder is not None and runs(self._holder):
                raise RuntimeError(
                    f"{what} while this Forecaster is at work in another call, of another thread or of the compute() "
                    "that is running; a Forecaster serves one run at a time: give each thread and each nested run its "
                    "own"
                )
        self._holder = holder

    def give(self) -> None:
        """The turn of the frame that took it ends."""
        self._holder = None
        self._lock.release()


class Turn:
    """A context manager: the turn of the frame that holds the ``with`` statement."""

    def __init__(self, turns: Turns, what: str) -> None:
        self.turns, self.what = turns, what

    def __enter__(self) -> None:
        self.turns.take(self.what, sys._getframe(1))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.turns.give()


def runs(frame: FrameType) -> bool:
    """Whether ``frame`` is on the stack of any thread."""
    for top in sys._current_frames().values():
        here: FrameType | None = top
        while here is not None:
            if here is frame:
                return True
            here = here.f_back
    return False
