"""Adaptive guidance: which steps call the network for the unconditional branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forecache import AdaptiveGuidance, schedule

from .branches import NOTHING, Apart, Compute, Kind
from .handle import StageTrace
from .settings import Settings
from .sparse import is_sparse


class Adaptive(Apart):
    """A history of ``cond`` and one of the guidance difference ``d = c - u``: adaptive guidance.

    At a step that computes ``cond``, ``uncond`` is called only if ``d`` cannot be forecast well enough; where it is
    not, and at forecast steps, ``u = c - d^``. The last guided step counts as the last one here: behind it nothing
    takes the error of the guidance term out of the sample again, so both branches are called if ``cond`` is computed.

    Args:
        settings: of the stage.
        times: the N + 1 grid times.
        trace: filled.
        strengths: s of ``c + s (c - u)`` by step; 0 where guidance is off.
        label: see :class:`Apart`.
    """

    def __init__(
        self, settings: Settings, times: Sequence[float], trace: StageTrace, strengths: Sequence[float], label: str = ""
    ) -> None:
        super().__init__(settings, times, trace.branches, label=label)
        self.trace, self.strength = trace, max(strengths)
        self.guided = [i for i, s in enumerate(strengths) if s > 0]
        self.guidance: AdaptiveGuidance | None = None
        self.computed, self.cond = False, None
        self.kinds: dict[str, Kind] = {}  # of the newest call, by branch

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`.

        Raises:
            ValueError: a branch that is neither ``cond`` nor ``uncond``; ``uncond`` without the other.
        """
        if name not in ("cond", "uncond"):
            raise ValueError(f"adaptive_guidance: it serves one condition and its negative, not {name!r}")
        kind = {**self.form, **kind}
        if self.kinds.get(name, kind) != kind:
            self.guidance = None  # d is a difference of calls of other kinds
        self.kinds[name] = kind
        if name == "uncond":
            return self._uncond(compute)
        self.computed = False

        def noted() -> Any:
            self.computed = True
            return compute()

        self.cond = super().branch(name, noted, kind)
        return self.cond

    def _uncond(self, compute: Compute) -> Any:
        cond, self.cond = self.cond, None
        if cond is None or self.i > self.guided[-1]:
            raise ValueError(
                f"adaptive_guidance: the sampler asks for 'uncond' alone, or behind its end, at step {self.i}"
            )
        if self.guidance is None:
            times = self.times[: self.guided[-1] + 2]
            self.guidance = self.settings.guidance(times, self.strength, None if is_sparse(cond) else 0)
        if not self.computed and not self.guidance.fits(cond):  # begun anew: no full step, but nothing to forecast from
            return compute()
        if self.computed and self.guidance.needs_uncond(self.i, cond):
            value = compute()
            self.guidance.observe(self.i, cond, value)
            self.trace.notes.extend(note for note in self.guidance.notes if note not in self.trace.notes)
            return value
        self.trace.saved += self.computed
        return self.guidance.uncond(self.i, cond)

    def _schedule(self, name: str) -> frozenset[int]:
        """``d`` needs two steps at which both branches were called; an exact budget stays one."""
        steps, exact = range(len(self.times) - 1), self.settings.calls is not None
        return frozenset(schedule.with_edges(sorted(super()._schedule(name)), steps, self.guided[:2], exact))

    def close(self) -> None:
        """See :class:`Server`."""
        super().close()
        self.guidance = self.cond = None
