"""Which step of which run a call of the transformer belongs to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from .call import Call, distance
from .grid import corrector, grid, numbers
from .track import Track


class Steps(Protocol):
    """Tells the steps of a loop apart."""

    def locate(self, call: Call) -> Track:
        """The run that the call belongs to, at the call's step; it may be lost."""

    def close(self) -> None:
        """End every run: free every snapshot."""


class Scheduled:
    """Steps as a scheduler counts them; ``set_timesteps`` begins a run, ``set_begin_index`` cuts its grid.

    A scheduler that does not count (DDIM, DDPM) has the step at which the transformer's timestep stands; the next is
    the one behind it.

    Args:
        scheduler: returns the one in use, which may be another at the next run.
        until: returns the last timestep of this transformer, where another takes over (Wan 2.2); ``None``: all.
        shared: whether other loops may call the transformer too. Then a run is one thread's, and calls of one branch
            at one step are for the same latents.
    """

    def __init__(
        self,
        scheduler: Callable[[], Any],
        until: Callable[[], float | None] = lambda: None,
        shared: bool = False,
    ) -> None:
        self.scheduler, self.until, self.shared = scheduler, until, shared
        self.timesteps: Any = None
        self.known: list[float] = []  # those timesteps, where the scheduler does not count
        self.begin, self.thread = 0, 0
        self.state: Any = None
        self.track: Track | None = None

    def locate(self, call: Call) -> Track:
        """See :class:`Steps`."""
        scheduler = self.scheduler()
        counts = hasattr(scheduler, "step_index")
        if scheduler.timesteps is not self.timesteps:
            self.close()
            self.timesteps = scheduler.timesteps
            self.known = [] if counts else numbers(scheduler.timesteps)
        now = None if self.track is None else self.begin + self.track.i
        step = self._counted(scheduler) if counts else self._standing(call, now)
        leaps = now is not None and step is not None and step > now + 1
        if self.track is None or (now is not None and step is not None and step < now):  # or it was broken off
            self._begin(scheduler, step or 0, counts)
        elif leaps and counts and self.track.why is None and self.track.i == 0:
            # a loop over a part of the timesteps, of which the scheduler learns with its first step
            self._begin(scheduler, step or 0, counts)
            self.track.remark = f"a new run begins at step {step}, which is not behind step {now}"
        track = self.track
        assert track is not None
        if step is None or (leaps and not counts):
            track.lost(f"the transformer's timestep {call.timestep} is not the next of {type(scheduler).__name__}'s")
        if track.why is None:
            track.enter((step or 0) - self.begin, call)
            self._compare(track, call)
        return track

    def _begin(self, scheduler: Any, step: int, counts: bool) -> None:
        if self.track is not None:
            self.track.close()
        self.begin, self.thread = step, threading.get_ident()
        try:
            times, until = grid(scheduler), self.until()
        except ValueError as reason:
            self.track = Track([], [])
            self.track.lost(str(reason))
            return
        mine = len(times) - 1 if until is None else sum(t >= until for t in numbers(scheduler.timesteps))
        first = int(scheduler.begin_index or 0) if counts else step
        self.track = Track(times[step : mine + 1], times[first:])
        self.track.corrector = corrector(scheduler, step, mine)

    def _compare(self, track: Track, call: Call) -> None:
        """Whether the call is one of the loop whose steps the scheduler counts."""
        if not self.shared:
            return
        if threading.get_ident() != self.thread:
            track.lost("the transformer is called from two threads, and the scheduler counts the steps of one")
        elif sum(track.calls.values()) == 1:
            self.state = call.state
        elif call.state is not self.state and distance(call.state, self.state):
            track.lost(f"two latents at step {track.i}, and the scheduler counts the steps of one request")

    def _counted(self, scheduler: Any) -> int:
        counted = scheduler.step_index
        return int((scheduler.begin_index or 0) if counted is None else counted)

    def _standing(self, call: Call, now: int | None) -> int | None:
        """The step at which the call's timestep stands, as far as its dtype can tell; ``None``: at none."""
        given = call.timestep
        if given is None:
            return None
        near = sorted((abs(t - given), i) for i, t in enumerate(self.known) if abs(t - given) <= call.rounding)
        steps = [i for _, i in near]
        if now is not None:  # one that stays, or goes on, before one that leaps
            stays = bool(self.track and self.track.seen and self.track.seen[-1][1] == given)
            steps = [i for i in ((now, now + 1) if stays else (now + 1, now)) if i in steps] + steps
        return steps[0] if steps else None

    def close(self) -> None:
        """See :class:`Steps`."""
        if self.track is not None:
            self.track.close()
        self.track = self.timesteps = self.state = None
