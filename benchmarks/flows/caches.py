"""Published caches that the core does not hold in their published form, with the calls of a ``Forecaster``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
import torch
from numpy.polynomial import chebyshev

from forecache.rules import Reuse, Rule
from forecache.rules.linear import lagrange
from forecache.rules.rule import newest
from forecache.snapshots import Array

Compute = Callable[..., torch.Tensor]


class Cache(ABC):
    """A cache on a given schedule, called as a ``Forecaster`` is. Values are ``[B, ...]``."""

    def __init__(self, computed: Collection[int]) -> None:
        self.computed = frozenset(computed)

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network."""
        return i in self.computed

    @abstractmethod
    def observe(self, i: int, value: torch.Tensor) -> None:
        """Take the computed value of step ``i``."""

    @abstractmethod
    def forecast(self, i: int) -> torch.Tensor:
        """The forecast of step ``i``."""

    @property
    def served(self) -> float:
        """Share of the skipped steps so far that the rule itself served, not what stands in for it."""
        return 1.0

    def step(self, i: int, compute: Compute, state: torch.Tensor | None = None) -> torch.Tensor:
        """As ``forecache.Forecaster.step``."""
        if self.needs_compute(i):
            value = compute()
            self.observe(i, value)
            return value
        return self.forecast(i)


class HiCachePP(Cache):
    """HiCache++ through its own package ``hicache_pp``: DMD, Hermite in its warm-up, or its choice between the two;
    one state per sample.
    """

    def __init__(
        self, computed: Collection[int], history: int = 6, order: int = 1, sigma: float = 0.5,
        backend: Literal["dmd", "auto"] = "dmd",
    ) -> None:  # fmt: skip
        super().__init__(computed)
        self.history, self.order, self.sigma, self.backend = history, order, sigma, backend
        self.states: list[dict[str, Any]] = []

    def observe(self, i: int, value: torch.Tensor) -> None:
        """See :class:`Cache`."""
        import hicache_pp

        if not self.states:
            self.states = [
                hicache_pp.hicache_init(
                    max(self.computed) + 2,
                    max_order=self.order,
                    sigma=self.sigma,
                    backend=self.backend,
                    history=self.history,
                )
                for _ in value
            ]
        for state, item in zip(self.states, value, strict=True):
            state["step"] = i
            state["activated_steps"].append(i)  # what hicache_decide notes; the schedule is given here
            hicache_pp.hicache_update_derivatives(state, item)
            hicache_pp.dmd_update_snapshots(state, item, self.history)

    def forecast(self, i: int) -> torch.Tensor:
        """See :class:`Cache`."""
        import hicache_pp

        for state in self.states:
            state["step"] = i
        forecast = hicache_pp.dmd_forecast_state if self.backend == "dmd" else hicache_pp.auto_forecast_state
        return torch.stack([forecast(state) for state in self.states])

    @property
    def served(self) -> float:
        """See :class:`Cache`; by DMD, over all samples."""
        counts = [state["telemetry"]["method_counts"] for state in self.states]
        total = sum(sum(each.values()) for each in counts)
        return float(sum(each["dmd"] for each in counts) / max(total, 1))


def spectrum_weights(steps: Array, target: float, share: float, degree: int = 4, ridge: float = 0.1) -> Array:
    """Spectrum's published regression (arXiv:2603.01623) as weights on all snapshots.

    ``(1 - share) linear + share b(t)^T (B^T B + ridge I)^-1 B^T``, ``b = (T_0 .. T_degree)`` of
    ``tau = 2 (step - 25) / 50`` whatever the number of steps. The ridge also shrinks the constant, so the weights of
    the second term do not sum to 1. Float64 in place of the published bfloat16.
    """
    b = chebyshev.chebvander((np.append(steps, target) - 25) / 25, degree)
    design, wanted = b[:-1], b[-1]
    fitted = design @ np.linalg.solve(design.T @ design + ridge * np.eye(degree + 1), wanted)
    line = lagrange(steps, target, 1) if len(steps) > 1 else newest(len(steps))
    return np.asarray((1 - share) * line + share * fitted)


