"""What the lines of a hook cost while nothing is attached, and that they change nothing: the same for every generator."""

import statistics
import sys
import time
from types import ModuleType

import torch

SEEDS, RUNS = 8, 400


def report(test: ModuleType) -> None:
    """`test` is the draft's test file: its `load` and `sample` are the loop, its network and noise."""
    torch.set_num_threads(1)
    without, changed = (test.load(folder) for folder in sys.argv[1:3])
    equal = sum(torch.equal(test.sample(without, seed), test.sample(changed, seed)) for seed in range(SEEDS))
    print(f"nothing attached, {test.STEPS} steps: samples equal bit for bit without and with the change: {equal} of {SEEDS}")
    if equal != SEEDS:
        raise SystemExit("they differ")
    taken = {name: [] for name in ("without", "with", "without, again")}
    for _ in range(RUNS):
        for (name, times), tree in zip(taken.items(), (without, changed, without)):
            start = time.perf_counter()
            test.sample(tree)
            times.append((time.perf_counter() - start) / test.STEPS * 1e6)
    print(f"microseconds a step of this loop around a network of a few operations, CPU, 1 thread, n = {RUNS} runs each in turn:")
    for name, times in taken.items():
        times.sort()
        print(f"  {name:15s} median {statistics.median(times):7.1f}  p95 {times[int(0.95 * len(times))]:7.1f}")
