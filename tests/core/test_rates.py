"""What the state moves by, made of the network's output, is what is forecast."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from forecache import Corrector, Forecaster, Guided, rates

N = 24
LEVELS = [(math.cos(a), math.sin(a)) for a in (1.5 - 1.45 * (i / N) ** 0.8 for i in range(N + 1))]  # alpha, sigma
PLACES = tuple(sigma / alpha for alpha, sigma in LEVELS)
FORMS = {
    "eps": [(0.0, 1.0)] * N,
    "data": [(1 / sigma, -alpha / sigma) for alpha, sigma in LEVELS[:-1]],
    "v": [(sigma, alpha) for alpha, sigma in LEVELS[:-1]],
}
CENTRES = torch.randn(5, 1, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
START = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
Tensor = torch.Tensor


def eps(x: Tensor, i: int) -> Tensor:
    """The noise in ``x = alpha D + sigma E``, D one of five points."""
    alpha, sigma = LEVELS[i]
    near = torch.softmax(-((x - alpha * CENTRES) ** 2).sum(-1, keepdim=True) / (2 * sigma**2), 0)
    return (x - alpha * (near * CENTRES).sum(0)) / sigma


def corrector(form: str, **how: Any) -> Corrector:
    return Corrector(PLACES, end=0.0, rates=None if form == "eps" else tuple(FORMS[form]), **how)


def sample(form: str, cache: Forecaster | None = None) -> Tensor:
    """DDIM with a network that puts out one of the forms."""
    x = LEVELS[0][1] * START
    for i, (a, b) in enumerate(FORMS[form]):

        def output(x: Tensor = x, i: int = i, a: float = a, b: float = b) -> Tensor:
            return (eps(x, i) - a * x) / b

        o = output() if cache is None else cache.step(i, output, state=x)
        noise = a * x + b * o
        (alpha, sigma), (after, rest) = LEVELS[i], LEVELS[i + 1]
        x = after / alpha * (x - sigma * noise) + rest * noise
    return x


@pytest.mark.parametrize("basis", ["auto", "linear", "dmd"])
@pytest.mark.parametrize("form", ["data", "v"])
def test_every_form_of_a_network_is_forecast_alike(form: str, basis: str) -> None:
    how: dict[str, Any] = {"times": PLACES, "calls": 9}
    truth = sample("eps")
    assert torch.allclose(sample(form), truth, rtol=1e-9)
    known = sample("eps", Forecaster(basis, corrector=corrector("eps"), **how))
    found = sample(form, Forecaster(basis, corrector=corrector(form), **how))
    assert torch.allclose(found, known, rtol=1e-7)
    itself = sample(form, Forecaster(basis, corrector=False, **how))  # control: the output is another curve
    assert (itself - known).norm() > 1e-3 * known.norm()


def test_what_is_computed_is_handed_back_itself() -> None:
    cache = Forecaster(times=PLACES, computed=range(N), corrector=corrector("v"))
    given = [START + i for i in range(N)]
    assert all(cache.step(i, lambda i=i: given[i], state=START) is given[i] for i in range(N))
    assert torch.equal(sample("v", Forecaster(times=PLACES, interval=1, corrector=corrector("v"))), sample("v"))


def test_a_forecast_is_the_output_that_goes_with_the_velocity() -> None:
    a, b = FORMS["v"][2]
    cache = Forecaster("linear", times=PLACES, computed=(0, 1, 5), corrector=corrector("v"))
    velocities = [sum(pair) * START for pair in FORMS["v"][:2]]
    for i in range(2):
        cache.step(i, lambda: START, state=START)
    x = 3 * START
    line = 2 * velocities[1] - velocities[0]
    assert torch.allclose(cache.forecast(2, x), (line - a * x) / b, rtol=1e-12)


def test_branches_and_structures_have_one_state() -> None:
    how: dict[str, Any] = {"times": PLACES, "computed": (0, 2, 5, 9, 14, N - 1), "corrector": corrector("data")}

    def run(make: Any, part: Any, state: Any = lambda x: x) -> list[Tensor]:
        cache, x = Forecaster(**how), [START * (1 + i / 9) for i in range(N)]
        return [part(cache.step(i, lambda i=i: make(i), state=state(x[i]))) for i in range(N)]

    one, two = (lambda i: torch.sin(START * (1 + i / 9))), (lambda i: torch.cos(START + i / 7))
    alone = [run(each, lambda v: v) for each in (one, two)]
    for k, name in enumerate(("cond", "uncond")):
        guided = run(lambda i: Guided(one(i), two(i)), lambda v, name=name: getattr(v, name))
        mapped = run(
            lambda i: {"cond": one(i), "uncond": two(i)}, lambda v, name=name: v[name],
            lambda x: {"cond": x, "uncond": x},
        )  # fmt: skip
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(guided, alone[k], strict=True))
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(mapped, alone[k], strict=True))
    assert not torch.allclose(alone[0][1], alone[1][1], rtol=1e-3)  # control
    off = Forecaster(**how)
    assert off.step(0, lambda: Guided(START, None), state=START).uncond is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_kept(dtype: torch.dtype) -> None:
    caches = [Forecaster("linear", times=PLACES, calls=9, corrector=corrector("data")) for _ in range(2)]
    for i in range(N):
        x = START * (1 + i / 9)
        value = torch.sin(x)
        got = caches[0].step(i, lambda v=value: v.to(dtype), state=x.to(dtype))
        exact = caches[1].step(i, lambda v=value: v, state=x)
        assert got.dtype == dtype and torch.isfinite(got).all()
        size = max(float(exact.norm()), float(x.norm()))
        assert (got.double() - exact).norm() <= 20 * torch.finfo(dtype).eps * size


def test_what_cannot_be_forecast_ends_the_history_as_without_rates() -> None:
    cache = Forecaster(times=PLACES, computed=(0, 3, 9, N - 1), corrector=corrector("v"))
    whole = torch.ones(2, 30, dtype=torch.int64)
    assert cache.step(0, lambda: whole, state=START) is whole and cache.needs_compute(1)
    assert "can be no snapshot" in cache.trace.notes[0]
    small = START.float().to(torch.float8_e5m2)  # which has no product
    assert cache.step(1, lambda: small, state=START) is small and cache.needs_compute(2)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, r"state must have the form of the network's output, \(2, 30\) cpu, got none"),
        (START[:1], r"state must have the form of the network's output, \(2, 30\) cpu, got \(1, 30\) cpu"),
    ],
)
def test_a_state_that_is_missing_or_of_another_form(state: Any, message: str) -> None:
    cache = Forecaster("linear", times=PLACES, computed=(0, 1, 5), corrector=corrector("v"))
    with pytest.raises(ValueError, match=message):
        cache.observe(0, START, state)
    for i in range(2):
        cache.observe(i, START, START)
    with pytest.raises(ValueError, match="state of step 2 must have the form"):
        cache.forecast(2, state)
    assert len(cache.trace.steps) == 2 and torch.isfinite(cache.forecast(2, START)).all()


def test_rates_are_a_pair_for_each_step_that_can_be_turned_back() -> None:
    with pytest.raises(ValueError, match="corrector: rates must be 2 pairs of finite numbers, got"):
        Corrector((2.0, 1.0, 0.0), rates=((1.0, 1.0),))
    with pytest.raises(ValueError, match="corrector: rates must be 2 pairs of finite numbers, got"):
        Corrector((2.0, 1.0, 0.0), rates=((1.0, math.nan), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"rates must have b != 0 behind the first step, got 0 at steps \[1\]"):
        Corrector((2.0, 1.0, 0.0), rates=((0.0, 0.0), (1.0, 0.0)))
    first = Corrector((math.inf, 1.0, 0.5, 0.0), rates=((1.0, 0.0), (0.9, 0.4), (0.8, 0.6)))  # nothing of the data
    cache = Forecaster("reuse", times=(3, 2, 1, 0), computed=(0, 2), corrector=first)
    assert cache.step(0, lambda: START, state=2 * START) is START
    assert torch.allclose(cache.step(1, lambda: START, state=START), (2 - 0.9) / 0.4 * START)


def test_fits() -> None:
    assert rates.fits((START,), START) and rates.fits({"a": START, "b": START}, (START, START))
    assert not rates.fits({"a": START, "b": START}, START) and not rates.fits(START, None)
