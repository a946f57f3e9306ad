"""What a run amounts to, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seconds, calls and, where there are references, metrics: median and bad tail, with n.

    A worker's first sample also warms up kernels and caches: its seconds are left out unless there are no others.
    """
    said = []
    medians = {}
    for kind in ("uncached", "forecast"):
        records = [entry[kind] for entry in entries if kind in entry]
        if not records:
            continue
        warm = [r for r in records if not r["first_of_worker"]] or records
        seconds = [r["seconds"] for r in warm]
        medians[kind] = float(np.median(seconds))
        calls = sorted({sum(r["calls"].values()) for r in records})
        said.append(
            f"{kind}: calls {'..'.join(map(str, dict.fromkeys((calls[0], calls[-1]))))}, seconds {medians[kind]:.3g} / "
            f"{np.percentile(seconds, 95):.3g} (n = {len(seconds)})"
        )
    if len(medians) == 2:
        said.append(f"speed-up of the medians: {medians['uncached'] / medians['forecast']:.2f}")
    compared = [entry["comparison"] for entry in entries if "comparison" in entry]
    for name, tail in (("psnr", 5), ("ssim", 5), ("lpips", 95), ("drift", 95)):
        values = [record[name] for record in compared if record[name] is not None]
        if values:
            said.append(
                f"{name} to uncached: {np.median(values):.4g} / {np.percentile(values, tail):.4g} (n = {len(values)})"
            )
        else:
            reasons = sorted({record["absent"][name] for record in compared if name in record["absent"]})
            said.extend(f"{name}: absent, {reason}" for reason in reasons)
    warned = sorted({text for entry in entries for text in entry.get("forecast", {}).get("warnings", ())})
    said.extend(f"warning: {text}" for text in warned)
    return ["median / bad tail (p95, of psnr and ssim p5)", *said] if said else []
