"""The steps of a loop of one's own, of which only their number is known."""

from __future__ import annotations

import threading
from typing import Any

import torch

from .call import Call, distance
from .track import Track

NEAR = 0.7  # in a short step the latents of a request move by less of their norm; those of two are sqrt(2) apart
ROUNDED = 8 * torch.finfo(torch.bfloat16).eps  # they move by less where the timestep's rounding hides the step
LIVE = 8  # requests at once


class Request(Track):
    """One run, which knows its newest latents.

    Args:
        steps: their number; a step's number is its time.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(range(steps + 1), range(steps + 1))
        self.timesteps: list[float] = []  # of the first step and of this one
        self.states: list[Any] = []  # the newest latents, of each form
        self.here: list[tuple[str | None, Any]] = []  # contexts and latents of this step's calls
        self.begun = self.touched = 0

    @property
    def ended(self) -> bool:
        """Whether it is at its last step."""
        return self.i == len(self.times) - 2

    def goes_on(self, timestep: float) -> bool:
        """Whether ``timestep`` may be that of this step or of the next."""
        first, last = self.timesteps
        return timestep == last or not (self.ended or (timestep - last) * (last - first) < 0)

    def away(self, state: Any) -> float | None:
        """How far its newest latents are; ``None``: it had none of this form."""
        return next((found for each in self.states if (found := distance(state, each)) is not None), None)

    def had(self, call: Call) -> bool:
        """Whether the call came here before, as where the same request was broken off at this step."""
        came = any(context == call.context and distance(call.state, state) == 0 for context, state in self.here)
        return call.timestep == self.timesteps[1] and came

    def is_next(self, call: Call) -> bool:
        """Whether the call, which goes on here, is the next step's.

        A timestep that was rounded may be the same at two steps. Then the latents have moved a little since the same
        branch was called.
        """
        if self.i < 0 or call.timestep != self.timesteps[1]:
            return True
        rounded = float(torch.tensor(call.timestep).bfloat16()) == call.timestep
        moved = [distance(call.state, state) for context, state in self.here if context == call.context]
        known = [each for each in moved if each is not None]
        return rounded and not self.ended and bool(known) and 0 < min(known) <= ROUNDED

    def take(self, call: Call, clock: int) -> None:
        """The call is this request's: one of this step or of the next."""
        following, now = self.is_next(call), call.timestep
        if following:
            self.here = []
        self.enter(self.i + following, call)
        state = call.state.detach().clone() if isinstance(call.state, torch.Tensor) else None
        self.states = [each for each in self.states if distance(each, state) is None]
        self.states += [] if state is None else [state]
        self.here.append((call.context, state))
        self.timesteps, self.touched = [self.timesteps[0] if self.timesteps else now, now], clock  # type: ignore[list-item]

    def close(self) -> None:
        """See :class:`Track`."""
        super().close()
        self.states, self.here = [], []


class Counted:
    """Another timestep is another step, and its number is the time.

    A run begins where no other goes on: after ``steps`` steps, where timesteps turn back, or with other latents at the
    timestep of a run. Requests that take turns, or threads, are told apart by their timesteps and latents.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.requests: list[Request] = []
        self.surplus: Request | None = None
        self._clock, self._lock = 0, threading.RLock()

    def locate(self, call: Call) -> Track:
        """See :class:`~.steps.Steps`."""
        with self._lock:
            self._clock += 1
            if call.timestep is None:
                return self._lost("the transformer is called without a timestep, so its steps cannot be told apart")
            request = self._asked(call, call.timestep) or self._begun()
            if request is None:
                return self._lost(f"more than {LIVE} requests share the transformer")
            request.take(call, self._clock)
            return request

    def _asked(self, call: Call, timestep: float) -> Request | None:
        """The request that goes on with a call; ``None``: none does."""
        going = sorted((each for each in self.requests if each.goes_on(timestep)), key=lambda each: -each.touched)
        if not going:
            return None
        newest = going[0]
        on_its_way = newest.timesteps[0] != newest.timesteps[1]
        if len(self.requests) == 1 and on_its_way and timestep != newest.timesteps[1]:
            return newest
        away = [(found, each) for each in going if (found := each.away(call.state)) is not None]
        if not away or away[0][1] is not newest:
            return newest
        if away[0][0] <= NEAR:
            away = [away[0], *(each for each in away[1:] if not each[1].had(call))]
        nearest = min(found for found, _ in away)
        found, best = next(each for each in away if each[0] <= 2 * nearest)  # of two that are alike, the newer
        begins = timestep == best.timesteps[1] or best.timesteps[0] == best.timesteps[1]
        return None if begins and found > NEAR else best

    def _begun(self) -> Request | None:
        """A new one; those that came to their end, or were broken off before, are closed."""
        since = max((each.begun for each in self.requests if each.ended), default=0)
        over = [each for each in self.requests if each.ended or each.touched < since]
        for each in over:
            each.close()
        self.requests = [each for each in self.requests if each not in over]
        if len(self.requests) == LIVE:
            return None
        request = Request(self.steps)
        request.begun = self._clock
        self.requests.append(request)
        return request

    def _lost(self, why: str) -> Request:
        self.surplus = self.surplus or Request(self.steps)
        self.surplus.lost(why)
        return self.surplus

    def close(self) -> None:
        """See :class:`~.steps.Steps`."""
        with self._lock:
            for each in (*self.requests, *([self.surplus] if self.surplus else [])):
                each.close()
            self.requests, self.surplus = [], None
