"""Where one run of a loop stands: its step, and how the calls within a step are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from forecache import Corrector

from .call import Call

MANY = 8  # calls of one branch at a run's first step, from which on it is taken for one that does not move


class Track:
    """One run over ``times``.

    A branch is a cache context (``cond``, ``uncond``), or ``call`` where there is none; another call of it within a
    step is ``call[1]``.

    Two signals must agree: the step that is counted, and the timestep that the transformer gets. Within a step it is
    one and the same, and from step to step it goes one way. Where they do not, the run is :meth:`lost`.

    Args:
        times: N + 1 of them. whole: of the run, of which another transformer may have a part.
    """

    def __init__(self, times: Sequence[float], whole: Sequence[float]) -> None:
        self.times, self.whole = list(times), list(whole)
        self.run: Any = None
        self.why: str | None = None
        self.corrector: bool | Corrector = False  #: what the scheduler admits
        self.remark: str | None = None  #: for the trace
        self.i, self.name = -1, "call"
        self.calls, self.known = Counter[str](), set[str]()
        self.seen: list[tuple[int, float]] = []  # steps, and the timesteps that were read there

    def lost(self, why: str) -> None:
        """The steps cannot be told apart any more."""
        self.why = self.why or why

    def enter(self, i: int, call: Call) -> None:
        """A call at step ``i``. Its timestep is read where that does not wait for a device, and of the first of a name:
        a run whose steps are counted wrongly shows itself by calls that come twice.
        """
        if i != self.i:
            self.i = i
            self.calls.clear()
        branch = call.context or "call"
        self.calls[branch] += 1
        times = self.calls[branch]
        self.name = branch if times == 1 else f"{branch}[{times - 1}]"
        if not 0 <= i < len(self.times) - 1:
            self.lost(f"step {i} of a grid of {len(self.times) - 1}")
        if self.name not in self.known or not call.waits:
            self.known.add(self.name)
            self._compare(i, call)
        if i == 0 and times > MANY:
            self.lost(f"{times} calls of {branch!r} at the first step, and no step advances")

    def _compare(self, i: int, call: Call) -> None:
        now = call.timestep
        if now is None:
            return
        if not self.seen or self.seen[-1][0] != i:
            (first, last) = (self.seen[0][1], self.seen[-1][1]) if self.seen else (now, now)
            if (now - last) * (last - first) < 0:
                self.lost(f"the transformer's timestep turns back at step {i}, from {last:g} to {now:g}")
            self.seen.append((i, now))
        elif self.seen[-1][1] != now:
            self.lost(
                f"the transformer's timestep goes from {self.seen[-1][1]:g} to {now:g} while the loop stands at step"
                f" {i}: its steps are counted elsewhere, or two loops share the transformer"
            )

    def close(self) -> None:
        """Free every snapshot."""
        if self.run is not None:
            self.run.close()
        self.run = None
