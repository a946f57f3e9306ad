"""Cost, state and forecasts of the DMD calibrator without and with the change, in one run on one thread."""

import math
import statistics
import time

from beside import both

before, after = both("dmd")
import cache_dit  # noqa: E402
import torch  # noqa: E402
from cache_dit.caching.cache_contexts.calibrators import TaylorSeerCalibrator  # noqa: E402

torch.set_num_threads(1)
WINDOW = 6
KINDS = {"without": before.DMDCalibrator, "with": after.DMDCalibrator}


def trajectory(shape, dtype, slow=False):
    """Rank 4: a slow decay, one damped oscillation, a fast decay. Well separated poles unless `slow`."""
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(*shape, generator=g) for _ in range(4)]
    scale, angle, last = (0.5, 0.35, (0.2, 0.8)) if slow else (0.8, 0.9, (0.9, 0.7))

    def at(t):
        z = scale * 0.93**t
        factors = (0.97**t, z * math.cos(angle * t), z * math.sin(angle * t), last[0] * last[1] ** t)
        y = parts[0] * factors[0]
        for part, factor in zip(parts[1:], factors[1:]):
            y = y.add_(part, alpha=factor)
        return y.to(dtype)

    return at


def held(obj, seen):
    if isinstance(obj, torch.Tensor):
        storage = obj.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(obj, dict):
        return sum(held(value, seen) for value in obj.values())
    if isinstance(obj, (list, tuple)):
        return sum(held(value, seen) for value in obj)
    return held(vars(obj), seen) if hasattr(obj, "__dict__") else 0


def timed(call):
    start = time.process_time()
    result = call()
    return (time.process_time() - start) * 1e3, result


def cost(shape, dtype, windows):
    truth, served = trajectory(shape, dtype), {}
    for kind, make in KINDS.items():
        calibrator, records, fits, forecasts = make(), [], [], []
        for t in range(WINDOW + windows - 1):
            value = truth(t)
            calibrator.mark_step_begin()
            record, _ = timed(lambda: calibrator.update(value))
            if t < WINDOW - 1:
                continue
            records.append(record)
            calibrator.states["default"].current_step += 1  # one skipped step ahead
            first, y = timed(calibrator.approximate)
            again, _ = timed(calibrator.approximate)
            calibrator.states["default"].current_step -= 1
            fits.append(first - again)
            forecasts.append(again)
        size = held(calibrator.states, set()) / value.numel() / value.element_size()
        served[kind] = (y.double(), [statistics.median(x) for x in (records, fits, forecasts)], size)
        del calibrator
    (old, slow, much), (new, fast, little) = served["without"], served["with"]
    name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}, {windows} windows"
    print(f"{name}: record, fit, forecast in ms; state in features")
    for kind, (_, times, size) in served.items():
        print(f"  {kind:8s}" + "".join(f"{value:10.2f}" for value in times) + f"{size:8.1f}x")
    ratio = (slow[0] + slow[1]) / (fast[0] + fast[1])
    print(f"  record and fit {ratio:.0f}x faster, state {much / little:.1f}x smaller,", end=" ")
    print(f"forecasts differ by {float((new - old).norm() / old.norm()):.1e}")


def error(calibrator, mask, truth):
    found = []
    for t, compute in enumerate(mask):
        calibrator.mark_step_begin()
        if compute:
            calibrator.update(truth(t))
        elif t > 6:
            found.append(float((calibrator.approximate() - truth(t)).norm() / truth(0).norm()))
    return sum(found) / len(found)


print("CPU, 1 thread, window 6, batch 1; medians of process CPU time.")
cost((1, 4096, 64), torch.float32, 9)
cost((1, 4096, 64), torch.bfloat16, 9)
cost((1, 4096, 3072), torch.float32, 3)
print("Mean relative error of all skipped steps after step 6, rank-4 trajectory of 4096 numbers, float32:")
MASKS = {
    "SCM medium, 28 steps": cache_dit.steps_mask(total_steps=28, mask_policy="medium"),
    "SCM fast, 28 steps": cache_dit.steps_mask(total_steps=28, mask_policy="fast"),
    "warm-up 3, then every 4th": [1, 1, 1] + [0, 0, 0, 1] * 6,
    "warm-up 6, then every 4th": [1] * 6 + [0, 0, 0, 1] * 6,
}
for name, mask in MASKS.items():
    print(f"  {name}:", end="")
    for label, make in (("TaylorSeer", lambda: TaylorSeerCalibrator(n_derivatives=1)), *KINDS.items()):
        print(f"  {label} {error(make(), mask, trajectory((1, 4096), torch.float32, slow=True)):.3f}", end="")
    print()
