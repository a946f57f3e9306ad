"""The functions of ``hicache_pp.hermite`` (1.3.0): the state of a run, its schedule, and the Hermite forecast."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch

from ..rules.hermite import physicists_hermite, scaled_hermite

State = dict[str, Any]

__all__ = [
    "hicache_decide", "hicache_forecast", "hicache_init", "hicache_reset", "hicache_telemetry",
    "hicache_update_derivatives", "physicists_hermite", "scaled_hermite",
]  # fmt: skip


# --- state ----------------------------------------------------------------------------------------------------------
def hicache_init(
    num_steps: int,
    interval: int = 4,
    max_order: int = 1,
    first_enhance: int = 2,
    end_enhance: int | None = None,
    sigma: float = 0.5,
    backend: str = "hermite",
    history: int = 5,
    holdout: str = "1step",
) -> State:
    """A fresh state for one run: compute the first ``first_enhance`` steps, then every ``interval``-th, and all from
    ``end_enhance`` (default ``num_steps``) on.

    Args:
        num_steps: steps of the run.
        interval: distance of computed steps.
        max_order: highest difference of the Hermite forecast.
        first_enhance: computed steps at the start.
        end_enhance: first of the computed steps at the end.
        sigma: contraction of the Hermite forecast, in (0, 1).
        backend: "hermite", "dmd" or "auto".
        history: snapshots kept for DMD.
        holdout: how "auto" chooses, "1step" or "horizon".

    Raises:
        ValueError: an argument outside its range.
    """
    if interval < 1:
        raise ValueError(f"interval must be >= 1, got {interval}")
    if max_order < 1:
        raise ValueError(f"max_order must be >= 1, got {max_order}")
    if not 0.0 < sigma < 1.0:
        raise ValueError(f"sigma must be in (0, 1), got {sigma}")
    if backend not in ("hermite", "dmd", "auto"):
        raise ValueError(f"backend must be 'hermite', 'dmd', or 'auto', got {backend!r}")
    if holdout not in ("horizon", "1step"):
        raise ValueError(f"holdout must be 'horizon' or '1step', got {holdout!r}")
    state: State = {
        "num_steps": int(num_steps),
        "interval": int(interval),
        "max_order": int(max_order),
        "first_enhance": int(first_enhance),
        "end_enhance": int(num_steps if end_enhance is None else end_enhance),
        "sigma": float(sigma),
        "backend": str(backend),
        "history": int(history),
        "holdout": str(holdout),
        "branch_id": None,
    }
    return hicache_reset(state)


def hicache_reset(state: State, *, run_id: str | None = None, branch_id: str | None = None) -> State:
    """Forget the run, keep the configuration; returns the same object. A new ``run_id`` unless one is given."""
    state["run_id"] = uuid.uuid4().hex if run_id is None else str(run_id)
    if branch_id is not None:
        state["branch_id"] = str(branch_id)
    state.update(step=0, counter=0, type=None, activated_steps=[], derivatives={}, prev_derivatives={})
    state.update(dmd_snapshots=[], telemetry=_telemetry({}))
    state.pop("_gram", None)
    return state


def _telemetry(state: State) -> dict[str, dict[str, int]]:
    kept: dict[str, dict[str, int]] = state.setdefault("telemetry", {})
    kept.setdefault("decisions", {"full": 0, "forecast": 0})
    kept.setdefault("method_counts", {"hermite": 0, "dmd": 0, "reuse": 0})
    kept.setdefault("fallbacks", {})
    return kept


def count(state: State, kind: Literal["decisions", "method_counts", "fallbacks"], what: str) -> None:
    """One more ``what`` in the telemetry."""
    counts = _telemetry(state)[kind]
    counts[what] = counts.get(what, 0) + 1


def hicache_telemetry(state: State) -> dict[str, Any]:
    """A copy of the counts: decisions, methods served, fall-backs by reason."""
    return deepcopy(_telemetry(state))


def hicache_decide(state: State) -> str:
    """Returns "full" or "forecast" for ``state["step"]``; "full" as long as there is no anchor."""
    step = state["step"]
    full = (
        step < state["first_enhance"]
        or step >= state["end_enhance"]
        or state["counter"] >= state["interval"] - 1
        or not state.get("derivatives")
    )
    if full:
        state["counter"] = 0
        state["activated_steps"].append(step)
    else:
        state["counter"] += 1
    state["type"] = "full" if full else "forecast"
    count(state, "decisions", state["type"])
    return str(state["type"])


# --- Hermite --------------------------------------------------------------------------------------------------------
def differences(state: State, feature: Any, subtract: Callable[[Any, Any, int], Any]) -> None:
    """The published recursion on whatever ``subtract(new, old, gap) = (new - old) / gap`` works on."""
    old, steps = state["derivatives"], state["activated_steps"]
    gap = max(int(steps[-1] - steps[-2]) if len(steps) >= 2 else state["interval"], 1)
    new = {0: feature}
    for order in range(state["max_order"]):
        if order not in old:
            break
        new[order + 1] = subtract(new[order], old[order], gap)
    state["prev_derivatives"], state["derivatives"] = old, new


def hicache_update_derivatives(state: State, feature: torch.Tensor) -> None:
    """Record a computed value: ``D_0 = v``, ``D_{i+1} = (D_i(new) - D_i(old)) / gap``."""
    differences(state, feature, lambda new, old, gap: (new - old) / gap)


def hermite_coeff(order: int, k: float, sigma: float) -> float:
    """``sigma^i H_i(sigma k) / i!``, the weight of difference i at k steps after the newest anchor."""
    return scaled_hermite(order, float(k), sigma) / math.factorial(order)


def hicache_forecast(state: State) -> torch.Tensor:
    """``v^ = sum_i D_i sigma^i H_i(sigma k) / i!`` at ``state["step"]``.

    Raises:
        RuntimeError: before any computed step.
    """
    terms = state["derivatives"]
    if 0 not in terms:
        raise RuntimeError("hicache_forecast called before any compute step")
    count(state, "method_counts", "hermite")
    k = state["step"] - state["activated_steps"][-1]
    value: torch.Tensor = terms[0].clone()
    for order in range(1, len(terms)):
        value.add_(terms[order], alpha=hermite_coeff(order, k, state["sigma"]))
    return value
