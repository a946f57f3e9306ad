"""Forecasts of y = t for the skipped steps, without and with the change, beside TaylorSeer."""

from beside import both

before, after = both("foca")
import torch  # noqa: E402
from cache_dit.caching.cache_contexts.calibrators import TaylorSeerCalibrator  # noqa: E402

MASKS = {
    "every step": [1, 1, 1, 1, 0, 0],
    "every 3rd": [1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0],
    "every 5th": [1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0],
}

print("Forecasts of y = t, float32, CPU.")
for name, mask in MASKS.items():
    print(f"{name}: skipped t", [t for t, compute in enumerate(mask) if not compute])
    for label, calibrator in (
        ("TaylorSeer", TaylorSeerCalibrator(n_derivatives=1)),
        ("FoCa without the change", before.FoCaCalibrator()),
        ("FoCa with the change", after.FoCaCalibrator()),
    ):
        served = []
        for t, compute in enumerate(mask):
            calibrator.mark_step_begin()
            if compute:
                calibrator.update(torch.tensor([[float(t)]]))
            else:
                served.append(round(calibrator.approximate().item(), 2))
        print(f"  {label:23s}", *(f"{value:g}" for value in served))
