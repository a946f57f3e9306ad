"""What every adapter's ``enable`` takes, checked when it is called and not when sampling starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache import Forecaster, Plan, Trace
from forecache.schedule import effective_steps

FEW_STEPS = 8  # a step-distilled model leaves nothing to forecast


@dataclass(frozen=True)
class Settings:
    """Keywords of :class:`forecache.Forecaster` that a user of a generator chooses.

    ``few_steps=True`` keeps the cache on in a run of at most 8 steps, where it switches itself off otherwise.
    """

    basis: Any = "auto"
    interval: int | None = None
    warmup: int | None = None
    end: int | None = None
    calls: int | None = None
    plan: Plan | str | Path | None = None
    strict: bool = True
    history: int = 6
    order: int | None = None
    sigma: float | None = None
    few_steps: bool = False

    def __post_init__(self) -> None:
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls must be >= 1, got {self.calls}")
        if self.plan is None:  # a plan knows its own grid and is checked against the run's
            self._forecaster(range(1001), {})

    def _forecaster(self, times: Sequence[float], made_for: Mapping[str, Any]) -> Forecaster:
        return Forecaster(
            self.basis, times=times, interval=self.interval, warmup=self.warmup, end=self.end, calls=self.calls,
            plan=self.plan, strict=self.strict, history=self.history, order=self.order, sigma=self.sigma,
            made_for=made_for,
        )  # fmt: skip

    def begin(self, times: Sequence[float], made_for: Mapping[str, Any]) -> tuple[Forecaster | None, Trace]:
        """A forecaster for one run over ``times``, and the trace it writes; ``None`` where the cache stays off."""
        effective = effective_steps(times)
        if len(effective) <= FEW_STEPS and not self.few_steps:
            trace = Trace()
            trace.notes.append(f"off: {len(effective)} steps, a distilled model's count (few_steps=True overrides)")
            warnings.warn(f"forecache is {trace.notes[0]}", stacklevel=3)
            return None, trace
        forecaster = self._forecaster(times, made_for)
        return forecaster, forecaster.trace
