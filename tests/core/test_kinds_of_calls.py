"""A history serves one kind of call only; whoever is interrupted leaves the forecaster usable."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import forecache
from forecache import Forecaster, Guided
from forecache.turns import Turns

STEPS = 12
ROOT = str(Path(forecache.__file__).parent)


def field(i: int, shape: tuple[int, ...] = (2, 4)) -> torch.Tensor:
    return torch.sin(torch.arange(float(torch.Size(shape).numel())) + 0.3 * i).reshape(shape)


def computed(cache: Forecaster) -> list[int]:
    return [step.index for step in cache.trace.steps if step.kind == "computed"]


# --- the kind that the caller names -----------------------------------------------------------------------------------
def run(cache: Forecaster, kind: Callable[[int], Any], value: Callable[[int], Any] = field) -> list[Any]:
    return [cache.step(i, lambda i=i: value(i), kind=kind(i)) for i in range(STEPS)]  # type: ignore[misc]


@pytest.mark.parametrize("at", [1, 5, 6, 11])
@pytest.mark.parametrize("basis", ["auto", "dmd", "linear", "reuse"])
def test_another_kind_of_call_begins_a_new_history(basis: str, at: int) -> None:
    """As if the run had been cut there: what follows is what a forecaster of its own would serve."""
    cache = Forecaster(basis, steps=STEPS, interval=4, warmup=1)
    served = run(cache, lambda i: {"control": i < at})
    assert at in computed(cache) and cache.trace.notes[-1:] == [f"step {at}: a new history begins: another control"]
    alone = Forecaster(basis, steps=STEPS, computed=sorted({0, *(i for i in cache.computed if i >= at), at}))
    alone.step(0, lambda: field(0))
    alone.history.clear()
    assert all(torch.equal(alone.step(i, lambda i=i: field(i)), served[i]) for i in range(at, STEPS))


def test_one_kind_of_call_keeps_its_history() -> None:
    cache, plain = (Forecaster("dmd", steps=STEPS, interval=4) for _ in range(2))
    same = {"batch": 2, "shape": (2, 4)}
    assert all(map(torch.equal, run(cache, lambda i: same), run(plain, lambda i: None)))
    assert not cache.trace.notes and computed(cache) == computed(plain)


def test_what_is_not_named_is_not_compared() -> None:
    cache = Forecaster("linear", steps=STEPS, interval=4)
    run(cache, lambda i: {"batch": 2} if i % 2 else {"control": True})
    assert not cache.trace.notes


def test_a_state_of_another_size_is_another_kind() -> None:
    """Latents that are made larger within a run: the forecast would have the old size."""

    def sample(cache: Forecaster) -> list[torch.Size]:
        sizes = [(1, 4) if i < 6 else (1, 9) for i in range(STEPS)]
        return [cache.step(i, lambda i=i: field(i, sizes[i]), state=torch.zeros(sizes[i])).shape for i in range(STEPS)]

    cache = Forecaster("linear", steps=STEPS, computed=[0, 3, 9])
    assert sample(cache) == [torch.Size((1, 4))] * 6 + [torch.Size((1, 9))] * 6
    blind = Forecaster("linear", steps=STEPS, computed=[0, 3, 9])
    blind.match = lambda kind: None  # type: ignore[method-assign]  # control: without the comparison the sizes are wrong
    assert torch.Size((1, 4)) in sample(blind)[6:]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.ones(2, 3), torch.ones(1, 3)),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)),
        (torch.ones(2, 3), {"v": torch.ones(2, 3)}),
        ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}),
        ((torch.ones(2), None), (torch.ones(2), torch.ones(2))),
        (Guided(torch.ones(2), torch.ones(2)), torch.ones(2)),
        (Guided(torch.ones(2), torch.ones(2)), Guided(torch.ones(3), torch.ones(3))),
    ],
    ids=["batch", "dtype", "container", "leaf", "none", "guidance", "shape of a branch"],
)
def test_a_value_of_another_form_begins_a_new_history(before: Any, after: Any) -> None:
    cache = Forecaster("linear", steps=STEPS, computed=[0, 1, 5])
    served = [cache.step(i, lambda i=i: before if i < 5 else after) for i in range(STEPS)]
    assert served[5] is after and type(served[7]) is type(after)
    assert len(cache.trace.notes) == 1 and "step 5: a new history begins" in cache.trace.notes[0]


def test_no_memory_for_a_snapshot_ends_the_history_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from forecache.snapshots import Snapshots

    def push(self: Any, *args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(Snapshots, "push", push)
    cache = Forecaster("linear", steps=STEPS, interval=3)
    assert all(torch.equal(a, field(i)) for i, a in enumerate(run(cache, lambda i: None)))
    assert cache.nbytes == 0 and "no memory" in cache.trace.notes[0]


def test_gradients_that_end_are_noted() -> None:
    scale = torch.ones((), requires_grad=True)
    cache = Forecaster("linear", steps=STEPS, interval=3)
    run(cache, lambda i: None, lambda i: field(i) * scale)
    assert any("gradients end at forecast steps" in note for note in cache.trace.notes)
    with torch.no_grad():
        cache.reset()
        run(cache, lambda i: None, lambda i: field(i) * scale)
    assert not cache.trace.notes


# --- interrupts -------------------------------------------------------------------------------------------------------
def interrupted(cache: Forecaster, at: int) -> bool:
    """A run that is interrupted before the ``at``-th instruction of ours; whether it had so many."""
    count = 0

    def local(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        if count == at:
            sys.settrace(None)
            raise KeyboardInterrupt
        return local

    def tracer(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        frame.f_trace_opcodes = True
        return local

    sys.settrace(tracer)
    try:
        with cache:
            for i in range(4):
                cache.step(i, lambda i=i: field(i))
        return False
    except KeyboardInterrupt:  # and not the RuntimeError of a close() that finds the forecaster locked
        return True
    finally:
        sys.settrace(None)


def test_an_interrupt_before_any_instruction_leaves_the_forecaster_usable() -> None:
    how: dict[str, Any] = {"basis": "linear", "steps": 4, "computed": [0, 1, 3], "history": 2}
    wanted = [Forecaster(**how).step(0, lambda: field(0))]
    at, met = 1, 0
    while True:
        cache = Forecaster(**how)
        if not interrupted(cache, at):
            break
        met, at = met + 1, at + 7  # 7: prime to the length of every loop here, and short enough a test
        cache.reset()
        assert torch.equal(cache.step(0, lambda: field(0)), wanted[0])
    assert met > 300


def test_with_a_lock_that_is_only_released_an_interrupt_would_lock_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a turn that does not end with its frame."""
    monkeypatch.setattr("forecache.turns.runs", lambda frame: True)
    locked = 0
    for at in range(1, 3000, 31):
        cache = Forecaster("linear", steps=4, computed=[0, 1, 3], history=2)
        try:
            interrupted(cache, at)
            cache.reset()
        except RuntimeError:
            locked += 1
    assert locked


