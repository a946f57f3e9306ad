"""What a skipped step costs inside cache-dit: our calibrator, a bare weighted sum, cache-dit's own, in one process.

::

    python -m forecache_lab.cost_cache_dit

Anchors 0, 1, 2, 3, 7, 8 of a decaying curve, 1 to 3 steps ahead; one thread, process time, interleaved. Ours is
the whole call: weights, sum, trace. The fit is made on the first skipped step after an anchor, and is in it.
cache-dit's DMD serves its line on such anchors; "DMD, even" is fed 0 .. 5.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator, TaylorSeerCalibrator

from forecache_adapters.cache_dit import Config, Forecasts

UNEVEN, EVEN = (0, 1, 2, 3, 7, 8), (0, 1, 2, 3, 4, 5)
SIZES = (((1, 4096, 64), 90, 90), ((1, 4096, 3072), 9, 3))  # shape, repeats, those of an SVD


def measure(shape: tuple[int, ...], repeats: int, repeats_svd: int) -> dict[str, list[float]]:
    """Milliseconds of every call, by name."""
    draw = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(shape, generator=draw) for _ in range(3))
    made = {
        "ours": (Forecasts(Config()), UNEVEN),
        "TaylorSeer": (TaylorSeerCalibrator(n_derivatives=1), UNEVEN),
        "DMD": (DMDCalibrator(), UNEVEN),
        "DMD, even": (DMDCalibrator(), EVEN),
    }
    for calibrator, anchors in made.values():
        for t in range(anchors[-1] + 1):
            calibrator.mark_step_begin()
            if t in anchors:
                calibrator.update(a + b * 0.95**t + c * 0.8**t)
    window = [a + b * 0.95**t + c * 0.8**t for t in UNEVEN]

    def bare() -> torch.Tensor:
        out: torch.Tensor = window[0] * 0.1
        for value in window[1:]:
            out.add_(value, alpha=0.18)
        return out

    calls: dict[str, Callable[[], object]] = {"bare sum": bare}
    calls |= {name: calibrator.approximate for name, (calibrator, _) in made.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    ours = made["ours"][0]
    for repeat in range(repeats):
        ours.step = UNEVEN[-1] + 1 + repeat % 3
        for name, call in calls.items():
            if name == "DMD, even" and repeat >= repeats_svd:
                continue
            start = time.process_time()
            call()
            taken[name].append(1e3 * (time.process_time() - start))
    return taken


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    print("ms per skipped step, float32, median / p95, n; ratio to the bare sum")
    for shape, repeats, repeats_svd in SIZES:
        taken = measure(shape, repeats, repeats_svd)
        base = statistics.median(taken["bare sum"])
        print(f"{list(shape)}")
        for name, each in taken.items():
            middle, high = statistics.median(each), sorted(each)[int(0.95 * (len(each) - 1))]
            print(f"  {name:12s} {middle:9.3f} / {high:9.3f}  n {len(each):3d}  {middle / base:6.2f}x")


if __name__ == "__main__":
    main()
