"""The generators of Fast-SAM3D that carry a cache of their own: our forecast in the place of their skip rules.

``ShortCut_faster`` (structure) skips with a Taylor polynomial of the velocity after guidance, ``FlowMatching_faster``
(structured latent) with ``v = x + (v_last - x_last)``. Where they compute, and which tokens they carve, goes on being
decided by them. Their patched loops tell every step right after that decision; a cached step then goes through guidance
once more, and each branch of the network is served a forecast of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from forecache import Forecaster

from ..branches import NOTHING, Compute, Joint, Kind, Server, match
from ..families.ode_hooks import Accelerator, Hook
from ..families.ode_run import OdeRun, at_work, here
from ..families.ode_solver import order_of
from ..handle import StageTrace
from ..settings import Settings

SCHEDULE = ("interval", "warmup", "end", "calls")
LOOPS = {"ShortCut_faster": "Euler", "FlowMatching_faster": "Euler_end_slat"}  # class and the solver that it runs


def loop_of(generator: Any) -> str | None:
    """The class that gives ``generator`` a cache of its own; ``None``: it has none."""
    return next((kind.__name__ for kind in type(generator).__mro__ if kind.__name__ in LOOPS), None)


def carving(current: Mapping[str, Any]) -> torch.Tensor | None:
    """The tokens that a computed step of ``Euler_end_slat`` computes; ``None``: all."""
    if current.get("use_f3c") and current.get("is_f3c_active"):
        return current["fast_update_indices"]  # type: ignore[no-any-return]
    return None


def patched(generator: Any) -> Any:
    """The object that runs the patched loop: the solver of the latent stage, else the generator itself."""
    return generator._solver if loop_of(generator) == "FlowMatching_faster" else generator


@dataclass
class CachedTrace(StageTrace):
    """What happened in one run.

    Attributes:
        full: the steps that the generator's own schedule computed.
        carved: how many tokens kept their old velocity, by computed step, where there were any.
    """

    full: list[int] = field(default_factory=list)
    carved: dict[int, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**super().to_dict(), "full": list(self.full), "carved": dict(self.carved)}


class Scheduled(Server):
    """A history for each branch; the generator decides which steps compute.

    A carved step computes some of the tokens, without the others in the network's sight: a call of another kind. The
    carved tokens go on with what their branch had a step before, as they do upstream.
    """

    def __init__(self, settings: Settings, times: Sequence[float], trace: CachedTrace) -> None:
        self.settings, self.times, self.trace = settings, times, trace
        self.histories: dict[str, Forecaster] = {}
        self.newest: dict[str, Any] = {}
        self.computes = True
        self.current: Mapping[str, Any] = {}

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`forecache_adapters.branches.Server`."""
        kept = carving(self.current) if self.computes else None
        if name not in self.histories:
            self.histories[name] = self.settings.history_of(self.times, 0)
            self.trace.branches[name] = self.histories[name].trace
        cache = self.histories[name]
        match(cache, kind, {"set of tokens": kept is not None} if self.computes else NOTHING)
        if not self.computes and not cache.needs_compute(self.i):
            self.newest[name] = cache.forecast(self.i)
            return self.newest[name]
        value = compute()  # at a cached step too if there is no history: guidance begins, or another kind of call
        self.newest[name] = value if kept is None else self._whole(name, value, kept)
        cache.observe(self.i, self.newest[name])
        return value

    def _whole(self, name: str, value: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The branch at every token; one that begins at a carved step has the conditional one where it was carved."""
        before = self.newest[name if name in self.newest else "cond"]
        whole: torch.Tensor = before.clone()
        whole[:, kept] = value.to(whole.dtype)
        self.trace.carved[self.i] = whole.shape[1] - len(kept)
        return whole

    def close(self) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        super().close()
        for cache in self.histories.values():
            cache.close()
        self.newest = {}


class CachedRun(OdeRun):
    """One generation: as :class:`OdeRun`, on the steps that the generator's own schedule computes.

    The generator keeps the state of its own cache on itself. Where another generation has begun on it meanwhile, the
    rest of the run is computed: its own rule would go on from the other's state.
    """

    hook: CachedHook
    trace: CachedTrace
    trace_type = CachedTrace

    def __init__(self, hook: Hook, generator: Any) -> None:
        super().__init__(hook, generator)
        self.current: Mapping[str, Any] | None = None  # the generator's own, of this run
        self.served = False

    def _server(self, k: int) -> Server | None:
        settings, grid = self.hook.settings, self.grids[k]
        if self.combined:
            raise RuntimeError(f"{self.combined}, so its branches cannot be served")
        if isinstance(settings, Settings) and settings.plan is None:
            return Scheduled(settings, grid, self.trace)
        server = super()._server(k)
        if isinstance(server, Joint):
            planned, own = tuple(server.cache.computed), self.hook.own_schedule(self.generator, len(grid) - 1)
            if planned != own:
                raise ValueError(
                    f"plan: it computes the steps {list(planned)}, the schedule of {self.hook.loop} {list(own)}"
                )
        return server

    def opens(self, current: Mapping[str, Any]) -> bool:
        """The generator has decided about its next step, ``current``; whether its velocity comes from here."""
        self.place = 0
        if not self.servers:
            return self.served
        self.call += 1
        self.current = current if self.current is None else self.current
        if self.current is not current or current["step"] != self.call:
            self.off(
                f"step {current['step']} in the place of step {self.call}: the generator keeps the state of its own"
                " cache on itself, and another generation on it has begun before this one ended"
            )
        elif self.call >= len(self.grids[0]) - 1:
            self.off(f"the solver takes step {self.call} of a grid of {len(self.grids[0]) - 1}")
        if not self.servers:
            return self.served
        computes = current["type"] == "full"
        if computes:
            self.trace.full.append(self.call)
        for server in self.servers:
            if isinstance(server, Scheduled):
                server.i, server.computes, server.current = self.call, computes, current
        self.served = True
        return True

    def serve(self, state: Any, guided: Callable[[], Any]) -> Any:
        """The velocity of the open step: ``guided()`` calls the branches and combines them."""
        for server in self.servers:
            server.open(self.call, state)
        velocity = guided()
        if not self.must_repeat():
            return velocity
        self.place = 0
        return guided()

    def kind_of(self, name: str, k: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`OdeRun`; which tokens there are, and where, is no part of it where they are carved."""
        if self.hook.loop == "FlowMatching_faster":
            x, t, *given = args
            args = x[:, :1], t, *given[:1], None, *given[2:]
        return super().kind_of(name, k, args, kwargs)

    def ended(self) -> None:
        """All steps are done; says what the generator's schedule leaves to a forecast that nothing repairs."""
        if self.servers and self.trace.full and self.trace.full[-1] != self.call:
            self.trace.notes.append(
                f"the last step, {self.call}, was forecast: the schedule of {self.hook.loop} computes up to step"
                f" {self.trace.full[-1]} of this grid"
            )


class Steps:
    """What the patched loops ask, on their own object: they mean the run that is in a step in this thread."""

    def opens(self, current: Mapping[str, Any]) -> bool:
        """See :meth:`CachedRun.opens`; false outside of a run."""
        run = here.run
        return isinstance(run, CachedRun) and patched(run.generator).current is current and run.opens(current)

    def serve(self, state: Any, guided: Callable[[], Any]) -> Any:
        """See :meth:`CachedRun.serve`."""
        run = here.run
        assert isinstance(run, CachedRun)  # it opened the step
        return run.serve(state, guided)


class CachedHook(Hook, Steps):
    """What is attached to one generator that has a cache of its own.

    Raises:
        ValueError: a schedule, where the generator has its own; a plan, where that is not known before the run.
        RuntimeError: the class of the generator is not patched.
    """

    run_type = CachedRun

    def __init__(self, accelerator: Accelerator, stage: str, generator: Any, settings: Any) -> None:
        self.loop = str(loop_of(generator))
        if accelerator.combined:
            raise ValueError(f"branches must be 'apart' with {self.loop}, got 'combined'")
        given = {name: getattr(settings, name, None) for name in (*SCHEDULE, "plan")}
        for name in SCHEDULE:
            if given[name] is not None:
                raise ValueError(
                    f"{name}={given[name]!r}: {self.loop} computes where its own schedule says; leave it out, or use"
                    f" the class {self.loop.removesuffix('_faster')}"
                )
        if getattr(settings, "adaptive_guidance", False) is not False:
            raise ValueError(
                f"adaptive_guidance: not with {self.loop}, use the class {self.loop.removesuffix('_faster')}"
            )
        planned = given["plan"] is not None or not isinstance(settings, (Settings, type(None)))
        if planned and self.loop == "FlowMatching_faster":
            raise ValueError(f"plan: {self.loop} decides during the run which steps compute; give it a basis")

        self.slopes(generator)
        if not hasattr(type(patched(generator)), "forecache"):
            raise RuntimeError(
                f"generator: {type(patched(generator)).__module__}.{type(patched(generator)).__name__} is not patched;"
                " run `forecache patch apply fastsam3d CHECKOUT` on the checkout it comes from"
            )
        super().__init__(accelerator, stage, generator, settings)

    def slopes(self, generator: Any) -> tuple[float, ...]:
        """One call of the dynamics a step.

        Raises:
            ValueError: another solver than the one of this class.
        """
        solver, wanted = type(generator._solver).__name__, LOOPS[self.loop]
        if solver != wanted:
            raise ValueError(f"solver must be {wanted} with {self.loop}, got {solver}")
        order_of(generator.reverse_fn)
        return (0.0,)

    def shown(self, generator: Any) -> Mapping[str, Any]:
        """See :class:`Hook`; the patched loop of the latent stage asks its solver."""
        return {"forecache": Steps()} if patched(generator) is generator._solver else {}

    def own_schedule(self, generator: Any, steps: int) -> tuple[int, ...]:
        """The steps that ``ShortCut_faster`` is going to compute: its own rule, run ahead on a copy of its state."""
        rule = generator._generate_dynamics.__func__.__globals__["cal_type"]
        state: dict[str, Any] = {**generator.cache_dic, "cache_counter": 0}
        current: dict[str, Any] = {"activated_steps": []}
        for i in range(steps):
            rule(state, {**current, "step": i})
        return tuple(current["activated_steps"])

    def run(
        self, inside: Callable[..., Any], generator: Any, dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """As in :class:`Hook`, but the run is at work in all of a step: the loop asks outside of the dynamics too."""
        run = self.begin(generator, times)
        assert isinstance(run, CachedRun)
        steps = inside(dynamics, x, times, *args, **kwargs)
        try:
            while True:
                try:
                    with at_work(run):
                        found = next(steps)
                except StopIteration:
                    run.ended()
                    return
                yield found
        finally:
            run.close()
