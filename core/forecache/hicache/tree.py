"""The names of ``hicache_pp.tree`` (1.3.0): the functional interface for velocities that are trees of tensors.

As published, one set of weights serves the whole tree: the Gram matrix is that of the concatenated leaves.
:class:`forecache.Forecaster` gives every leaf its own history.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from ..rules.hermite import physicists_hermite
from ..rules.linear import lagrange
from . import dmd, hermite
from .hermite import State, hermite_coeff, hicache_decide, hicache_reset, hicache_telemetry

__all__ = [
    "adaptive_cfg_decide", "adaptive_cfg_init", "dmd_forecast_tree", "dmd_update_snapshots_tree",
    "forecast_guidance_tree", "guidance_term_tree", "hermite_coeff", "hicache_decide", "hicache_forecast_tree",
    "hicache_init", "hicache_reset", "hicache_telemetry", "hicache_update_tree", "physicists_hermite",
    "reconstruct_cfg_tree", "tree_axpy", "tree_cosine", "tree_detach", "tree_sub_div",
]  # fmt: skip


# --- trees ----------------------------------------------------------------------------------------------------------
def tree_axpy(c: float, a: Any, b: Any) -> Any:
    """``a + c b``, leaf by leaf."""
    return _pytree.tree_map(lambda x, y: x + c * y, a, b)


def tree_sub_div(a: Any, b: Any, d: float) -> Any:
    """``(a - b) / d``, leaf by leaf."""
    return _pytree.tree_map(lambda x, y: (x - y) / d, a, b)


def tree_detach(a: Any) -> Any:
    """The tree with its tensors detached; other leaves as they are."""
    return _pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, a)


def _copied(a: Any) -> Any:
    return _pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, a)


def _tensors(a: Any) -> list[torch.Tensor]:
    return [x for x in _pytree.tree_leaves(a) if isinstance(x, torch.Tensor)]


def tree_cosine(a: Any, b: Any, eps: float = 1e-12) -> float:
    """Cosine of two trees over their concatenated tensors."""
    aa, ab, bb = (sum(float((x.double() * y.double()).sum()) for x, y in zip(p, q, strict=True)) for p, q in (
        (_tensors(a), _tensors(a)), (_tensors(a), _tensors(b)), (_tensors(b), _tensors(b))))  # fmt: skip
    return float(ab / ((aa * bb) ** 0.5 + eps))


# --- Hermite --------------------------------------------------------------------------------------------------------
def hicache_init(
    num_steps: int,
    interval: int = 4,
    max_order: int = 1,
    first_enhance: int = 2,
    end_enhance: int | None = None,
    sigma: float = 0.5,
    backend: str = "hermite",
    history: int = 5,
) -> State:
    """As :func:`forecache.hicache.hicache_init` without ``holdout``, which the published tree module does not have."""
    state = hermite.hicache_init(num_steps, interval, max_order, first_enhance, end_enhance, sigma, backend, history)
    del state["holdout"]
    return state


def hicache_update_tree(state: State, velocity_tree: Any) -> None:
    """Record a copy of a computed tree: ``D_0 = v``, ``D_{i+1} = (D_i(new) - D_i(old)) / gap``."""
    hermite.differences(state, _copied(velocity_tree), tree_sub_div)


def hicache_forecast_tree(state: State) -> Any:
    """``v^ = sum_i D_i sigma^i H_i(sigma k) / i!`` at ``state["step"]``.

    Raises:
        RuntimeError: before any computed step.
    """
    terms = state["derivatives"]
    if 0 not in terms:
        raise RuntimeError("hicache_forecast_tree called before any compute step")
    hermite.count(state, "method_counts", "hermite")
    k = state["step"] - state["activated_steps"][-1]
    value = _copied(terms[0])
    for order in range(1, len(terms)):
        value = tree_axpy(hermite_coeff(order, k, state["sigma"]), value, terms[order])
    return value


# --- DMD ------------------------------------------------------------------------------------------------------------
def dmd_update_snapshots_tree(state: State, velocity_tree: Any, history: int = 5) -> None:
    """Record a copy of a computed tree; the newest ``state["history"]`` (else ``history``) are kept."""
    dmd.remember(state, _copied(velocity_tree), history)


def dmd_forecast_tree(state: State) -> Any:
    """DMD on the evenly spaced tail at a fractional horizon; Hermite while the tail is shorter than 4."""
    spacing, trees = dmd.even_tail(state)
    if len(trees) < 4:
        dmd.count_short_tail(state, spacing)
        return hicache_forecast_tree(state)
    leaves = dmd.dmd_leaves(state, [_tensors(tree) for tree in trees], spacing)
    if leaves is None:
        return _copied(trees[-1])
    served = iter(leaves)
    return _pytree.tree_map(lambda x: next(served) if isinstance(x, torch.Tensor) else x, trees[-1])


# --- Adaptive-CFG ---------------------------------------------------------------------------------------------------
def adaptive_cfg_init(num_steps: int, gamma_bar: float = 0.94, warmup: int = 2, max_order: int = 1) -> State:
    """State of the published adaptive guidance.

    Raises:
        ValueError: ``gamma_bar`` outside [0, 1].
    """
    if not 0.0 <= gamma_bar <= 1.0:
        raise ValueError(f"gamma_bar must be in [0, 1], got {gamma_bar}")
    return {
        "num_steps": int(num_steps), "gamma_bar": float(gamma_bar), "warmup": int(warmup), "max_order": int(max_order),
        "step": 0, "anchors": [], "last_gamma": None, "n_full": 0, "n_skip": 0,
    }  # fmt: skip


def adaptive_cfg_decide(state: State, gamma: float | None) -> bool:
    """True: run the unconditional pass (warm-up, last step, no anchor, or ``gamma < gamma_bar``)."""
    step = state["step"]
    if step < state["warmup"] or step >= state["num_steps"] - 1 or not state["anchors"] or gamma is None:
        return True
    return bool(gamma < state["gamma_bar"])


def guidance_term_tree(y_cond: Any, y_uncond: Any, strength: float) -> Any:
    """``g = strength (y_cond - y_uncond)``, leaf by leaf."""
    return _pytree.tree_map(lambda c, u: strength * (c - u), y_cond, y_uncond)


def forecast_guidance_tree(anchors: list[tuple[int, Any]], step: int, max_order: int = 1) -> Any:
    """Newton forecast of the guidance term through the last ``max_order + 1`` anchors, at any spacing.

    Raises:
        ValueError: no anchor.
    """
    if not anchors:
        raise ValueError("forecast_guidance_tree requires at least one anchor")
    used = anchors[-(max(max_order, 0) + 1) :]
    times = np.array([float(s) for s, _ in used])
    weights = lagrange(times, float(step), len(used) - 1)

    def combined(*leaves: Any) -> Any:
        return sum(float(w) * x for w, x in zip(weights, leaves, strict=True))

    return _pytree.tree_map(combined, *(g for _, g in used))


def reconstruct_cfg_tree(y_cond: Any, g: Any) -> Any:
    """``v = y_cond + g``, leaf by leaf."""
    return _pytree.tree_map(lambda c, x: c + x, y_cond, g)
