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

from ..branches import NOTHING, Compute, Joint, Kind, Server, StageTrace
from ..ode_hooks import Accelerator, Hook
from ..ode_solver import Run, order_of
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


class Scheduled:
    """A history for each branch; the generator decides which steps compute.

    A carved step computes some of the tokens, without the others in the network's sight: that is another function, so
    the histories begin anew where carving begins. The carved tokens go on with what their branch had a step before, as
    they do upstream.
    """

    def __init__(self, settings: Settings, times: Sequence[float], trace: CachedTrace) -> None:
        self.settings, self.times, self.trace = settings, times, trace
        self.histories: dict[str, Forecaster] = {}
        self.newest: dict[str, Any] = {}
        self.begun_carved: dict[str, bool] = {}
        self.i, self.computes = -1, True
        self.current: Mapping[str, Any] = {}

    def open(self, i: int, state: Any) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        self.i = i

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`forecache_adapters.branches.Server`."""
        if not self.computes and name in self.histories:
            self.newest[name] = self.histories[name].forecast(self.i)
            return self.newest[name]
        value = compute()  # at a cached step too if guidance begins there: the branch has no history yet
        kept = carving(self.current) if self.computes else None
        if name not in self.histories:
            self.histories[name] = self.settings.history_of(self.times, 0)
            self.trace.branches[name] = self.histories[name].trace
        elif self.begun_carved[name] != (kept is not None):
            self.histories[name].close()
        self.begun_carved[name] = kept is not None
        self.newest[name] = value if kept is None else self._whole(name, value, kept)
        self.histories[name].observe(self.i, self.newest[name])
        return value

    def _whole(self, name: str, value: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The branch at every token; one that begins at a carved step has the conditional one where it was carved."""
        before = self.newest[name if name in self.newest else "cond"]
        whole: torch.Tensor = before.clone()
        whole[:, kept] = value.to(whole.dtype)
        self.trace.carved[self.i] = whole.shape[1] - len(kept)
        return whole

    def again(self) -> bool:
        """Nothing is corrected without a plan."""
        return False

    def close(self) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        for cache in self.histories.values():
            cache.close()
        self.newest = {}


class CachedRun(Run):
    """One generation: as :class:`Run`, on the steps that the generator's own schedule computes."""

    hook: CachedHook
    trace: CachedTrace
    trace_type = CachedTrace

    def _serve(self, times: Sequence[float]) -> list[Server]:
        if self.hook.combined:
            self.trace.notes.append(f"off: {self.hook.combined}, so its branches cannot be served")
            return []
        servers = super()._serve(times)
        if servers and isinstance(servers[0], Joint):
            planned, own = tuple(servers[0].cache.computed), self.hook.own_schedule(len(times) - 1)
            if planned != own:
                raise ValueError(
                    f"plan: it computes the steps {list(planned)}, the schedule of {self.hook.loop} {list(own)}"
                )
        return servers

    def _apart(self, settings: Settings) -> list[Server]:
        return [Scheduled(settings, self.grids[0], self.trace)]

    def opens(self, current: Mapping[str, Any]) -> bool:
        """The generator has decided about its next step, ``current``; whether there is anything to serve it.

        Raises:
            RuntimeError: ``current`` belongs to another generation.
        """
        self.place = 0
        if not self.servers:
            return False
        self.call += 1
        if current["step"] != self.call:
            raise RuntimeError(
                f"step {current['step']} in the place of step {self.call}: the generator keeps the state of its own"
                " cache on itself, so another generation on it must not begin before this one has ended"
            )
        computes = current["type"] == "full"
        if computes:
            self.trace.full.append(self.call)
        for server in self.servers:
            if isinstance(server, Scheduled):
                server.i, server.computes, server.current = self.call, computes, current
        return True

    def serve(self, state: Any, guided: Callable[[], Any]) -> Any:
        """The velocity of the open step: ``guided()`` calls the branches and combines them."""
        server = self.servers[0]
        server.open(self.call, state)
        velocity = guided()
        if not server.again():
            return velocity
        self.place = 0
        return guided()

    def ended(self) -> None:
        """All steps are done; says what the generator's schedule leaves to a forecast that nothing repairs."""
        if self.servers and self.trace.full[-1] != self.call:
            self.trace.notes.append(
                f"the last step, {self.call}, was forecast: the schedule of {self.hook.loop} computes up to step"
                f" {self.trace.full[-1]} of this grid"
            )