class Weighted(Cache):
    """A rule whose weights are those of the steps alone, as published: on the step index, without a guard."""

    def __init__(self, computed: Collection[int], rule: Rule) -> None:
        super().__init__(computed)
        self.rule, self.full, self.skipped = rule, 0, 0
        self.steps: list[float] = []
        self.values: list[torch.Tensor] = []

    def observe(self, i: int, value: torch.Tensor) -> None:
        """See :class:`Cache`."""
        self.steps.append(float(i))
        self.values.append(value)

    def weights(self, i: int) -> Array:
        """One for each snapshot of the window; fewer snapshots than the rule reads lower its order."""
        n = min(len(self.steps), self.rule.window)
        self.skipped += 1
        self.full += n >= self.rule.floor
        return self.rule.weights(np.array(self.steps[-n:]), float(i), np.eye(n))

    def forecast(self, i: int) -> torch.Tensor:
        """See :class:`Cache`."""
        w = torch.tensor(self.weights(i)).to(self.values[0])
        combined: torch.Tensor = torch.tensordot(w, torch.stack(self.values[-len(w) :]), 1)
        return combined

    @property
    def served(self) -> float:
        """See :class:`Cache`; with all snapshots that its order reads."""
        return self.full / max(self.skipped, 1)


class Spectrum(Weighted):
    """Chebyshev ridge in its published form, on all snapshots of the run."""

    def __init__(self, computed: Collection[int], share: float) -> None:
        super().__init__(computed, Reuse())
        self.share = share

    def weights(self, i: int) -> Array:
        """See :class:`Weighted`."""
        self.skipped += 1
        self.full += 1
        return spectrum_weights(np.array(self.steps), float(i), self.share)


class EasyCache:
    """EasyCache (arXiv:2507.02860): a gate on the change of the output that the change of the state predicts.

    With ``k = mean|v_a - v_b| / mean|x_a - x_b|`` over the last two computed steps, every step adds
    ``k mean|x_i - x_{i-1}| / mean|v_a|``; the sum reaching ``tau`` computes and clears it. The first ``warmup`` and the
    last step compute. Published payload: ``x_i + (v_a - x_a)``; "reuse" keeps the gate and serves ``v_a``. Every
    condition has its own gate.
    """

    def __init__(
        self, last: int, tau: float, warmup: int = 10, payload: Literal["published", "reuse"] = "published"
    ) -> None:
        self.last, self.tau, self.warmup, self.payload = last, tau, warmup, payload
        self.before: torch.Tensor | None = None  # state of the step before
        self.x = self.v = self.k = self.sum = torch.empty(0)  # of the last computed step, per condition

    def needs_compute(self, i: int, state: torch.Tensor) -> torch.Tensor:
        """Which conditions compute at step ``i``."""
        if self.before is None:
            return torch.ones(len(state), dtype=torch.bool)
        self.sum = self.sum + self.k * _mean(state - self.before) / _mean(self.v)
        wanted = self.sum >= self.tau
        return torch.ones_like(wanted) if i < self.warmup or i == self.last else wanted

    def observe(self, i: int, value: torch.Tensor, state: torch.Tensor, rows: torch.Tensor) -> None:
        """Take ``value``, that of the conditions ``rows`` at their states."""
        if self.before is None:
            self.x, self.v = state.clone(), value.clone()
            self.k = self.sum = torch.zeros(len(state))
            return
        k = _mean(value - self.v[rows]) / _mean(state[rows] - self.x[rows])
        self.k = self.k.masked_scatter(rows, k.float())
        self.sum = self.sum.masked_fill(rows, 0)
        self.x, self.v = self.x.clone(), self.v.clone()
        self.x[rows], self.v[rows] = state[rows], value

    def forecast(self, i: int, state: torch.Tensor) -> torch.Tensor:
        """What the conditions that do not compute get."""
        return state + (self.v - self.x) if self.payload == "published" else self.v

    def step(self, i: int, compute: Compute, state: torch.Tensor) -> torch.Tensor:
        """As ``forecache.Forecaster.step``; ``compute(rows)`` computes some conditions only."""
        rows = self.needs_compute(i, state)
        served = self.forecast(i, state).clone() if self.before is not None else torch.empty_like(state)
        if rows.any():
            value = compute(None if rows.all() else rows)
            self.observe(i, value, state, rows)
            served[rows] = value
        self.before = state
        return served


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Mean absolute value per condition."""
    return x.abs().flatten(1).mean(1)
