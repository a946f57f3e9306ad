"""Adaptive guidance in a run that goes wrong half-way: the network serves, the trace says so, nothing is raised."""

from __future__ import annotations

import pytest
import torch

from forecache_adapters.adaptive import Adaptive
from forecache_adapters.handle import StageTrace
from forecache_adapters.settings import Settings

STEPS = 20
GRID = [k / STEPS for k in range(STEPS + 1)]


def served(at: int, bad: float, calls: int | None = None) -> tuple[StageTrace, list[torch.Tensor], list[int]]:
    """The trace, the unconditional values and the steps that called for them; ``bad`` is what comes at step ``at``."""
    trace, values, called = StageTrace(), [], []
    schedule = {"interval": 1} if calls is None else {"calls": calls}
    server = Adaptive(Settings("linear", adaptive_guidance=True, **schedule), GRID, trace, [2.0] * STEPS)
    for i in range(STEPS):
        c = torch.full((1, 4), 1.0 + i / 50)

        def negative(i: int = i, c: torch.Tensor = c) -> torch.Tensor:
            called.append(i)
            return c * (bad if i == at else 0.99)

        server.open(i, None)
        server.branch("cond", lambda c=c: c)  # type: ignore[misc]
        values.append(server.branch("uncond", negative))
    server.close()
    return trace, values, called


@pytest.mark.parametrize("calls", [None, 12])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_handed_on_and_no_more(calls: int | None, at: int, bad: float) -> None:
    trace, values, called = served(at, bad, calls)
    assert [i for i, value in enumerate(values) if not torch.isfinite(value).all()] == [at]
    assert len(trace.notes) == 1 and f"step {at}: begins anew" in trace.notes[0]
    plain = served(-1, bad, calls)
    assert not plain[0].notes and len(plain[2]) < len(called) < STEPS, "calls are saved again later"
