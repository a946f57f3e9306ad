"""A generator for the folder bench that takes milliseconds; run as a program, ``forecache bench`` with it.

A step moves x towards a point that its picture gives, and turns it: a smooth velocity that no rule forecasts exactly.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager

import torch
import trimesh

from forecache import Forecaster
from forecache_adapters.settings import Settings
from forecache_lab import record
from forecache_lab.generators.generated import Generated, GenerationFailed
from forecache_lab.generators.reference import pictures
from forecache_lab.metrics import geometry

STEPS = 24
QUICK = {"QUERIES": 300, "TARGETS": 1000, "VOXELS": 8}  # for the metrics, instead of what tables are made with


class Toy:
    title, conditions, paired = "toy", "CPU, no network", False

    def __init__(self, pause=0.0, note=lambda what: None):
        self.networks = {"denoise": torch.nn.Linear(1, 1)}
        with torch.no_grad():
            for parameter in self.networks["denoise"].parameters():
                parameter.fill_(0.5)
        self.pause, self.note = pause, note

    @contextmanager
    def attached(self, settings):
        if settings is not None:
            Settings(**settings)
        yield settings

    def fewer(self, calls):
        return None, calls

    def generate(self, picture, seed, settings=None, steps=None, given=None):
        made, steps = Generated(), steps or STEPS
        self.note((settings, seed))
        goal = torch.nn.functional.avg_pool2d(pictures.from_image(picture), 16).flatten()
        if goal.max() > 0.9:
            raise GenerationFailed("white pictures have no surface")
        grid = [k / steps for k in range(steps + 1)]
        cache = None if settings is None else Forecaster(times=grid, **settings)
        x, calls = torch.randn(4, generator=torch.Generator().manual_seed(seed)), 0

        def velocity():
            nonlocal calls
            calls += 1
            return 2 * (goal - x) + torch.sin(5 * x.roll(1) + 3 * grid[i])

        with made.timed("denoise"):
            time.sleep(self.pause)
            for i in range(steps):
                x = x + (grid[i + 1] - grid[i]) * (velocity() if cache is None else cache.step(i, velocity))
        with made.timed("decode"):
            made.mesh = trimesh.creation.icosphere(subdivisions=1)
            made.mesh.apply_scale(1 + 0.3 * torch.tanh(x[:3]).abs().numpy())
        made.latents, made.calls = {"denoise": x}, {"denoise": calls}
        made.trace = {} if cache is None else {"network": record.steps(cache.trace)}
        return made


if __name__ == "__main__":
    from forecache_cli.commands import bench
    from forecache_cli.main import app

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: jobs in the background ignore it
    for name, value in QUICK.items():
        setattr(geometry, name, value)
    bench.load = lambda *given: Toy(0.05, lambda what: print("ready", flush=True))
    app(["bench", "hunyuan21", "--checkout", ".", *sys.argv[1:]])
