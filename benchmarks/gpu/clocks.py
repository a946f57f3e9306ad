"""Seconds by the wall and by the device, and how often the host waits for it.

Work on a CUDA device is queued, so the wall's clock is read with the queue empty at both ends. The device's own clock
(events) runs beside it: where the host is slower than the device, as in a skipped step, it counts the host's time too.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Made = TypeVar("Made")
BUSY = 100_000_000  # cycles, some 50 ms: longer than any forecast takes on the host
SIGN = "synchronizing CUDA operation"  # of the warning in torch's sync debug mode


@dataclass(frozen=True)
class Spent:
    """Seconds of one call; ``device`` is ``None`` on a CPU."""

    wall: float
    device: float | None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and number.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values must not be empty")
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95)), "n": len(values)}


class Clock:
    """Times calls on ``device``, which must be the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """A moment in the device's queue (on a CPU: now); setting one waits for nothing."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, after :meth:`wait`."""
        return float(begin.elapsed_time(end)) * 1e-3 if self.cuda else float(end - begin)

    def timed(self, function: Callable[[], Made]) -> tuple[Made, Spent]:
        """The value of ``function()`` and its time, the queue empty before and after."""
        self.wait()
        start, begin = time.perf_counter(), self.mark()
        value = function()
        end = self.mark()
        self.wait()
        return value, Spent(time.perf_counter() - start, self.between(begin, end) if self.cuda else None)

    def waits(self, function: Callable[[], Made]) -> tuple[Made, int]:
        """The value of ``function()`` and how often torch says that the host waited for the CUDA device in it."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                value = function()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return value, sum(SIGN in str(each.message) for each in caught)

    def sees_waits(self) -> bool:
        """Whether :meth:`waits` counts a read and an upload from pageable memory, and does not count an addition."""
        some = torch.ones(4, device=self.device)
        found = [
            self.waits(each)[1]
            for each in (lambda: some.sum().item(), lambda: torch.tensor([1.0], device=self.device), lambda: some + 1)
        ]
        return found[0] > 0 and found[1] > 0 and found[2] == 0

    def returns_early(self, function: Callable[[], Made]) -> tuple[Made, bool]:
        """The value of ``function()`` and whether it came back while the CUDA device was still at work on something
        that was queued before: no wait of any kind, seen by torch or not.
        """
        self.wait()
        torch.cuda._sleep(BUSY)  # type: ignore[no-untyped-call, unused-ignore]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        done.record()
        value = function()
        early = not done.query()  # type: ignore[no-untyped-call, unused-ignore]
        self.wait()
        return value, early

    def peak(self, function: Callable[[], object]) -> int | None:
        """Most bytes of tensors on the device at a time while ``function()`` ran, those before it included; on a CPU,
        which does not count, ``None``.
        """
        if not self.cuda:
            function()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self.wait()
        return int(torch.cuda.max_memory_allocated(self.device))
