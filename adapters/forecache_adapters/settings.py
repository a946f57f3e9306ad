"""What every adapter's ``enable`` takes, checked when it is called and not when sampling starts."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forecache import AdaptiveGuidance, Corrector, Forecaster, Group, Plan, Trace, schedule
from forecache.rules import Auto, make_rule

FEW_STEPS = 8  # a step-distilled model leaves nothing to forecast


@dataclass(frozen=True)
class Settings:
    """Keywords of :class:`forecache.Forecaster` that a user of a generator chooses.

    ``few_steps=True`` keeps the cache on in a run of at most 8 steps, where it switches itself off otherwise.

    ``corrector``: add to a computed step what the skipped ones before it missed; by default with "auto". It is left
    out, with a note if it was asked for, where the sampler does not add a multiple of the output to the state.

    ``adaptive_guidance``: at computed steps too, leave out the unconditional call while the difference of the branches
    can be forecast: ``True``, or keywords of :class:`forecache.AdaptiveGuidance`, such as ``{"tolerance": 0.01}`` or
    the published test ``{"cosine": 0.94}``. Off by default. In a structure stage a threshold decides which voxels there
    are, so a small error of the guidance adds or takes away whole ones: ask for it there by name of the stage or leave
    it out. It works by itself too, with ``interval=1``.
    """

    basis: Any = "auto"
    interval: int | None = None
    warmup: int | None = None
    end: int | None = None
    calls: int | None = None
    plan: Plan | str | Path | None = None
    strict: bool = True
    history: int = 6
    groups: Mapping[str, Group | Sequence[str]] | None = None
    order: int | None = None
    sigma: float | None = None
    few_steps: bool = False
    corrector: bool | None = None
    adaptive_guidance: bool | Mapping[str, Any] = False

    def __post_init__(self) -> None:
        if self.calls is not None and schedule.whole("calls", self.calls) < 1:
            raise ValueError(f"calls must be >= 1, got {self.calls}")
        if self.corrector not in (True, False, None):
            raise ValueError(f"corrector must be True, False or None (by basis), got {self.corrector!r}")
        given = [name for name in ("interval", "warmup", "end", "calls") if getattr(self, name) is not None]
        if self.plan is not None and given:
            raise ValueError(f"plan: it has its own schedule; leave out {', '.join(given)}")
        if self.calls is not None and len(given) > 1:
            raise ValueError(f"give one of interval, calls, plan; got calls and {', '.join(given[:-1])}")
        if self.plan is None:  # a plan knows its own grid and is checked against the run's
            replace(self, calls=None)._forecaster(range(1001), {}) if self.calls else self._forecaster(range(1001), {})
        elif isinstance(self.plan, (str, Path)):
            Plan.load(self.plan)  # a file that is missing or is no plan is said here
        if self.adaptive_guidance is not False:
            if self.plan is not None:
                raise ValueError("adaptive_guidance: not with a plan, which has weights for both branches")
            self.guidance(range(1001), 1.0, 0)

    def _corrector(self, possible: bool | Corrector) -> bool | Corrector:
        wanted = self.corrector
        if wanted is None:
            wanted = self.basis == "auto" or isinstance(self.basis, Auto)
        return possible if wanted else False

    def _noted(self, cache: Forecaster, possible: bool | Corrector) -> Forecaster:
        if not self.corrector or self.plan is not None:
            return cache
        if isinstance(possible, Corrector) and not possible.share:
            steps = len(possible.positions) - 1
            cache.trace.notes.append(f"no corrector: guidance of {possible.strength:g} is steep for {steps} steps")
        elif not possible and cache.corrector is None:
            cache.trace.notes.append("no corrector: this sampler does not just add a multiple of what is forecast")
        return cache

    def _forecaster(
        self, times: Sequence[float], made_for: Mapping[str, Any], edges: Sequence[int] = (),
        corrector: bool | Corrector = False,
    ) -> Forecaster:  # fmt: skip
        return Forecaster(
            self.basis, times=times, interval=self.interval, warmup=self.warmup, end=self.end, calls=self.calls,
            plan=self.plan, strict=self.strict, history=self.history, groups=self.groups, order=self.order,
            sigma=self.sigma, made_for=made_for, edges=edges, corrector=self._corrector(corrector),
        )  # fmt: skip

    def forecaster(
        self, times: Sequence[float], made_for: Mapping[str, Any], edges: Sequence[int] = (),
        corrector: bool | Corrector = False,
    ) -> Forecaster:  # fmt: skip
        """A forecaster for one run over ``times``, with a schedule of its own. ``corrector``: what the sampler admits,
        see :class:`forecache.Forecaster`.
        """
        return self._noted(self._forecaster(times, made_for, edges, corrector), corrector)

    def begin(
        self, times: Sequence[float], made_for: Mapping[str, Any], corrector: bool | Corrector = False
    ) -> tuple[Forecaster | None, Trace]:
        """As :meth:`forecaster`, and the trace that it writes; ``None`` where the cache stays :meth:`off`."""
        reason = self.off(times)
        if reason is not None:
            trace = Trace()
            trace.notes.append(reason)
            return None, trace
        cache = self.forecaster(times, made_for, corrector=corrector)
        return cache, cache.trace

    def off(self, times: Sequence[float]) -> str | None:
        """Why the cache stays off in a run over ``times``; ``None``: it does not. What a user may want to mend, there
        or by another setting, is said as a warning too.
        """
        try:
            steps = len(schedule.effective_steps(times))
        except ValueError as error:  # times that turn back or are not finite
            return f"off: {error}"
        if steps == 0:
            return "off: no step moves the state"
        reason = None
        if steps <= FEW_STEPS and not self.few_steps:
            reason = f"off: {steps} steps, a distilled model's count (few_steps=True overrides)"
        elif self.calls is not None and self.calls > steps:
            reason = f"off: calls={self.calls} is more than the {steps} steps of this run, so all are computed"
        if reason is not None:
            warnings.warn(f"forecache is {reason}", stacklevel=4)
        return reason

    def computed(self, steps: Sequence[int], total: int) -> frozenset[int]:
        """Which of a branch's ``steps`` call the network, in a run of ``total`` steps.

        The schedule counts the branch's own steps, so that warm-up and interval hold for a branch that takes turns with
        others; a budget of calls is shared out in proportion.
        """
        calls = end = None
        if self.calls is not None:
            calls = min(max(round(self.calls * len(steps) / total), 2), len(steps))
        if self.end is not None:
            end = bisect_left(steps, self.end)
        chosen = schedule.choose(range(len(steps)), self.basis == "auto", self.interval, self.warmup, end, calls)
        return frozenset(steps[k] for k in chosen)

    def guidance(self, times: Sequence[float], scale: float, batch_dim: int | None) -> AdaptiveGuidance:
        """Adaptive guidance for one run: ``times`` to the end of guidance, s of ``c + s (c - u)``.

        Raises:
            ValueError, TypeError: an argument that it does not have, or out of its range.
        """
        options = {} if isinstance(self.adaptive_guidance, bool) else self.adaptive_guidance
        allowed = ("tolerance", "cosine", "warmup", "refresh")
        if not isinstance(options, Mapping) or not set(options) <= set(allowed):
            raise ValueError(
                f"adaptive_guidance must be true, false or settings of {', '.join(allowed)}, got {options!r}"
            )
        rule = make_rule(self.basis, (0.0, float(len(times) - 1)), self.order, self.sigma)
        return AdaptiveGuidance(
            times=times, scale=scale, batch_dim=batch_dim, rule=rule, history=self.history, **options
        )

    def history_of(
        self, times: Sequence[float], batch_dim: int | None, corrector: bool | Corrector = False
    ) -> Forecaster:
        """A forecaster whose caller decides which steps compute; it asks for one itself where it has no history."""
        made = Forecaster(
            self.basis, times=times, computed=schedule.effective_steps(times)[:1], history=self.history,
            groups=self.groups, order=self.order, sigma=self.sigma, batch_dim=batch_dim,
            corrector=self._corrector(corrector),
        )  # fmt: skip
        return self._noted(made, corrector)
