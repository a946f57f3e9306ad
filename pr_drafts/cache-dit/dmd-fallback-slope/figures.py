"""Errors of the Taylor fallback and of all skipped steps, without and with the change, beside TaylorSeer."""

import math

from beside import both

before, after = both("dmd")
import cache_dit  # noqa: E402
import torch  # noqa: E402
from cache_dit.caching.cache_contexts.calibrators import TaylorSeerCalibrator  # noqa: E402

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
a, b, c, d = (torch.randn(1, 4096, generator=g) for _ in range(4))
MASKS = {
    "SCM medium, 28 steps": cache_dit.steps_mask(total_steps=28, mask_policy="medium"),
    "SCM fast, 28 steps": cache_dit.steps_mask(total_steps=28, mask_policy="fast"),
    "warm-up 3, then every 4th": [1, 1, 1] + [0, 0, 0, 1] * 6,
}


def line(t):
    return a + b * t


def smooth(t):
    damped = 0.5 * 0.93**t
    return a * 0.97**t + b * damped * math.cos(0.35 * t) + c * damped * math.sin(0.35 * t) + d * 0.2 * 0.8**t


def steps(mask):
    """Skipped steps after step 6, and those of them with fewer than 4 evenly spaced computed steps behind."""
    dmd, skipped, fallback = before.DMDCalibrator(), [], []
    for t, compute in enumerate(mask):
        dmd.mark_step_begin()
        if compute:
            dmd.update(line(t))
        elif t > 6:
            skipped.append(t)
            if len(dmd.states["default"]._uniform_tail()[0]) < 4:
                fallback.append(t)
    return skipped, fallback


def errors(calibrator, mask, truth, wanted, unit):
    found = []
    for t, compute in enumerate(mask):
        calibrator.mark_step_begin()
        if compute:
            calibrator.update(truth(t))
        elif t in wanted:
            found.append(float((calibrator.approximate() - truth(t)).norm() / unit))
    return sum(found) / len(found), max(found)


print("Synthetic trajectories of 4096 numbers, float32, CPU; skipped steps after step 6.")
for name, mask in MASKS.items():
    skipped, fallback = steps(mask)
    print(f"{name}: {len(skipped)} skipped steps, {len(fallback)} of them served by the fallback")
    for label, make in (
        ("TaylorSeer", lambda: TaylorSeerCalibrator(n_derivatives=1)),
        ("DMD without the change", before.DMDCalibrator),
        ("DMD with the change", after.DMDCalibrator),
    ):
        mean, worst = errors(make(), mask, line, fallback, b.norm())
        rough, _ = errors(make(), mask, smooth, skipped, smooth(0).norm())
        print(f"  {label:22s}  line, in steps of motion: max {worst:6.3f} mean {mean:6.3f}   smooth: mean {rough:.3f}")
