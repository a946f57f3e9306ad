"""The functions of ``hicache_pp.dmd`` (1.3.0): the DMD forecast, and the choice between it and the Hermite one.

DMD is fitted from the Gram matrix of the snapshots, which is kept and grows row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from ..rules.dmd import dmd_weights
from ..rules.rule import Unfit, newest
from ..snapshots import Array, products
from .hermite import State, count, hermite_coeff, hicache_forecast

RIDGE = 1e-8  # published

__all__ = ["auto_forecast_state", "dmd_forecast", "dmd_forecast_state", "dmd_update_snapshots"]


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


def dmd_leaves(state: State, values: list[Any], spacing: int) -> list[torch.Tensor] | None:
    """Leaves of the DMD forecast at ``state["step"]``, counted as published; ``None``: there is no finite one."""
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
    return _dmd_or_reuse(state, tail, spacing)


def _dmd_or_reuse(state: State, tail: list[torch.Tensor], spacing: int) -> torch.Tensor:
    leaves = dmd_leaves(state, tail, spacing)
    return tail[-1].clone() if leaves is None else leaves[0]


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
    return _dmd_or_reuse(state, tail, spacing)


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
