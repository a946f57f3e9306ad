"""One run of the patched ``FlowEulerSampler``: which step it is at, and which branch a call stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..branches import same_tensor
from ..run import FAULTS, Run, misplaced
from ..sparse import Places, is_sparse


class Guidance(NamedTuple):
    """Classifier-free guidance of one run: ``g`` of ``u + g (c - u)``, where it is on, and its rescale."""

    scale: float
    interval: tuple[float, float]
    rescale: float = 0.0

    def reaches(self, times: Sequence[float]) -> bool:
        """Whether it is on at any of ``times``: both ends included, compared as the samplers do it."""
        return any(self.interval[0] <= t <= self.interval[1] for t in times)


class FlowRun(Run):
    """One call of ``sample``: its grid, its step, and what serves its branches.

    Args:
        sampler, model, cond: of the call; negative: ``neg_cond``.
        guidance: of the call, as far as it is known.
    """

    def __init__(
        self, sampler: Any, stage: str, model: Any, cond: Any, negative: Any, guidance: Guidance | None
    ) -> None:
        super().__init__()
        self.sampler, self.stage, self.model, self.guidance = sampler, stage, model, guidance
        self.cond, self.negative = cond, negative
        self.times: list[float] = []
        self.i = -1
        self.asked: list[tuple[str, Any]] | None = None  # branch and x_t of the calls in this step; None: between steps
        self.images: list[Any] = []

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
        if self.server is not None and (why := misplaced(self.i, t, self.times)) is not None:
            self.off(why)

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

    def kind_of(self, name: str, x_t: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call a branch gets."""
        kind = self.kind(name, arguments)
        return {**kind, "voxels": Places(x_t)} if is_sparse(x_t) else kind
