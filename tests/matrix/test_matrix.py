"""The first promise as a matrix: attaching never harms, whatever a user does with a host within a run.

Every row of the table is tried twice. With ``interval=1`` everything is bit for bit as without us, with as many calls
of the network's own code. With half the calls the result has the right shape, is finite, and drifts no more than ten
times as much as the plain case, or the trace says why not. The table has every two values of two factors together; what
the host itself refuses without us is left out of it.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from matrix import diffusers_host
from matrix.hosts import STEPS, Outcome, lived
from matrix.pairs import Row, pairwise, turned

pytestmark = pytest.mark.long

MODULES = ("diffusers_host", "generators_host", "hubs_host")
ROWS = {}
for module in MODULES:
    for host in importlib.import_module(f"matrix.{module}").HOSTS:
        for turn in range(host.tables):
            for row in pairwise(turned(host.factors(), turn), host.allowed):
                ROWS[f"{host.name}: {', '.join(row.values())}"] = host, row


def test_the_table_is_large() -> None:
    assert len(ROWS) >= 400


@pytest.fixture(scope="module", autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    yield
    diffusers_host.release()


@pytest.fixture(scope="module", params=list(ROWS))
def case(request: pytest.FixtureRequest, checkouts: Any) -> tuple[Any, Row]:
    torch.set_num_threads(1)
    host, row = ROWS[request.param]
    host.prepare(checkouts)
    return host, row


@functools.lru_cache(maxsize=2)
def without_us(host: Any, row: tuple[tuple[str, str], ...]) -> list[Outcome]:
    return lived(host, dict(row), None)[1]


def both(host: Any, row: Row, **settings: Any) -> tuple[Any, list[Outcome], list[Outcome]]:
    handle, ours = lived(host, row, settings)
    return handle, without_us(host, tuple(row.items())), ours


def test_interval_1_is_bit_identical(case: tuple[Any, Row]) -> None:
    host, row = case
    _, plain, ours = both(host, row, interval=1)
    assert all(a.equals(b, host.still(row)) for a, b in zip(ours, plain, strict=True)), (ours, plain)


def drift(ours: list[Outcome], plain: list[Outcome]) -> float:
    pairs = [(x, y) for a, b in zip(ours, plain, strict=True) for x, y in zip(a.values, b.values, strict=True)]
    return max((float((x.float() - y.float()).norm() / y.float().norm().clamp(min=1e-12)) for x, y in pairs), default=0)


def test_half_the_calls_are_right_or_noted(case: tuple[Any, Row]) -> None:
    host, row = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle, plain, ours = both(host, row, basis="linear", calls=STEPS // 2)
    for a, b in zip(ours, plain, strict=True):
        assert a.raised is b.raised and [x.shape for x in a.values] == [y.shape for y in b.values]
        assert all(
            torch.isfinite(x).all() or not torch.isfinite(y).all() for x, y in zip(a.values, b.values, strict=True)
        )
    usual = plain_drift(host.name, tuple({**row, "event": "none", "life": "fresh", "setting": "alone"}.items()))
    assert drift(ours, plain) <= 10 * usual + 1e-6 or host.notes(handle), (drift(ours, plain), usual)


@functools.cache
def plain_drift(name: str, row: tuple[tuple[str, str], ...]) -> float:
    host = next(host for host, _ in ROWS.values() if host.name == name)
    _, plain, ours = both(host, dict(row), basis="linear", calls=STEPS // 2)
    return drift(ours, plain)
