"""Why "auto" spreads its calls as it does: ``python -m forecache_lab.spread [CHECKOUT]``.

The rule of "auto" (Lagrange of order 2, damped by 0.7, under the guard) on schedules with the same number of calls:
HiCache's (warm-up, fixed interval), the even spread and ``cosine`` of several powers and mixes; and the chosen spread
with other dampings. On the demonstration's closed-form flow and, with a patched checkout, on the reference network of
Hunyuan3D-2.1 over *calibration* conditions; cells are median / p95.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

from forecache import Forecaster, schedule
from forecache.basis import Linear

from . import demo, plans
from .reference import CALIBRATION_SEED, hunyuan21

INTERVALS, SEEDS = (4, 5, 6, 8), 16
SPREADS = ((1.0, 0.0), (1.0, 0.8), (1.0, 1.0), (1.15, 0.8), (1.15, 1.0), (1.3, 0.8), (1.3, 1.0))  # power, mix
DAMPINGS = (0.5, 0.85, 1.0)
Drift = Callable[[tuple[int, ...], Linear], list[float]]


def rows(effective: range) -> dict[str, tuple[list[tuple[int, ...]], Linear]]:
    """Per row, one schedule for each interval's number of calls, and the rule."""
    auto = Linear(2, damping=0.7)
    fixed = [schedule.fixed_interval(effective, interval, 4) for interval in INTERVALS]
    calls = [len(each) for each in fixed]
    found = {"4 warm-up steps, fixed interval": (fixed, auto)}
    for power, mix in SPREADS:
        name = f"cosine, power {power:g}, mix {mix:g}" if mix else "even"
        found[name] = [schedule.cosine(effective, k, power, mix) for k in calls], auto
    for damping in DAMPINGS:
        chosen = [schedule.cosine(effective, k) for k in calls]
        found[f"power 1.15, mix 0.8, damping {damping:g}"] = chosen, Linear(2, damping=damping)
    return found


def closed_form() -> tuple[str, range, Drift]:
    mu = demo.centres()
    exact, _ = demo.sample(range(SEEDS), mu, None)

    def drift(computed: tuple[int, ...], rule: Linear) -> list[float]:
        latents, _ = demo.sample(range(SEEDS), mu, {"basis": rule, "computed": computed})
        return [float(d) for d in (latents - exact).norm(dim=1) / exact.norm(dim=1)]

    return f"closed-form flow, {SEEDS} noises", range(demo.STEPS), drift


def reference_network(checkout: str) -> tuple[str, range, Drift]:
    torch.set_num_threads(1)
    pipe = hunyuan21.build(hunyuan21.load(checkout))
    run = plans.runner(pipe, CALIBRATION_SEED)
    uncached = [run(seed, None) for seed in range(SEEDS)]
    grid = pipe.scheduler.sigmas.tolist()  # the sampler's own float32 times, as the adapter reads them

    def drift(computed: tuple[int, ...], rule: Linear) -> list[float]:
        caches = (Forecaster(rule, times=grid, computed=computed) for _ in uncached)
        latents = [run(seed, cache) for seed, cache in enumerate(caches)]
        return [float((latent - each).norm() / each.norm()) for latent, each in zip(latents, uncached, strict=True)]

    return f"Hunyuan3D-2.1 reference network, {SEEDS} calibration conditions", range(49), drift


def table(title: str, effective: range, drift: Drift) -> str:
    found = rows(effective)
    calls = [len(each) for each in next(iter(found.values()))[0]]
    lines = [f"{title}: latent drift x 1000, median / p95", ""]
    lines += ["| schedule | " + " | ".join(f"{k} calls" for k in calls) + " |", "|---" * (len(calls) + 1) + "|"]
    for name, (each, rule) in found.items():
        cells = [drift(computed, rule) for computed in each]
        lines.append(
            f"| {name} | "
            + " | ".join(f"{1e3 * np.median(c):.1f} / {1e3 * np.percentile(c, 95):.0f}" for c in cells)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(*closed_form()))
    if len(sys.argv) > 1:
        try:
            print("\n" + table(*reference_network(sys.argv[1])))
        except FileNotFoundError as error:
            sys.exit(f"error: {error}")
