"""What happened in a run: which steps computed, which rule served the others, and how wrong it would have been."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .rules.guard import Served


@dataclass(frozen=True)
class Step:
    """One step of the sampler.

    Attributes:
        kind: "computed", "forecast", or "still" (dt = 0: the newest value is handed back and moves nothing).
        rules: rule used per stream; on a computed step, what corrected it, if anything did.
        fallbacks: reasons per stream, where a better rule was passed over.
        forward_error: per stream, on computed steps: the largest over the items of ``||v - v_hat|| / ||v||`` for the
            forecast that the window would have made here.
        skill: the same divided by the error of reuse.
        corrected: per stream, on computed steps: what was added to the value, relative to it, where a corrector was at
            work; the largest over the items.
    """

    index: int
    time: float
    kind: Literal["computed", "forecast", "still"]
    rules: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, list[str]] = field(default_factory=dict)
    forward_error: dict[str, float] = field(default_factory=dict)
    skill: dict[str, float] = field(default_factory=dict)
    corrected: dict[str, float] = field(default_factory=dict)

    def tell(self, stream: str, served: Sequence[Served]) -> None:
        """Note the rules that served the items of a stream, and why better ones were passed over, each once."""
        self.rules[stream] = "/".join(dict.fromkeys(each.rule for each in served))
        if reasons := list(dict.fromkeys(reason for each in served for reason in each.fallbacks)):
            self.fallbacks[stream] = reasons


class Trace:
    """Steps of one run, in order."""

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self.steps: list[Step] = []
        self.notes = list(notes)  #: what the run as a whole did otherwise than asked, e.g. switched itself off

    def note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def computed(self) -> int:
        """How many times the network ran."""
        return sum(step.kind == "computed" for step in self.steps)

    @property
    def forecast(self) -> int:
        return sum(step.kind == "forecast" for step in self.steps)

    @property
    def fallbacks(self) -> int:
        """Forecast steps on which at least one stream was served by a lower rule than asked."""
        return sum(bool(step.fallbacks) for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {
            "computed": self.computed,
            "forecast": self.forecast,
            "fallbacks": self.fallbacks,
            "notes": list(self.notes),
            "steps": [asdict(step) for step in self.steps],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)
