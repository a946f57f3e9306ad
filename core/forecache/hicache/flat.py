"""The functional interface of HiCache++ (``hicache-pp`` 1.3.0), name for name, on this package's core.

Change the import line and nothing else::

    from forecache.hicache import hicache_init, hicache_decide, hicache_update_derivatives
    from forecache.hicache import dmd_update_snapshots, dmd_forecast_state

Signatures, defaults, state keys (those without a leading underscore), schedule, fall-backs and telemetry are the
published ones; DMD is fitted from the Gram matrix of the snapshots, kept row by row. As published, a value is always
one item: :class:`forecache.Forecaster` is the interface with independent batch items and a guard.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch.utils import _pytree

from ..rules.dmd import dmd_weights
from ..rules.hermite import physicists_hermite, scaled_hermite
from ..rules.rule import Unfit, newest
from ..snapshots import Array, products

State = dict[str, Any]

RIDGE = 1e-8  # published

__all__ = [
    "auto_forecast_state", "dmd_forecast", "dmd_forecast_state", "dmd_update_snapshots", "hicache_decide",
    "hicache_forecast", "hicache_init", "hicache_reset", "hicache_telemetry", "hicache_update_derivatives",
    "physicists_hermite", "scaled_hermite",
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


# --- DMD ------------------------------------------------------------------------------------------------------------
def gram_row(leaves: Sequence[Sequence[torch.Tensor]]) -> Array:
    """Dot products of the last snapshot with each of them."""
    row = np.zeros(len(leaves))
    for old in zip(*leaves, strict=True):
        window = [v.detach().reshape(1, -1) for v in old]
        for j, v in enumerate(window):  # snapshots are tensors of their own here, so a row is n small products
            row[j] += products(v[:, None], window[-1])[0, 0]
    return row


def combine(tensors: Sequence[torch.Tensor], weights: Array) -> torch.Tensor:
    """``sum_j w_j v_j`` with float32 accumulation for half precision."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    value = tensors[0].to(wide) * float(weights[0])
    for tensor, w in zip(tensors[1:], weights[1:], strict=True):
        value.add_(tensor, alpha=float(w))
    return value.to(tensors[0].dtype)


def dmd_forecast(snapshots: Sequence[torch.Tensor], k: float, rank: int = 0, ridge: float = RIDGE) -> torch.Tensor:
    """DMD forecast ``k`` gaps past the newest of >= 3 evenly spaced snapshots, oldest first; reuse if it has no fit.

    ``rank``: modes kept (0: singular values above 1e-4 of the largest). ``ridge``: added to the singular values.
    """
    try:
        weights = dmd_weights(tail_gram({}, [[s] for s in snapshots]), float(k), rank, ridge)
    except Unfit:
        return snapshots[-1].clone()
    value = combine(snapshots, weights)
    return value if bool(torch.isfinite(value).all()) else snapshots[-1].clone()


def dmd_update_snapshots(state: State, feature: torch.Tensor, history: int = 5) -> None:
    """Record a copy of a computed value; the newest ``state["history"]`` (else ``history``) are kept."""
    remember(state, feature.detach().clone(), history)


def remember(state: State, value: Any, history: int) -> None:
    """Append ``(step, value)`` and drop what is older than the history."""
    snapshots = state.setdefault("dmd_snapshots", [])
    snapshots.append((int(state["activated_steps"][-1]), value))
    dropped = snapshots[: max(len(snapshots) - int(state.get("history", history)), 0)]
    del snapshots[: len(dropped)]
    if dropped and "_gram" in state:  # its rows hold their tensors, so that an id names one tensor; let go of these
        gone = {id(leaf) for _, old in dropped for leaf in _pytree.tree_leaves(old)}
        leaves, gram = state["_gram"]
        kept = [j for j, row in enumerate(leaves) if gone.isdisjoint(map(id, row))]
        state["_gram"] = ([leaves[j] for j in kept], gram[np.ix_(kept, kept)])


def even_tail(state: State) -> tuple[int, list[Any]]:
    """Longest evenly spaced suffix of the snapshots: its spacing and values, oldest first."""
    snapshots = state.get("dmd_snapshots", [])
    steps = [step for step, _ in snapshots]
    if len(steps) < 2 or steps[-1] <= steps[-2]:
        return 0, []
    spacing, first = steps[-1] - steps[-2], len(steps) - 2
    while first > 0 and steps[first] - steps[first - 1] == spacing:
        first -= 1
    return spacing, [value for _, value in snapshots[first:]]


def tail_gram(state: State, flat: Sequence[Sequence[torch.Tensor]]) -> Array:
    """Gram matrix of the tail; only the rows of snapshots that arrived since the last call are computed."""
    remembered, known = state.get("_gram", ([], None))
    n = len(flat)
    gram = np.full((n, n), np.nan)
    where = {tuple(map(id, leaves)): j for j, leaves in enumerate(remembered)}
    old = [(j, where[key]) for j, key in enumerate(tuple(map(id, leaves)) for leaves in flat) if key in where]
    for j, a in old:
        for k, b in old:
            gram[j, k] = known[a, b]
    for j in range(n):
        if np.isnan(gram[j, j]) or np.isnan(gram[j, :j]).any():
            gram[j, : j + 1] = gram[: j + 1, j] = gram_row(flat[: j + 1])
    state["_gram"] = ([list(leaves) for leaves in flat], gram)
    return gram


