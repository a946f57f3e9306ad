"""One run of the patched ``FlowEulerSampler``: which step it is at, and which branch a call stands for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..branches import Server, StageTrace, same_tensor
from ..kinds import Kinds
from ..sparse import Places, is_sparse

FAULTS = (ValueError, TypeError, RuntimeError)  #: of what serves a run, or tells its steps: the run goes on without


class Guidance(NamedTuple):
    """Classifier-free guidance of one run: ``g`` of ``u + g (c - u)``, where it is on, and its rescale."""

    scale: float
    interval: tuple[float, float]
    rescale: float = 0.0

    def reaches(self, times: Sequence[float]) -> bool:
        """Whether it is on at any of ``times``: both ends included, compared as the samplers do it."""
        return any(self.interval[0] <= t <= self.interval[1] for t in times)


class Run:
    """One call of ``sample``: its grid, its step, and what serves its branches. Freed when the call ends.

    Which step it is rests on two signals: how many there were, and the time that the sampler names. What cannot be
    followed switches the cache off for the rest of the run, and the trace says why.

    Args:
        sampler, model, cond: of the call; negative: ``neg_cond``.
        guidance: of the call, as far as it is known.
    """

    def __init__(
        self, sampler: Any, stage: str, model: Any, cond: Any, negative: Any, guidance: Guidance | None
    ) -> None:
        self.sampler, self.stage, self.model, self.guidance = sampler, stage, model, guidance
        self.cond, self.negative = cond, negative
        self.trace = StageTrace()
        self.server: Server | None = None
        self.given = False  # a cache of the user's own, such as a calibration's
        self.times: list[float] = []
        self.i = -1
        self.asked: list[tuple[str, Any]] | None = None  # branch and x_t of the calls in this step; None: between steps
        self.images: list[Any] = []
        self.kinds: dict[str, Kinds] = {}

    def off(self, why: str) -> None:
        """Every call from now on is the sampler's own.

        Raises:
            ValueError: what the run was to be used for, with a cache of the user's own, is not to be had.
        """
        if self.given:
            raise ValueError(f"cache: it cannot follow this run: {why}")
        self.trace.notes.append(f"off: {why}")
        warnings.warn(f"forecache is off: {why}", stacklevel=4)
        self.close()

    def close(self) -> None:
        """Free every snapshot."""
        server, self.server = self.server, None
        if server is not None:
            server.close()

    def grid(self, pairs: Any) -> str | None:
        """Take the run's ``(t, t_prev)``; returns why nothing can be served on them, if so."""
        try:
            if len(pairs) == 0:
                return "no step moves the state"
            times = [float(pairs[0][0]), *(float(after) for _, after in pairs)]
            apart = any(float(t) != before for (t, _), before in zip(pairs, times, strict=False))
        except FAULTS as error:
            return f"the grid is no list of times: {error}"
        if apart:
            return "a step begins where the one before did not end"
        if len(set(times)) < len(times):
            return "the grid names a time twice"  # nothing is saved by its still steps: `pred_x_0` shows their velocity
        self.times = times
        return None

    def advance(self, t: Any) -> None:
        """A step begins at the time ``t``."""
        self.i += 1
        if self.server is None:
            return
        if self.i >= len(self.times) - 1:
            return self.off(f"step {self.i} of a grid of {len(self.times) - 1}")
        try:
            gaps = [abs(float(t) - known) for known in self.times[:-1]]
        except FAULTS:
            return self.off(f"step {self.i} has no time that could be compared, but {t!r}")
        if gaps[self.i] > min(gaps):
            nearest = gaps.index(min(gaps))
            self.off(f"step {self.i} as they are counted, but step {nearest} by its time {float(t):.6g}")

    def name(self, cond: Any, x_t: Any) -> str:
        """The branch that a call stands for.

        Calls of one condition in one step, all of them at the step's state, are told apart by their order.
        """
        name = self._named(cond)
        if self.asked is None:
            return name
        before = [state for known, state in self.asked if known == name]
        self.asked.append((name, x_t))
        if not before:
            return name
        if self.server is not None and not same_tensor(before[0], x_t):
            self.off(f"step {self.i} asks for {name!r} again, at another state")
        return f"{name}, call {len(before) + 1}"

    def _named(self, cond: Any) -> str:
        if self.negative is not None and same_tensor(cond, self.negative):
            # where both are one tensor, the samplers ask for cond first
            return "cond" if self.asked == [] and same_tensor(cond, self.cond) else "uncond"
        if same_tensor(cond, self.cond):
            return "cond"
        for k, known in enumerate(self.images):
            if same_tensor(cond, known):
                return f"cond[{k}]"
        self.images.append(cond)  # kept, so that its address is not given to another
        return f"cond[{len(self.images) - 1}]"

    def kind(self, name: str, x_t: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call a branch gets."""
        kind = self.kinds.setdefault(name, Kinds()).of(arguments)
        return {**kind, "voxels": Places(x_t)} if is_sparse(x_t) else kind
