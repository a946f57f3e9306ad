"""A calibrator in cache-dit's sense: it is shown what computed steps give and asked for it on the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from cache_dit import CalibratorConfig
from cache_dit.caching.cache_contexts.calibrators.base import CalibratorBase

from forecache import Trace, schedule
from forecache.history import History, as_stream
from forecache.rules import Rule, make_rule
from forecache.snapshots import MAX_HISTORY, Unforecastable
from forecache.streams import Stream
from forecache.trace import Step


@dataclass
class Config(CalibratorConfig):  # type: ignore[misc]  # untyped upstream
    """cache-dit's ``CalibratorConfig`` for a rule of this package; :func:`enable` makes it and puts it to work.

    Attributes:
        basis: a name or object of :class:`forecache.Forecaster`.
        history: snapshots kept per stream, at most 8.
        order, sigma: of the rules that have them.
        times: the sampler's own time at each of its steps, for rules whose clock it is; default: the step index, which
            is all that cache-dit tells a calibrator. A run with more steps has the index from there on.
        calibrator_cache_type: "residual" of the middle blocks, or their "hidden_states".
        enable_calibrator, enable_encoder_calibrator: forecast the image stream, the text stream.

    Raises:
        ValueError: an argument out of its range.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    basis: Any = "exponential"
    history: int = 6
    order: int | None = None
    sigma: float | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.calibrator_cache_type not in ("residual", "hidden_states"):
            raise ValueError(
                f"calibrator_cache_type must be 'residual' or 'hidden_states', got {self.calibrator_cache_type!r}"
            )
        if not self.rule().floor <= self.history <= MAX_HISTORY:
            raise ValueError(
                f"history must be {self.rule().floor}..{MAX_HISTORY} for basis {self.rule().name!r}, got {self.history}"
            )
        if self.times is not None:
            self.times = tuple(map(float, self.times))
            schedule.effective_steps(self.times)  # they are finite, and rise or fall
        self.at_work = False  # not a field: cache-dit copies and merges those

    def rule(self) -> Rule:
        """The rule of :attr:`basis`."""
        span = None if self.times is None else (0.0, float(len(self.times)))
        return make_rule(self.basis, span, self.order, self.sigma)

    def strify(self, **kwargs: Any) -> str:
        """The tag in ``cache_dit.summary`` and ``cache_dit.strify``."""
        name = self.rule().name
        return f"forecache({name}, history {self.history})" if kwargs.get("details") else f"forecache-{name}"

    def __repr__(self) -> str:
        return self.strify(details=True)

    def as_dict(self) -> dict[str, Any]:
        """The fields as they are: a rule stays a rule."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_kwargs(self) -> dict[str, Any]:
        """Arguments of the native calibrator that cache-dit builds first and :func:`enable` replaces.

        Raises:
            RuntimeError: handed to ``cache_dit.enable_cache``, where the native one would stay.
        """
        if not self.at_work:
            raise RuntimeError("calibrator_config: call forecache_adapters.cache_dit.enable instead of enable_cache")
        return {}


class Forecasts(CalibratorBase):  # type: ignore[misc]  # untyped upstream
    """One branch's stream of one context: its window, and what served its skipped steps.

    Attributes:
        trace: of the generation. A stream is called what cache-dit calls it, such as ``Bn_residual``.
        lost: its history ended; the branch must be computed before it can be forecast again.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reset_cache()

    def reset_cache(self) -> None:
        """Begin a generation: no snapshot, a trace of its own."""
        self.close()
        self.step, self.trace, self.lost = -1, Trace(), False

    def close(self) -> None:
        """Free every snapshot. The trace stays."""
        self.histories: dict[str, History] = {}

    def forget(self, step: int, note: str) -> None:
        """End the history within a generation, at ``step``."""
        if self.histories:
            self.trace.notes.append(f"step {step}: {note}")
            self.lost = True
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(history.nbytes for history in self.histories.values())

    @property
    def shares(self) -> dict[str, float]:
        """Rules by their share of the skipped steps."""
        served = Counter(rule for step in self.trace.steps for rule in step.rules.values())
        return {rule: count / served.total() for rule, count in served.most_common()}

    @property
    def time(self) -> float:
        """The sampler's time at this step; its index where ``times`` has none, or has come to its end."""
        times = self.config.times
        return float(self.step) if times is None or self.step >= len(times) else float(times[self.step])

    def mark_step_begin(self) -> None:
        """The branch comes to its next step, whether computed or not."""
        self.step += 1
        if self.config.times is not None and self.step == len(self.config.times):
            self.forget(
                self.step, f"times has {self.step} steps and the run more; the clock is the step index from here on"
            )

    def update(self, value: torch.Tensor, name: str = "default") -> None:
        """Take a computed value. One of another form, or that can be no snapshot, ends the history before it."""
        history, packed = self.histories.get(name), as_stream(name, value)
        if history is not None and (other := history.differs(packed)):
            self.forget(self.step, f"a new history begins: {other}")
            history = None
        if history is None or self.time == history.time:  # nothing has moved: the newest snapshot is replaced, and
            history = History(self._stream)  # what led to it goes with it
        self.trace.steps.append(Step(self.step, self.time, "computed"))
        try:
            history.observe(self.step, self.time, packed, score=False)
        except (Unforecastable, torch.cuda.OutOfMemoryError) as reason:
            self.close()
            self.lost = True
            self.trace.notes.append(f"step {self.step}: the history ends, since its value can be no snapshot: {reason}")
        else:
            self.histories[name], self.lost = history, False

    def _stream(self, name: str) -> Stream:
        return Stream(self.config.rule(), self.config.history, 0, None)

    def approximate(self, name: str = "default") -> torch.Tensor | None:
        """The forecast at this step; ``None`` for a stream that no computed step has shown, as cache-dit expects it."""
        if name not in self.histories:
            return None
        entry = Step(self.step, self.time, "forecast")
        value = self.histories[name].forecast(self.step, self.time, entry)[name]
        self.trace.steps.append(entry)
        return value

    def __repr__(self) -> str:
        return self.config.strify(details=True)
