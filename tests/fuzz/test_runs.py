"""Runs that are broken off, shared, fed with odd tensors: the forecaster says so and stays usable."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecache import Forecaster, Guided, Plan, tree
from forecache.plan import Weights
from forecache.rules import NAMES
from forecache.snapshots import Snapshots
from fuzz.cases import CASES

STEPS = 10
TREES = st.recursive(
    st.integers(1, 3).map(lambda n: torch.arange(float(n))) | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def field(i: int, d: int = 4) -> torch.Tensor:
    return torch.sin(torch.arange(float(d)) + 0.3 * i)[None]


def run(cache: Any, value: Any = field) -> list[torch.Tensor]:
    return [cache.step(i, lambda i=i: value(i)) for i in range(STEPS)]


@settings(max_examples=CASES["trees"])
@given(TREES)
def test_a_tree_is_rebuilt_or_refused(value: Any) -> None:
    try:
        leaves, structure = tree.flatten(value)
    except TypeError as error:
        assert "value must be a tensor or a structure of tensors" in str(error)
        return
    again, same = tree.flatten(tree.unflatten(leaves, structure))
    assert tree.same(structure, same) and all(again[name] is leaf for name, leaf in leaves.items())


@settings(max_examples=CASES["runs"])
@given(
    st.sampled_from(NAMES), st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([1e-30, 1.0, 6e4, 1e30]), st.sampled_from([0, 1, -1, None]), st.integers(0, 99),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_runs_of_any_dtype_and_size_are_finite_or_computed(basis, dtype, size, batch_dim, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = [(torch.randn(2, 3, generator=generator) * size).to(dtype) for _ in range(STEPS)]
    cache = Forecaster(basis, steps=STEPS, interval=3, batch_dim=batch_dim)
    for i in range(STEPS):
        served = cache.step(i, lambda i=i: values[i])
        assert served.dtype == dtype and (torch.isfinite(served).all() or served is values[i])
    assert any("the history ends" in note for note in cache.trace.notes) == any(
        not torch.isfinite(values[step.index]).all() for step in cache.trace.steps if step.kind == "computed"
    )


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("kind", [Cancelled, KeyboardInterrupt, GeneratorExit, torch.OutOfMemoryError])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_a_run_broken_off_leaves_the_object_usable_and_frees(kind: type[BaseException], at: int) -> None:
    cache = Forecaster("dmd", steps=STEPS, computed=[0, 1, 2, 3, 5, 7, 9])
    expected = run(cache)
    cache.reset()

    def value(i: int) -> torch.Tensor:
        if i == at:
            raise kind
        return field(i)

    with pytest.raises(kind):
        run(cache, value)
    assert (cache.nbytes > 0) == (at > 0)  # control: there was something to free
    cache.reset()
    assert cache.nbytes == 0
    assert all(map(torch.equal, run(cache), expected))


def test_interleaved_generators_and_one_closed_early() -> None:
    def sampler(scale: float):
        with Forecaster("linear", steps=STEPS, interval=3) as cache:
            held.append(cache)
            for i in range(STEPS):
                yield cache.step(i, lambda i=i: scale * field(i))

    held: list[Forecaster] = []
    alone = [list(sampler(1.0)), list(sampler(2.0))]
    first, second, third = sampler(1.0), sampler(2.0), sampler(3.0)
    next(third), next(third)
    mixed = list(zip(first, second, strict=True))
    assert held[-3].nbytes or held[-1].nbytes  # the third holds its snapshots until it is closed
    third.close()
    assert not any(cache.nbytes for cache in held)
    for k in (0, 1):
        assert all(map(torch.equal, alone[k], [pair[k] for pair in mixed]))


# --- one caller at a time ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "nested",
    [
        lambda c: c.step(4, lambda: field(4)), lambda c: c.step(5, lambda: field(5)), lambda c: c.observe(4, field(4)),
        lambda c: c.forecast(5), lambda c: c.reset(), lambda c: c.close(),
    ],
)  # fmt: skip
def test_a_compute_that_asks_its_own_cache_is_refused(nested: Any) -> None:
    cache = Forecaster("linear", steps=STEPS, computed=[0, 1, 2, 4, 9])

    def value(i: int) -> torch.Tensor:
        if i == 4:
            nested(cache)
        return field(i)

    with pytest.raises(RuntimeError, match="one run at a time"):  # guard: Forecaster._alone
        run(cache, value)
    expected = run(Forecaster("linear", steps=STEPS, computed=[0, 1, 2, 4, 9]))
    rest = [cache.step(i, lambda i=i: field(i)) for i in range(4, STEPS)]  # nothing had changed
    assert all(map(torch.equal, rest, expected[4:]))


def test_without_that_guard_a_reset_inside_goes_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("forecache.turns.Turns.__call__", lambda self, what: nullcontext())
    cache = Forecaster("linear", steps=STEPS, computed=[0, 1, 2, 4, 9])
    run(cache, lambda i: (cache.reset() if i == 4 else None, field(i))[1])
    assert cache.trace.computed == 2  # of the 5 calls


def test_two_threads_on_one_forecaster_are_refused_and_one_each_are_not() -> None:
    cache, inside, leave = Forecaster("linear", steps=STEPS), threading.Event(), threading.Event()

    def slow() -> torch.Tensor:
        inside.set()
        assert leave.wait(10)
        return field(0)

    thread = threading.Thread(target=lambda: cache.step(0, slow))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match="of another thread"):
        cache.step(0, lambda: field(0))
    leave.set()
    thread.join()
    assert cache.trace.computed == 1
    expected, found = run(Forecaster("dmd", steps=STEPS, interval=3)), {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: run(Forecaster("dmd", steps=STEPS, interval=3))}))
        for k in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8 and all(
        torch.equal(a, b) for mine in found.values() for a, b in zip(mine, expected, strict=True)
    )


# --- out of memory ----------------------------------------------------------------------------------------------------
def failing_after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, kind: type[BaseException]
) -> None:
    """``owner.name`` works ``count`` times and then fails for good."""
    real, calls = getattr(owner, name), [0]

    def allocate(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise kind("no memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, allocate)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch, "empty"), (torch.Tensor, "reshape"), (torch.Tensor, "new_zeros"), (np, "concatenate"), (torch, "mv"),
        (torch.Tensor, "__setitem__"), (Snapshots, "push"), (torch, "stack"),
    ],
)  # fmt: skip
def test_no_allocation_that_fails_leaves_half_a_window(monkeypatch, owner, name, kind) -> None:
    how = {"steps": STEPS, "computed": [0, 1, 2, 3, 5, 7, 9], "history": 3}

    def value(i: int) -> dict[str, torch.Tensor]:
        return {"a": field(i), "b": 2 * field(i, 3)}

    expected = run(Forecaster("linear", **how), value)
    broken = 0
    for count in range(14):
        cache = Forecaster("linear", **how)
        with monkeypatch.context() as patch:
            failing_after(patch, owner, name, count, kind)
            try:
                run(cache, value)
            except kind:
                broken += 1
            broken += bool(cache.trace.notes)  # no memory for a snapshot: the run goes on without
        windows = [stream.snapshots for stream in cache.history.streams.values()]
        assert len({tuple(w.times) for w in windows}) <= 1, (
            "leaves came equally far"
        )  # guard: clear() in History.observe()
        assert all(w.gram.shape[1] == len(w) == len(w._slots) for w in windows)
        last = cache._last
        if last is not None and last + 1 < STEPS:  # goes on where it was
            again = [cache.step(i, lambda i=i: value(i)) for i in range(last + 1, STEPS)]
            assert all(torch.equal(x[k], y[k]) for x, y in zip(again, expected[last + 1 :], strict=True) for k in x)
        cache.reset()
        assert all(torch.equal(x[k], y[k]) for x, y in zip(run(cache, value), expected, strict=True) for k in x)
    assert broken, "control: the allocation is used"


def test_without_that_guard_leaves_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Forecaster("linear", steps=STEPS, computed=[0, 1, 2, 9])
    cache.step(0, lambda: {"a": field(0), "b": field(0)})
    monkeypatch.setattr(cache.history, "clear", lambda: None)
    failing_after(monkeypatch, Snapshots, "push", 1, MemoryError)
    with pytest.raises(MemoryError):
        cache.step(1, lambda: {"a": field(1), "b": field(1)})
    assert [len(stream.snapshots) for stream in cache.history.streams.values()] == [2, 1]


# --- odd tensors and arguments ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(2, 3, device="meta"), torch.eye(3).to_sparse(), torch.ones(2, 3).to(torch.float8_e4m3fn),
        torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3, dtype=torch.int32), torch.ones(0, 3),
        torch.tensor(float("nan")), torch.tensor([[1.0, float("-inf")]]),
    ],
    ids=["meta", "sparse", "float8", "complex", "integer", "empty", "nan", "inf"],
)  # fmt: skip
def test_a_value_that_can_be_no_snapshot_is_handed_on(bad: torch.Tensor, request: pytest.FixtureRequest) -> None:
    cache = Forecaster("linear", steps=STEPS, computed=[0, 3, 6, 9])
    served = [cache.step(i, lambda i=i: bad if i in (0, 3) else field(i)) for i in range(STEPS)]
    assert served[0] is bad and served[3] is bad  # computed, although it may be NaN
    assert [step.index for step in cache.trace.steps if step.kind == "computed"][:4] == [0, 1, 3, 4]  # and the next
    ends = [note for note in cache.trace.notes if "the history ends" in note]
    assert len(ends) == 2
    if request.node.callspec.id in ("nan", "inf"):
        assert all("holds NaN or infinity" in note for note in ends)
    assert all(bool(torch.isfinite(served[i]).all()) for i in range(4, STEPS))


@pytest.mark.parametrize(
    "form",
    [
        lambda v: v.clone().requires_grad_() * 1, lambda v: torch.stack([v, v], -1)[..., 0],
        lambda v: v[:, :1].expand(1, 4),
        lambda v: v[0, 0], lambda v: v.mT.contiguous().mT,
    ],
    ids=["grad", "strided", "expanded", "0-d", "transposed"],
)  # fmt: skip
def test_other_forms_of_a_tensor_are_kept_as_they_are(form: Any) -> None:
    plain = run(Forecaster("linear", steps=STEPS, interval=3), lambda i: form(field(i)).detach().clone().contiguous())
    served = run(Forecaster("linear", steps=STEPS, interval=3), lambda i: form(field(i)))
    assert all(map(torch.equal, served, plain))
    with torch.inference_mode():
        assert all(
            map(torch.equal, run(Forecaster("linear", steps=STEPS, interval=3), lambda i: form(field(i))), plain)
        )


@pytest.mark.parametrize("name", ["steps", "interval", "warmup", "end", "calls", "history", "batch_dim"])
@pytest.mark.parametrize("bad", [2.5, "3", [1], torch.ones(2)])
def test_counts_are_whole_numbers(name: str, bad: Any) -> None:
    given = {"steps": STEPS, name: bad}
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got"):  # guard: schedule.whole
        Forecaster("linear", **given)


def test_a_step_that_is_a_tensor_is_the_step() -> None:
    cache = Forecaster("linear", steps=STEPS, interval=3)
    for i in torch.arange(STEPS):
        cache.step(i, lambda i=i: field(int(i)))
    assert cache.trace.computed == len(cache.computed) > 1  # 1 without operator.index: a tensor is in no set
    with pytest.raises(TypeError, match=r"step must be a whole number, got 2\.5"):
        cache.needs_compute(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "state",
    [torch.ones(4), torch.ones(1, 4, device="meta"), {"a": field(0), "b": field(0)}, Guided(field(0), field(0))],
)
def test_a_state_of_another_form_is_computed_or_refused(state: Any) -> None:
    plan = Plan(tuple(map(float, range(5))), (0, 1, 3), {2: Weights((1.0,), 0.5), 3: Weights((0.5, 0.5), 0.1)})
    cache = Forecaster("reuse", steps=4, plan=plan)
    for i in (0, 1):
        cache.step(i, lambda i=i: field(i), state=field(i))
    assert torch.equal(cache.step(2, lambda: field(2), state=state), field(2))  # the latents may have been resized
    assert "step 2: a new history begins: another state" in cache.trace.notes
    with pytest.raises(ValueError, match="state of step 3 must have the form of the velocity"):  # Planner.check_state
        cache.step(3, lambda: field(3), state=state)
    assert cache.step(3, lambda: field(3), state=field(3)).shape == (1, 4)


def test_memory_is_flat_over_ten_thousand_runs() -> None:
    cache, value = Forecaster("linear", steps=2, computed=[0]), torch.ones(1, 2)

    def runs(count: int) -> int:
        for k in range(count):
            mine = cache if k % 8 else Forecaster("linear", steps=2, computed=[0])
            for i in range(2):
                mine.step(i, lambda: value)
            mine.reset()
        gc.collect()
        return len(gc.get_objects())

    gc.collect()
    gc.freeze()  # what other tests left behind is not counted, nor that it goes meanwhile
    try:
        before = runs(300)
        after = runs(10_000)
        assert abs(after - before) < 100
        kept = [Forecaster("linear", steps=2) for _ in range(200)]  # control: kept objects are seen
        assert len(gc.get_objects()) - after > 100 and kept
    finally:
        gc.unfreeze()
