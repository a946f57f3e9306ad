"""Schedules as published caches have them, all that make a given number of calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from forecache import schedule

Schedules = dict[tuple[int, ...], str]


def ramp(effective: Collection[int], warmup: int, growth: float) -> tuple[int, ...]:
    """Spectrum's schedule as published: as ``forecache.schedule.ramp``, but the last step is not forced."""
    computed, gap, skipped = [], 2.0, 0
    for k, i in enumerate(effective):
        if k < warmup or (skipped + 1) % int(gap) == 0:
            gap += growth * (k >= warmup)
            computed.append(i)
            skipped = 0
        else:
            skipped += 1
    return tuple(computed)


def closest(found: Schedules, calls: int) -> Schedules:
    """Those of exactly ``calls`` computed steps; where there are none, of the next larger number."""
    length = min((len(each) for each in found if len(each) >= calls), default=0)
    return {each: label for each, label in found.items() if len(each) == length}


def fixed_schedules(effective: Sequence[int], calls: int) -> Schedules:
    """Every schedule of HiCache's form (warm-up, then a fixed interval, and the last step) with ``calls`` calls."""
    found: Schedules = {}
    for interval in range(1, len(effective) + 1):
        for warmup in range(1, len(effective) + 1):
            found.setdefault(
                schedule.fixed_interval(effective, interval, warmup), f"warm-up {warmup}, interval {interval}"
            )
    return closest(found, calls)


def ramp_schedules(effective: Sequence[int], calls: int) -> Schedules:
    """Growth ramps of Spectrum's form with ``calls`` calls, with the published or a shorter warm-up, as published and
    with the last step.
    """
    found: Schedules = {}
    for warmup in (5, 4, 3, 2):
        for growth in (0.75, 3.0, 0.0, *np.geomspace(0.02, 12, 60).tolist()):  # the published ones first
            label = f"warm-up {warmup}, growth {growth:.3g}"
            found.setdefault(ramp(effective, warmup, growth), label)
            found.setdefault(schedule.ramp(effective, warmup, 2.0, growth), f"{label}, last step")
    return closest(found, calls)
