"""Edges of guidance intervals and stages: nothing is extrapolated across them; multi-stage solvers are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecache import Forecaster, Guided, schedule
from forecache.schedule import with_edges

STEPS, EDGE, SCALE = 30, 17, 6.0
GRID = np.linspace(0, 1, STEPS + 1).tolist()
A, B = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))


def branches(t: float) -> tuple[torch.Tensor, torch.Tensor]:
    return A * np.cos(t) + B * t * t, A * np.cos(1.2 * t) - B * t


def combined(i: int) -> torch.Tensor:
    """Guidance is on before the edge and off from it on: the combined velocity jumps."""
    cond, uncond = branches(GRID[i])
    return cond + SCALE * (cond - uncond) if i < EDGE else cond


def worst(**settings) -> float:
    cache = Forecaster(times=GRID, **settings)
    return max(float((cache.step(i, lambda i=i: combined(i)) - combined(i)).norm()) for i in range(STEPS))


@pytest.mark.parametrize("basis", ["linear", "taylor", "hermite", "dmd", "chebyshev", "auto"])
def test_nothing_is_extrapolated_across_an_edge(basis):
    with_edge = worst(basis=basis, interval=3, edges=[EDGE])
    across = worst(basis=basis, interval=3)  # the control: one history, jump and all
    assert with_edge < 0.2 * across


def test_an_edge_is_computed_and_starts_a_new_history():
    cache = Forecaster("linear", times=GRID, interval=4, edges=[EDGE])
    for i in range(STEPS):
        value = cache.step(i, lambda i=i: combined(i))
        if i == EDGE + 1:
            assert torch.equal(value, combined(EDGE)), "one snapshot of the new history: reuse, exactly"
    edge = cache.trace.steps[EDGE]
    assert edge.kind == "computed" and not edge.forward_error, "no forecast of the old history is scored"


def test_a_structure_that_changes_without_an_edge_is_noted():
    def value(i):
        return Guided(*branches(GRID[i])) if i < EDGE else branches(GRID[i])[0]

    cache = Forecaster("linear", times=GRID, interval=3, edges=[EDGE])
    kinds = {i: type(cache.step(i, lambda i=i: value(i))) for i in range(STEPS)}
    assert kinds[EDGE - 1] is Guided and kinds[EDGE + 1] is torch.Tensor
    without = Forecaster("linear", times=GRID, computed=[0, 3, EDGE, STEPS - 1])
    for i in range(STEPS):
        without.step(i, lambda i=i: value(i))
    assert not cache.trace.notes and len(without.trace.notes) == 1


@pytest.mark.filterwarnings("ignore:forecache. auto with")
@pytest.mark.parametrize("calls", [3, 5, 10, STEPS])
def test_an_exact_budget_stays_exact(calls):
    cache = Forecaster("auto", times=GRID, calls=calls, edges=[EDGE])
    for i in range(STEPS):
        cache.step(i, lambda i=i: combined(i))
    assert cache.trace.computed == calls
    assert {0, EDGE, STEPS - 1} <= set(cache.computed)


def test_bad_edges():
    effective = range(10)
    assert with_edges(schedule.even(effective, 4), effective, [5], exact=False) == (0, 3, 5, 6, 9)
    assert len(with_edges(schedule.even(effective, 4), effective, [5], exact=True)) == 4
    with pytest.raises(ValueError, match="edges must be steps that move the state, got \\[12\\]"):
        with_edges((0, 9), effective, [12], exact=False)
    with pytest.raises(ValueError, match="calls must be >= 4"):
        with_edges((0, 9), effective, [4, 5], exact=True)


def test_a_two_stage_solver_is_refused_not_silently_wrong():
    cache = Forecaster("linear", times=GRID, interval=3)
    cache.step(0, lambda: combined(0))
    with pytest.raises(ValueError, match="several calls a step needs a Forecaster for each"):
        cache.step(0, lambda: combined(0))
    stages = [Forecaster("linear", times=GRID, interval=3) for _ in range(2)]  # one history per stage works
    x = torch.zeros(1, 32)
    for i in range(STEPS):
        h = GRID[i + 1] - GRID[i]
        first = stages[0].step(i, lambda i=i: combined(i))
        second = stages[1].step(i, lambda i=i: combined(min(i + 1, STEPS - 1)))
        x = x + h * (first + second) / 2
    assert all(stage.trace.computed == len(stage.computed) for stage in stages)
