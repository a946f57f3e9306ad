"""Which step of which run a call of the transformer belongs to, and the times of its grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

TIMESTEP = ("timestep", "timesteps", "t")  # names of a transformer's timestep argument


class Steps(Protocol):
    """Tells the steps of a loop apart."""

    times: list[float]
    whole: list[float]  #: times of the run, of which another transformer may have a part

    def locate(self, timestep: Callable[[], float]) -> tuple[bool, int]:
        """For the call that is about to be made: whether it is the first of a run, and its step in ``times``.

        ``timestep`` reads the argument of the call; on a GPU that waits for the device, so it is read only if needed.
        """


def is_flow(scheduler: Any) -> bool:
    """Whether the model predicts a velocity, and ``sigma`` is its time in ``x = (1 - sigma) x0 + sigma noise``."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def grid(scheduler: Any) -> list[float]:
    """The N + 1 times of a scheduler whose timesteps are set.

    Sigmas for a flow-matching model. Timesteps otherwise, and one more, as far behind the last as that is behind its
    own: where the loop ends has no timestep.

    Raises:
        ValueError: a scheduler that calls the network more than once a step, or whose timesteps repeat.
    """
    name, order = type(scheduler).__name__, getattr(scheduler, "order", 1)
    if order != 1:
        raise ValueError(f"scheduler: {name} calls the network {order} times a step")
    if is_flow(scheduler):
        return numbers(scheduler.sigmas)
    times = numbers(scheduler.timesteps)
    if len(set(times)) < len(times):
        raise ValueError(f"scheduler: {name} repeats timesteps, its steps cannot be told apart: {times}")
    return [*times, 2 * times[-1] - times[-2] if len(times) > 1 else times[0] - 1]


def numbers(values: Any) -> list[float]:
    """Of a tensor on any device, read at once: each number by itself would wait for a GPU."""
    return [float(value) for value in torch.as_tensor(values).cpu().tolist()]


class Scheduled:
    """Steps as a scheduler counts them; ``set_timesteps`` begins a run, ``set_begin_index`` cuts its grid.

    A scheduler that does not count (DDIM, DDPM) has the step at which the transformer's timestep stands.

    Args:
        scheduler: returns the one in use, which may be another at the next run.
        until: returns the last timestep of this transformer, where another takes over (Wan 2.2); ``None``: all.
    """

    def __init__(self, scheduler: Callable[[], Any], until: Callable[[], float | None] = lambda: None) -> None:
        self.scheduler, self.until = scheduler, until
        self.timesteps: Any = None
        self.known: list[float] = []  # those timesteps, where the scheduler does not count
        self.times: list[float] = []
        self.whole: list[float] = []
        self.begin = 0

    def locate(self, timestep: Callable[[], float]) -> tuple[bool, int]:
        """See :class:`Steps`.

        Raises:
            ValueError: see :func:`grid`; or the timestep is none of the scheduler's.
        """
        scheduler = self.scheduler()
        fresh = scheduler.timesteps is not self.timesteps
        step = self._step(scheduler, timestep)
        if fresh:
            times, until = grid(scheduler), self.until()
            mine = len(times) - 1 if until is None else sum(t >= until for t in numbers(scheduler.timesteps))
            first = int(scheduler.begin_index or 0) if hasattr(scheduler, "step_index") else step
            self.times, self.whole, self.begin = times[step : mine + 1], times[first:], step
            self.timesteps = scheduler.timesteps
        return fresh, step - self.begin

    def _step(self, scheduler: Any, timestep: Callable[[], float]) -> int:
        if hasattr(scheduler, "step_index"):
            counted = scheduler.step_index
            return int((scheduler.begin_index or 0) if counted is None else counted)
        if scheduler.timesteps is not self.timesteps:
            self.known = numbers(scheduler.timesteps)
        wanted = timestep()
        if wanted not in self.known:
            raise ValueError(f"scheduler: {type(scheduler).__name__} has no timestep {wanted} of the transformer's")
        return self.known.index(wanted)


class Counted:
    """Steps of a loop of one's own: another timestep is another step, and its number is the time.

    A run begins after ``steps`` of them, or where they turn back: the loop was broken off.
    """

    def __init__(self, steps: int) -> None:
        self.times = self.whole = [float(i) for i in range(steps + 1)]
        self.seen: list[float] = []

    def locate(self, timestep: Callable[[], float]) -> tuple[bool, int]:
        """See :class:`Steps`."""
        now = timestep()
        if self.seen and now == self.seen[-1]:
            return False, len(self.seen) - 1
        turned = len(self.seen) > 1 and (now - self.seen[-1]) * (self.seen[-1] - self.seen[0]) < 0
        if turned or len(self.seen) == len(self.times) - 1:
            self.seen = []
        self.seen.append(now)
        return len(self.seen) == 1, len(self.seen) - 1