def test_a_turn_is_refused_to_others_as_long_as_its_frame_runs() -> None:
    cache, inside, leave = Forecaster("linear", steps=STEPS), threading.Event(), threading.Event()

    def slow() -> torch.Tensor:
        inside.set()
        leave.wait(10)
        return field(0)

    thread = threading.Thread(target=lambda: cache.step(0, slow))
    thread.start()
    inside.wait(10)
    for act in (cache.close, cache.reset, lambda: cache.observe(0, field(0))):
        with pytest.raises(RuntimeError, match="while this Forecaster is at work in another call, of another thread"):
            act()
    leave.set()
    thread.join()
    cache.close()
    with pytest.raises(RuntimeError, match=r"of the compute\(\)"):
        cache.step(1, lambda: cache.step(2, lambda: field(2)))


def test_a_holder_that_never_named_itself_is_gone() -> None:
    turns = Turns()
    turns._lock.acquire()  # as an interrupt leaves it, right behind the lock
    turns.take("step 0", sys._getframe())
    turns.give()
    assert not turns._lock.locked()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_a_real_signal_within_a_with_block_arrives_as_itself() -> None:
    """All but a few: Python itself drops an exception that comes within a finaliser or a callback of its collector."""
    before, arrived = signal.signal(signal.SIGALRM, signal.default_int_handler), 0
    try:
        for k in range(40):
            cache = Forecaster("linear", steps=8, interval=2)
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-4 + 1e-5 * k)
                end = time.monotonic() + 1
                with cache:
                    while time.monotonic() < end:
                        for i in range(8):
                            cache.step(i, lambda: field(0))
                        cache.reset()
            except KeyboardInterrupt:
                arrived += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            cache.reset()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert arrived > 35
