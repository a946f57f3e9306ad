"""The rows of the table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache import Forecaster, Plan
from forecache.rules import Linear
from forecache_lab.controls import WrongSign

BASES = ("reuse", "taylor", "hermite", "dmd", "chebyshev", "linear", "exponential", "auto")
UNCACHED, FLOOR, FEWER, CONTROL = "uncached", "floor", "fewer steps", "control"


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        key: its folder. label: for the table. group: its line in the plot.
        settings: of the cache; ``None``: there is none.
        steps: of the sampler, if not those of all. other_noise: another picture of each class.
    """

    key: str
    label: str
    group: str
    settings: Mapping[str, Any] | None = None
    steps: int | None = None
    other_noise: bool = False


def methods(
    bases: Sequence[str],
    calls: Sequence[int],
    intervals: Sequence[int],
    plans: Sequence[Path],
    steps: int,
    warmup: int | None,
) -> list[Method]:
    """The uncached run, first; its sampling floor; every basis at every budget; plans; fewer steps; wrong sign.

    Raises:
        ValueError: a basis that there is not, a budget out of its range, a file that is not a plan.
    """
    unknown = sorted(set(bases) - set(BASES))
    if unknown:
        raise ValueError(f"basis must be among {', '.join(BASES)}, got {', '.join(unknown)}")
    if any(not 2 <= k < steps for k in calls):
        raise ValueError(f"calls must be 2..{steps - 1}, got {list(calls)}")
    if any(not 2 <= k < steps for k in intervals):
        raise ValueError(f"interval must be 2..{steps - 1}, got {list(intervals)}")
    budgets: list[dict[str, Any]] = [{"calls": k} for k in calls]
    budgets += [{"interval": k} | ({} if warmup is None else {"warmup": warmup}) for k in intervals]
    rows = [Method(UNCACHED, UNCACHED, UNCACHED), Method(FLOOR, "uncached, other noise", FLOOR, other_noise=True)]
    spent = set()
    for basis in bases:
        for budget in budgets:
            rows.append(Method(*_named(basis, budget), basis, {"basis": basis, **budget}))
            spent.add(len(Forecaster(basis, times=range(steps + 1), **budget).computed))
    for path in plans:
        plan = Plan.load(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        key = f"plan-{re.sub(r'[^A-Za-z0-9._-]', '_', path.stem)}-{digest}"
        rows.append(Method(key, f"plan {path.stem.removeprefix('plan-')}", "plan", {"plan": path}))
        spent.add(len(plan.computed))
    rows += [Method(f"steps{k}", f"uncached, {k} steps", FEWER, steps=k) for k in sorted(spent)]
    if budgets:
        middle = budgets[len(budgets) // 2]
        key, label = _named("linear", middle)
        wrong = {"basis": WrongSign(Linear(1)), **middle}
        rows.append(Method(f"wrong-{key}", f"control: {label}, wrong sign", CONTROL, wrong))
    return rows


def _named(basis: str, budget: Mapping[str, Any]) -> tuple[str, str]:
    key = "-".join([basis, *(f"{name}{value}" for name, value in budget.items())])
    return key, ", ".join([basis, *(f"{name} {value}" for name, value in budget.items())])