def dmd_serve(state: State, values: list[Any], spacing: int) -> list[torch.Tensor] | None:
    """Leaves of the DMD forecast at ``state["step"]`` with the published bookkeeping; ``None``: no finite one."""
    flat = [[value] if isinstance(value, torch.Tensor) else value for value in values]
    horizon = (state["step"] - state["dmd_snapshots"][-1][0]) / spacing
    try:
        weights = dmd_weights(tail_gram(state, flat), horizon, ridge=RIDGE)
    except Unfit:
        count(state, "fallbacks", "dmd_fit_failed")
        count(state, "method_counts", "reuse")
        return None
    leaves = [combine(leaf, weights) for leaf in zip(*flat, strict=True)]
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
        count(state, "fallbacks", "dmd_nonfinite_output")
        count(state, "method_counts", "reuse")
        return None
    count(state, "method_counts", "dmd")
    return leaves


def count_short_tail(state: State, spacing: int) -> None:
    """Why :func:`even_tail` is too short for DMD, in the telemetry."""
    short = len(state.get("dmd_snapshots", [])) < 4 or spacing == 0
    count(state, "fallbacks", "dmd_insufficient_uniform_history" if short else "dmd_nonuniform_or_short_tail")


def dmd_forecast_state(state: State) -> torch.Tensor:
    """DMD on the evenly spaced tail at a fractional horizon; Hermite while the tail is shorter than 4."""
    spacing, tail = even_tail(state)
    if len(tail) < 4:
        count_short_tail(state, spacing)
        return hicache_forecast(state)
    leaves = dmd_serve(state, tail, spacing)
    value: torch.Tensor = tail[-1].clone() if leaves is None else leaves[0]
    return value


# --- automatic choice -----------------------------------------------------------------------------------------------
def auto_forecast_state(state: State) -> torch.Tensor:
    """Serve DMD if it reproduces a held-out snapshot at least as well as the polynomial, else Hermite.

    ``holdout="1step"``: forecast the newest snapshot from the others, against the parabola through three.
    ``holdout="horizon"``: at the distance that is served, against the Hermite arm itself; from a distance of 4 gaps on
    the newest snapshots backcast an older one. Both errors come from the Gram matrix.
    """
    spacing, tail = even_tail(state)
    if len(state.get("dmd_snapshots", [])) < 5 or len(tail) < 5:
        return hicache_forecast(state)
    if not _dmd_wins(state, tail_gram(state, [[v] for v in tail]), spacing):
        return hicache_forecast(state)
    leaves = dmd_serve(state, tail, spacing)
    value: torch.Tensor = tail[-1].clone() if leaves is None else leaves[0]
    return value


def _dmd_wins(state: State, gram: Array, spacing: int) -> bool:
    n = len(gram)
    distance = 1
    if state.get("holdout", "1step") == "horizon":
        interval = int(state.get("interval", 0))
        ahead = interval - 1.0 if interval > 1 else state["step"] - state["dmd_snapshots"][-1][0]
        served = ahead / spacing
        distance = max(1, min(math.ceil(served), n - 1))
        if distance < 4 and n - distance < 4:
            distance = max(1, n - 4)
    if distance >= 4:
        fitted, held, horizon = range(n - distance, n), n - 1 - distance, -float(distance)
    else:
        fitted, held, horizon = range(n - distance), n - 1, float(distance)
    window = gram[np.ix_(fitted, fitted)]
    try:
        dmd = dmd_weights(window, horizon, ridge=RIDGE)
    except Unfit:
        dmd = newest(len(fitted))
    if state.get("holdout", "1step") == "horizon":
        arm = _unit_hermite(len(fitted), horizon, float(state.get("sigma", 0.5)), int(state.get("max_order", 2)))
    else:
        arm = _parabola(len(fitted), horizon)

    def error(w: Array) -> float:
        signed = np.zeros(n)
        signed[list(fitted)] = -w
        signed[held] += 1
        return float(signed @ gram @ signed)

    return error(dmd) <= error(arm)


def _differences_at_unit_spacing(n: int, order: int) -> list[Array]:
    """Weights of the backward differences 0..order of the newest of ``n`` evenly spaced snapshots."""
    rows = np.eye(n)
    terms = [rows[-1]]
    for _ in range(order):
        rows = np.diff(rows, axis=0)
        terms.append(rows[-1])
    return terms


def _parabola(n: int, k: float) -> Array:
    """The published yardstick: ``f + d1 k + d2 k (k - 1) / 2`` from the newest three."""
    value, first, second = _differences_at_unit_spacing(n, 2)
    return np.asarray(value + first * k + second * (k * (k - 1) / 2))


def _unit_hermite(n: int, k: float, sigma: float, max_order: int) -> Array:
    terms = _differences_at_unit_spacing(n, max(1, min(max_order, n - 1)))
    return np.asarray(sum(d * hermite_coeff(i, k, sigma) for i, d in enumerate(terms)))
