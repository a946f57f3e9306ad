"""Hooks on the instances of generators with an ODE solver: no patch needed.

While the dynamics of a run is at work, the forward of the network is served branch by branch, and the guidance
wrapper goes on combining them: guidance and its interval stay exact on forecast steps. Everything that belongs to a run
lives in the call of ``solve_iter``, a Python generator that yields once a step, so that several runs of one generator
may be under way at once and a dropped one leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any

import torch

from .branches import StageTrace
from .flow_euler import Guidance, plan_key
from .ode_solver import Run, is_compiled, order_of, slopes_of


class Hook:
    """What is attached to one generator.

    Args:
        accelerator: that the generator belongs to. stage: its name there.
        generator: with ``_solver`` and ``reverse_fn``.
        settings: of the stage, or a cache, or ``None`` (off).
        combined: why the velocity after guidance is forecast; empty: it is not.
    """

    def __init__(self, accelerator: Accelerator, stage: str, generator: Any, settings: Any, combined: str) -> None:
        self.accelerator, self.stage, self.generator = accelerator, stage, generator
        self.settings, self.combined = settings, combined
        self._attached: dict[str, tuple[Any, Any, Any]] = {}

    @staticmethod
    def check(generator: Any) -> None:
        """Whether it can be attached to ``generator``.

        Raises:
            ValueError: a solver that is not supported. TypeError: a guidance wrapper that is not known.
        """
        slopes_of(generator._solver)
        order_of(generator.reverse_fn)

    @property
    def slopes(self) -> tuple[float, ...]:
        """See :func:`slopes_of`."""
        return slopes_of(self.generator._solver)

    def key(self) -> dict[str, Any]:
        """What a plan for this stage is made for; the grid is compared beside it."""
        return key_of(self.accelerator.name, self.stage, self.generator)

    def attach(self) -> None:
        """Wrap ``solve_iter`` and ``forward`` of the generator's own solver and network, as instance attributes."""
        self.generator.forecache = self
        self._wrap(self.generator._solver, "solve_iter", self._solve_iter)
        self._look()
        if not self.combined:
            self._wrap(self.generator.reverse_fn.backbone, "forward", self._forward)

    def _look(self) -> None:
        """A network that was compiled meanwhile is traced at its first call: take our Python out of it before."""
        if not self.combined and is_compiled(self.generator.reverse_fn):
            self.combined = "the network is compiled"
            if "forward" in self._attached:
                self._unwrap("forward")

    def detach(self) -> None:
        """Take both away again."""
        for name in list(self._attached):
            self._unwrap(name)
        vars(self.generator).pop("forecache", None)

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        before = vars(owner).get(name)

        def wrapper(owner: Any, *args: Any, **kwargs: Any) -> Any:
            inside = before or MethodType(getattr(type(owner), name), owner)
            mine = self._attached.get(name)
            if mine is None or mine[0] is not owner:  # detached under another's wrapper, or a copy of the owner
                return inside(*args, **kwargs)
            return around(inside, *args, **kwargs)

        method = MethodType(wrapper, owner)
        setattr(owner, name, method)
        self._attached[name] = owner, method, before

    def _unwrap(self, name: str) -> None:
        owner, method, before = self._attached.pop(name)
        if vars(owner).get(name) is not method:  # somebody wrapped it since: it calls through from now on
            return
        del vars(owner)[name]
        if before is not None:
            setattr(owner, name, before)

    def _solve_iter(
        self, inside: Callable[..., Any], dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if dynamics != self.generator._generate_dynamics:  # another generator's, or a likelihood's
            return inside(dynamics, x, times, *args, **kwargs)
        return self._run(inside, dynamics, x, times, *args, **kwargs)

    def _run(
        self, inside: Callable[..., Any], dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """Encloses ``solve_iter``; like it, nothing happens before the first step is asked for."""
        self._look()
        run = Run(self, torch.as_tensor(times, dtype=torch.float64).tolist())
        self.accelerator.traces[self.stage] = run.trace
        runs = self.accelerator.runs

        def velocity(*args: Any, **kwargs: Any) -> Any:
            runs().append(run)
            try:
                return run.velocity(dynamics, *args, **kwargs)
            finally:
                runs().pop()

        try:
            yield from inside(velocity, x, times, *args, **kwargs)
        finally:
            run.close()

    def _forward(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        runs = self.accelerator.runs()
        if not runs or runs[-1].hook is not self:  # called outside of a run
            return inside(*args, **kwargs)
        return runs[-1].branch(lambda: inside(*args, **kwargs))


class Accelerator:
    """Attached to the generators of one pipeline; the newest run's trace of each stage is in ``traces``.

    Args:
        name: of the upstream, for a plan's key. generators: by stage.
        stages: settings by stage, or a cache, or ``None`` (off). combined: forecast the velocity after guidance.
        hook_of: what is attached to a generator.
    """

    def __init__(
        self,
        name: str,
        generators: Mapping[str, Any],
        stages: Mapping[str, Any],
        combined: bool = False,
        hook_of: Callable[[Any], type[Hook]] = lambda generator: Hook,
    ) -> None:
        self.name, self.combined = name, combined
        why = "asked for" if combined else ""
        self.hooks = {stage: hook_of(each)(self, stage, each, stages[stage], why) for stage, each in generators.items()}
        self.traces: dict[str, StageTrace] = {}
        self._here = threading.local()

    def runs(self) -> list[Run]:
        """Runs whose dynamics is at work in this thread, innermost last."""
        if not hasattr(self._here, "runs"):
            self._here.runs = []
        runs: list[Run] = self._here.runs
        return runs


def key_of(name: str, stage: str, generator: Any) -> dict[str, Any]:
    """What a plan for a stage of the upstream ``name`` is made for: g = 1 + w of ``(1 + w) c - w u``."""
    wrapper = generator.reverse_fn
    w, interval = wrapper.strength, wrapper.interval
    scale = {k: 1.0 + v for k, v in w.items()} if isinstance(w, Mapping) else 1.0 + w
    guidance = None if interval is None else Guidance(scale, interval)  # type: ignore[arg-type]
    return plan_key(name, stage, wrapper.backbone, guidance)
