"""What a skipped step costs inside cache-dit: our calibrator, a bare weighted sum, cache-dit's own, in one process.

::

    python -m benchmarks.cost.cache_dit [--quick]

All calibrators go through the same generations step by step, one after the other, on values that are new in each. So a
call finds the processor's caches as ten other calls left them, as in a run that computes a network in between.
"forecast" is the whole call of a skipped step: fit, weights, guard, sum, trace; "again" the same call repeated at
once. One thread, process time.

"bare" is a weighted sum of six snapshots and nothing else, written in several forms: the fastest of all forms, or,
under "bare float32", the fastest that sums in float32. A bfloat16 sum in bfloat16 rounds its weights or every partial
sum, and errs by 1.5 to 4 times the rounding of its result. Rules that read fewer snapshots (TaylorSeer 1: two) are
compared with the same six.

Schedules: the step mask "medium" of cache-dit at 28 steps, whose anchors are uneven, so that its DMD serves a line; and
every second step, where its DMD fits.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from cache_dit import steps_mask
from cache_dit.caching.cache_contexts.calibrators import DMDCalibrator, FoCaCalibrator, TaylorSeerCalibrator

from forecache_adapters.cache_dit import Config, Forecasts

from ..tables import markdown

RULES = ("exponential", "auto", "linear", "taylor", "hermite", "dmd")
SIZES = ((1, 4096, 64), (1, 4096, 3072))
MEDIUM, EVEN = tuple(steps_mask(total_steps=28, mask_policy="medium")), (1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0)
Milliseconds = dict[str, dict[str, list[float]]]


def sums(window: Sequence[torch.Tensor], weights: Sequence[float]) -> dict[str, Callable[[], torch.Tensor]]:
    """The bare weighted sum in its natural forms."""
    stacked = torch.stack([value.flatten() for value in window])
    vector = torch.tensor(weights, dtype=stacked.dtype)

    def in_place() -> torch.Tensor:
        out = window[0] * weights[0]
        for value, weight in zip(window[1:], weights[1:], strict=True):
            out.add_(value, alpha=weight)
        return out

    def float32() -> torch.Tensor:
        out = window[0].float().mul_(weights[0])
        for value, weight in zip(window[1:], weights[1:], strict=True):
            out.add_(value, alpha=weight)
        return out.to(stacked.dtype)

    forms: dict[str, Callable[[], torch.Tensor]] = {
        "bare: add_ in place": in_place,
        "bare: mv of a stack": lambda: torch.mv(stacked.T, vector).view(window[0].shape),
    }
    if stacked.dtype != torch.float32:
        converted = torch.empty(stacked.shape)
        single = vector.float()
        forms["bare: float32 add_"] = float32
        forms["bare: float32 mv"] = lambda: torch.mv(converted.copy_(stacked).T, single).to(stacked.dtype)
    return forms


def curve(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Callable[[int], torch.Tensor]:
    """A decaying curve: ``a + 0.95^t b + 0.8^t c``."""
    draw = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(tuple(shape), generator=draw) for _ in range(3))
    return lambda t: (a + b * 0.95**t).add_(c, alpha=0.8**t).to(dtype)


def measure(
    made: Mapping[str, Any], mask: Sequence[int], shape: Sequence[int], dtype: torch.dtype, generations: int
) -> tuple[Milliseconds, dict[str, float]]:
    """Every call in ms, by what it is and whose; and the bytes held at the end."""
    first = curve(shape, dtype, 0)
    bare = sums([first(t) for t in range(6)], (-0.02, 0.05, -0.1, 0.3, -1.2, 1.97))
    spent: Milliseconds = {kind: {name: [] for name in (*bare, *made)} for kind in ("record", "forecast", "again")}
    order = random.Random(0)

    def timed(kind: str, name: str, call: Callable[..., object], *arguments: object) -> None:
        start = time.process_time()
        call(*arguments)
        spent[kind][name].append(1e3 * (time.process_time() - start))

    for generation in range(generations):
        value = curve(shape, dtype, generation)
        for calibrator in made.values():
            calibrator.reset_cache()
        for t, compute in enumerate(mask):
            arriving = value(t) if compute else None
            for name in order.sample([*made, *bare], len(made) + len(bare)):
                if name in made:
                    made[name].mark_step_begin()
                if compute:
                    if name in made:
                        timed("record", name, made[name].update, arriving)
                    continue
                call = made[name].approximate if name in made else bare[name]
                timed("forecast", name, call)
                timed("again", name, call)
    return spent, {name: bytes_held(each) for name, each in made.items()}


def bytes_held(calibrator: Any) -> float:
    """Bytes of tensors that a calibrator keeps."""
    if isinstance(calibrator, Forecasts):
        return calibrator.nbytes
    storages: dict[int, int] = {}

    def walk(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, Mapping):
            walk(thing.values())
        elif isinstance(thing, Iterable) and not isinstance(thing, str):
            for each in thing:
                walk(each)
        elif hasattr(thing, "__dict__"):
            walk(vars(thing))

    walk(calibrator)
    return sum(storages.values())


def show(spent: Milliseconds, state: Mapping[str, float], snapshot: int, half: bool) -> None:
    """The Markdown table."""
    middle = {kind: {name: statistics.median(ms) for name, ms in of.items() if ms} for kind, of in spent.items()}

    def fastest(kind: str, word: str) -> float:
        return min(ms for name, ms in middle[kind].items() if name.startswith("bare") and word in name)

    words = ("", "float32") if half else ("",)
    head = ["", "record", "p95", "forecast", "p95", "/ bare", "again", "/ bare", "state", "n"]
    if half:
        head[6:6] = ["/ bare float32"]
        head[9:9] = ["/ bare float32"]
    rows = []
    for name, ms in spent["forecast"].items():
        cells = [name]
        for kind in ("record", "forecast", "again"):
            each = sorted(spent[kind][name])
            if not each:
                cells += ["", ""]
                continue
            cells.append(f"{middle[kind][name]:.3f}")
            if kind != "again":
                cells.append(f"{each[int(0.95 * (len(each) - 1))]:.3f}")
            if kind != "record":
                cells += [f"{middle[kind][name] / fastest(kind, word):.2f}x" for word in words]
        cells += [f"{state[name] / snapshot:.1f}" if name in state else "", str(len(ms))]
        rows.append(cells)
    print(markdown(head, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.cache_dit", description="See the module.")
    parser.add_argument("--quick", action="store_true", help="the small size alone, and fewer generations")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("ms per call, one thread, process time; state in snapshots; new values in every generation")
    sizes = SIZES[:1] if options.quick else SIZES
    for shape, dtype in itertools.product(sizes, (torch.float32, torch.bfloat16)):
        large = shape != SIZES[0]
        every: dict[str, Any] = {f"ours, {rule}": Forecasts(Config(basis=rule)) for rule in RULES}
        every |= {f"cache-dit TaylorSeer {order}": TaylorSeerCalibrator(n_derivatives=order) for order in (1, 2)}
        every |= {"cache-dit FoCa": FoCaCalibrator(), "cache-dit DMD": DMDCalibrator()}
        fitted: dict[str, Any] = {f"ours, {rule}": Forecasts(Config(basis=rule)) for rule in ("exponential", "dmd")}
        fitted["cache-dit DMD"] = DMDCalibrator()
        for title, made, mask in (("SCM medium", every, MEDIUM), ("every second step", fitted, EVEN)):
            generations = (1 if mask is EVEN else 2) if large else 4 if options.quick else 12
            spent, state = measure(made, mask, shape, dtype, generations)
            snapshot = torch.Size(shape).numel() * dtype.itemsize
            print(f"\n{list(shape)} {str(dtype).removeprefix('torch.')}, {title}, {generations} generations\n")
            show(spent, state, snapshot, dtype != torch.float32)


if __name__ == "__main__":
    main()
