"""Drift on the exact velocity of a Gaussian mixture: small bounds that a wrong sign or a stale value breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from core_helpers import mixture_velocity
from forecache import Forecaster
from forecache.rules import Hermite, Linear, Taylor

N = 50
GRID = [i / N for i in range(N + 1)]
velocity = mixture_velocity(dim=24, modes=4, seed=1)


def final(cache: Forecaster | None, calls: int | None = None) -> torch.Tensor:
    x = torch.randn(32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    grid = GRID if calls is None else [i / calls for i in range(calls + 1)]
    for i in range(len(grid) - 1):
        v = velocity(x, grid[i]) if cache is None else cache.step(i, lambda x=x, i=i: velocity(x, grid[i]))
        x = x + (grid[i + 1] - grid[i]) * v
    return x


reference = final(None)


def drift(basis: Any, **how: Any) -> float:
    """Median over the samples of the relative distance to the uncached run."""
    cache = Forecaster(basis, times=GRID, **how)
    away = (final(cache) - reference).norm(dim=1) / reference.norm(dim=1)
    return float(away.median())


class Backwards:
    """A forecaster with its sign wrong."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def weights(self, times: np.ndarray, target: float, gram: np.ndarray) -> np.ndarray:
        w: np.ndarray = self.inner.weights(times, 2 * times[-1] - target, gram)
        return w


def test_the_flow_is_exact() -> None:
    """The velocity of the mixture is the derivative of its mean path: a long run lands on the components."""
    x, fine = torch.randn(64, 24, dtype=torch.float64), 400
    for i in range(fine):
        x = x + velocity(x, i / fine) / fine
    means = 2.0 * torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nearest = torch.cdist(x, means).min(1).values / 24**0.5
    assert float(nearest.mean()) == pytest.approx(0.3, rel=0.1)  # the components' standard deviation


@pytest.mark.parametrize("calls", [15, 11])
def test_auto_beats_reuse_and_reuse_beats_the_wrong_sign(calls: int) -> None:
    auto, reuse = drift("auto", calls=calls), drift("reuse", calls=calls)
    wrong = drift(Backwards(Linear(2)), calls=calls)
    assert auto < 0.6 * reuse
    assert wrong > 1.2 * reuse  # control: it fails the bound that auto passes


@pytest.mark.parametrize("rule", [Linear(1), Taylor(1), Hermite(1), "dmd"], ids=str)
def test_every_rule_beats_reuse_on_an_even_schedule(rule: Any) -> None:
    reuse = drift("reuse", calls=18)
    assert drift(rule, calls=18) < reuse
    if not isinstance(rule, str) and rule.clock == "time":
        assert drift(Backwards(rule), calls=18) > reuse


def test_more_calls_drift_less() -> None:
    drifts = [drift("auto", calls=k) for k in (8, 15, 30, 50)]
    assert drifts == sorted(drifts, reverse=True) and drifts[-1] == 0


def test_fewer_steps_are_the_honest_baseline() -> None:
    """Reuse with K evenly spread calls is about as far off as K plain steps; forecasting is nearer."""
    away = (final(None, calls=15) - reference).norm(dim=1) / reference.norm(dim=1)
    assert drift("auto", calls=15) < float(away.median()) < 2 * drift("reuse", calls=15)


def test_the_guard_holds_after_a_dense_warmup() -> None:
    how: dict[str, Any] = {"interval": 8, "warmup": 4}
    assert drift("linear", **how) < drift("linear", guard=float("inf"), **how)