class CachedHook(Hook):
    """What is attached to one generator that has a cache of its own.

    Raises:
        ValueError: a schedule, where the generator has its own; a plan, where that is not known before the run.
    """

    def __init__(self, accelerator: Accelerator, stage: str, generator: Any, settings: Any, combined: str) -> None:
        super().__init__(accelerator, stage, generator, settings, combined)
        self.loop = str(loop_of(generator))
        if combined:
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

    @staticmethod
    def check(generator: Any) -> None:
        """See :class:`Hook`.

        Raises:
            RuntimeError: the class of the generator is not patched.
        """
        solver, wanted = type(generator._solver).__name__, LOOPS[str(loop_of(generator))]
        if solver != wanted:
            raise ValueError(f"solver must be {wanted} with {loop_of(generator)}, got {solver}")
        if not hasattr(type(patched(generator)), "forecache"):
            raise RuntimeError(
                f"generator: {type(patched(generator)).__module__}.{type(patched(generator)).__name__} is not patched;"
                " run `forecache patch apply fastsam3d CHECKOUT` on the checkout it comes from"
            )
        order_of(generator.reverse_fn)

    @property
    def slopes(self) -> tuple[float, ...]:
        """One call of the dynamics a step."""
        return (0.0,)

    def attach(self) -> None:
        """See :class:`Hook`; the patched loop asks this object."""
        super().attach()
        patched(self.generator).forecache = self

    def detach(self) -> None:
        """See :class:`Hook`."""
        vars(patched(self.generator)).pop("forecache", None)
        super().detach()

    def own_schedule(self, steps: int) -> tuple[int, ...]:
        """The steps that ``ShortCut_faster`` is going to compute: its own rule, run ahead on a copy of its state."""
        rule = self.generator._generate_dynamics.__func__.__globals__["cal_type"]
        state: dict[str, Any] = {**self.generator.cache_dic, "cache_counter": 0}
        current: dict[str, Any] = {"activated_steps": []}
        for i in range(steps):
            rule(state, {**current, "step": i})
        return tuple(current["activated_steps"])

    def _run(
        self, inside: Callable[..., Any], dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """As in :class:`Hook`, but the run is at work in all of a step: the loop asks outside of the dynamics too."""
        self._look()
        run = CachedRun(self, [float(t) for t in times])
        self.accelerator.traces[self.stage] = run.trace
        steps = inside(dynamics, x, times, *args, **kwargs)
        try:
            while True:
                runs = self.accelerator.runs()
                runs.append(run)
                try:
                    found = next(steps)
                except StopIteration:
                    run.ended()
                    return
                finally:
                    runs.pop()
                yield found
        finally:
            run.close()

    @property
    def _at_work(self) -> CachedRun | None:
        """The run of this generator that is in a step now."""
        runs = self.accelerator.runs()
        run = runs[-1] if runs else None
        return run if isinstance(run, CachedRun) and run.hook is self else None

    # --- what the patched loops call --------------------------------------------------------------------------------
    def opens(self, current: Mapping[str, Any]) -> bool:
        """See :meth:`CachedRun.opens`; false outside of a run."""
        run = self._at_work
        return run is not None and run.opens(current)

    def serve(self, state: Any, guided: Callable[[], Any]) -> Any:
        """See :meth:`CachedRun.serve`."""
        run = self._at_work
        assert run is not None  # it opened the step
        return run.serve(state, guided)
