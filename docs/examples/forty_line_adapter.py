"""A generator adapter in 40 lines: ``enable`` and ``disable`` for a ``SmallGenerator``."""

from typing import Any

from torch import Tensor

from forecache import Forecaster, Trace, fingerprint
from forecache_adapters.settings import Settings


class Handle:
    """Takes the place of two methods of a pipeline; ``traces``: of its newest run, by branch."""

    def __init__(self, pipe: Any, settings: Settings) -> None:
        self.pipe, self.settings, self.plain = pipe, settings, type(pipe)
        self.traces: dict[str, Trace] = {}
        self.caches: dict[str, Forecaster | None] = {}  # empty outside of a run: no snapshot outlives it

    def generate(self, x: Tensor, cond: Tensor, steps: int = 24, **options: Any) -> Tensor:
        self.times: list[float] = self.pipe.times(steps)
        # a plan for another model is refused
        made_for = {"generator": "small", "weights": fingerprint(self.pipe.network)}
        for branch in ("cond", "uncond"):  # a history each: the two velocities are never mixed
            self.caches[branch], self.traces[branch] = self.settings.begin(self.times, made_for)
        try:
            sample: Tensor = self.plain.generate(self.pipe, x, cond, steps, **options)
            return sample
        finally:
            self.caches = {}

    def velocity(self, x: Tensor, t: float, cond: Tensor | None) -> Tensor:
        cache = self.caches.get("uncond" if cond is None else "cond")
        if cache is None:  # outside of a run, or in one of so few steps that the cache stays off
            v: Tensor = self.plain.velocity(self.pipe, x, t, cond)
        else:
            v = cache.step(self.times.index(t), lambda: self.plain.velocity(self.pipe, x, t, cond))
        return v


def enable(pipe: Any, **settings: Any) -> Handle:
    handle = Handle(pipe, Settings(**settings))
    pipe.generate, pipe.velocity = handle.generate, handle.velocity
    return handle


def disable(pipe: Any) -> None:
    for name in ("generate", "velocity"):
        vars(pipe).pop(name, None)
