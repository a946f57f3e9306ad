"""A small run folder without a generator: bumpy balls that drift more the fewer calls a method makes."""

from __future__ import annotations

import numpy as np
import trimesh

from forecache import Forecaster
from forecache_lab import record

STEPS = 20
METHODS = {"dmd, interval 3": 0.02, "dmd, interval 5": 0.05, "control: dmd with the wrong sign, interval 5": 0.2}


def trace(basis, interval, item):
    cache = Forecaster(steps=STEPS, basis=basis, interval=interval, warmup=3)
    import torch

    for i in range(STEPS):
        cache.step(i, lambda t=i / STEPS: torch.sin(torch.arange(1, 5) * (t + 0.1 * item)))
    return record.steps(cache.trace)


def ball(item, drift, subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions, 0.5)
    along = mesh.vertices[:, 0] + mesh.vertices[:, 1] * item
    mesh.vertices *= 1 + 0.1 * np.sin(6 * along)[:, None] + drift * np.clip(mesh.vertices[:, 2:], 0, 1)
    return mesh


def write(folder, items=4, title="A small run <of> balls", subdivisions=3):
    """A run folder; returns its record."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for item in range(items):
        name = f"seed {item}"
        mesh = record.save_mesh(folder, f"uncached-{item}", ball(item, 0, subdivisions))
        runs.append(record.Run("uncached", name, {"denoise": STEPS}, {"denoise": 2.0, "decode": 0.5}, mesh=mesh))
        for method, scale in METHODS.items():
            interval = int(method[-1])
            drift = scale * (1 + (item * 7) % 5)
            steps = trace("linear", interval, item)
            computed = sum(step["kind"] == "computed" for step in steps)
            file = record.save_mesh(folder, f"{method}-{item}", ball(item, drift, subdivisions))
            values = {"latent drift": drift, "Chamfer": drift / 9, "F@0.01": 1 / (1 + drift)}
            seconds = {"denoise": 0.1 * computed, "decode": 0.5}
            runs.append(record.Run(method, name, {"denoise": computed}, seconds, values, {"network": steps}, file))
    table = record.Table("shape, 20 steps", "latent drift", runs, ["F@0.01"], {"Chamfer": 0.002, "F@0.01": 0.999})
    body = record.Record(title, "no generator: balls", "lengths in longest box sides; drift relative", [table])
    record.write(folder, body)
    return body
