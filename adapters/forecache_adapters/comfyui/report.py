"""Traces as text, for the log and for a node."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from forecache import Trace

from ..handle import StageTrace


def summary(trace: StageTrace | Trace) -> str:
    """A line each: computed steps, network calls by branch, rules that served, notes."""
    branches = trace.branches if isinstance(trace, StageTrace) else {"velocity": trace}
    lines, rules = [], Counter[str]()
    notes = [*trace.notes]
    for name, each in branches.items():
        notes += [note for note in each.notes if note not in notes]
        lines.append(f"{name}: {each.computed} of {len(each.steps)} steps computed")
        rules.update(rule for step in each.steps if step.kind == "forecast" for rule in step.rules.values())
    if isinstance(trace, StageTrace):
        lines.append("network calls: " + (", ".join(f"{n} {name}" for name, n in trace.calls.items()) or "none"))
    if rules:
        lines.append("forecasts: " + ", ".join(f"{n} {rule}" for rule, n in sorted(rules.items())))
    return "\n".join([*lines, *notes])


def texts(traces: Mapping[str, Any]) -> tuple[str, str]:
    """Summary and JSON of the traces of some stages; of none: that there was no run."""
    if not traces:
        return "no run yet, or no forecast: give the very MODEL or pipeline that the sampler got", "{}"
    lines = [f"[{stage}]\n{summary(trace)}" for stage, trace in traces.items()]
    return "\n".join(lines), json.dumps({stage: trace.to_dict() for stage, trace in traces.items()}, indent=1)
