"""The generators of Fast-SAM3D that carry a cache of their own: our forecast in the place of their skip rules.

``ShortCut_faster`` (structure) skips with a Taylor polynomial of the velocity after guidance, ``FlowMatching_faster``
(structured latent) with ``v = x + (v_last - x_last)``. Where they compute, and which tokens they carve, goes on being
decided by them. Their patched loops tell every step right after that decision; a cached step then goes through guidance
once more, and each branch of the network is served a forecast of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from forecache import Forecaster

from ..branches import Compute, Joint, Server, StageTrace
from ..settings import Settings


@dataclass
class CachedTrace(StageTrace):
    """What happened in one run.

    Attributes:
        full: the steps that the generator's own schedule computed.
        carved: tokens that kept their old velocity at those of them where there were any.
    """

    full: list[int] = field(default_factory=list)
    carved: dict[int, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**super().to_dict(), "full": list(self.full), "carved": dict(self.carved)}


class Scheduled:
    """A history for each branch; someone else decides which steps compute.

    A carved step computes the tokens ``kept`` alone; the others go on with what their branch had at the step before, as
    they do upstream.
    """

    def __init__(self, settings: Settings, times: Sequence[float], trace: StageTrace) -> None:
        self.settings, self.times, self.trace = settings, times, trace
        self.histories: dict[str, Forecaster] = {}
        self.newest: dict[str, Any] = {}
        self.i = -1
        self.computes = True
        self.current: Mapping[str, Any] = {}

    def open(self, i: int, state: Any) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        self.i = i

    def branch(self, name: str, compute: Compute) -> Any:
        """See :class:`forecache_adapters.branches.Server`."""
        if self.computes or name not in self.histories:  # guidance that begins at a cached step has no history yet
            value = compute()
            if name not in self.histories:
                cache = self.settings.history_of(self.times, 0)
                self.histories[name], self.trace.branches[name] = cache, cache.trace
            self.newest[name] = self._whole(name, value)
            self.histories[name].observe(self.i, self.newest[name])
            return value
        self.newest[name] = self.histories[name].forecast(self.i)
        return self.newest[name]

    def _whole(self, name: str, value: Any) -> Any:
        """The branch at every token: ``value`` at those that were computed."""
        kept = carving(self.current) if self.computes else None
        if kept is None:
            return value
        # guidance that begins at a carved step has no value for the other tokens: they get the conditional one
        whole: torch.Tensor = self.newest.get(name, self.newest.get("cond")).clone()
        whole[:, kept] = value.to(whole.dtype)
        return whole

    def again(self) -> bool:
        """Nothing is corrected without a plan."""
        return False

    def close(self) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        for cache in self.histories.values():
            cache.close()
        self.newest = {}


def carving(current: Mapping[str, Any]) -> torch.Tensor | None:
    """The tokens that a computed step of ``Euler_end_slat`` computes; ``None``: all."""
    if current.get("use_f3c") and current.get("is_f3c_active"):
        return current["fast_update_indices"]  # type: ignore[no-any-return]
    return None


class Run:
    """One generation: what serves its branches, and where it is. Freed when the generation ends."""

    def __init__(self, server: Server, trace: CachedTrace) -> None:
        self.server, self.trace = server, trace
        self.i = -1

    def opens(self, current: Mapping[str, Any]) -> None:
        """A step begins; ``current`` is the generator's own record of the run.

        Raises:
            RuntimeError: it is the record of another run.
        """
        if current["step"] != self.i + 1:
            raise RuntimeError(
                f"step {current['step']} after step {self.i}: the generator keeps the state of its own cache on itself, so"
                " another generation on it must not begin before this one has ended"
            )
        self.i = current["step"]
        computes = current["type"] == "full"
        if computes:
            self.trace.full.append(self.i)
        if isinstance(self.server, Scheduled):
            self.server.current, self.server.computes = current, computes


class Cached:
    """Attached to one generator. ``trace`` is that of its newest run; no snapshot outlives its run.

    Args:
        generator: of a patched checkout.
        settings: without a schedule.
        made_for: what a plan has to be made for, called when a run begins.
    """

    def __init__(self, generator: Any, settings: Settings, made_for: Callable[[], Mapping[str, Any]]) -> None:
        self.generator, self.settings, self.made_for = generator, settings, made_for
        self.trace = CachedTrace()
        self._runs: list[Run] = []  # those that are inside a step now
        self._hooked: list[Any] = []

    # --- what is hooked on the objects ----------------------------------------------------------------------------------
    def attach(self) -> None:
        solver, backbone = self.generator._solver, self.generator.reverse_fn.backbone
        solver.solve_iter, backbone.forward = self._solve_iter(solver.solve_iter), self._forward(backbone.forward)
        hook_of(self.generator).forecache = self

    def detach(self) -> None:
        solver, backbone = self.generator._solver, self.generator.reverse_fn.backbone
        for owner, name in ((solver, "solve_iter"), (backbone, "forward"), (hook_of(self.generator), "forecache")):
            vars(owner).pop(name, None)

    def _solve_iter(self, original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def solve_iter(dynamics_fn: Any, x_init: Any, times: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            run = self._begin([float(t) for t in times])
            steps = original(dynamics_fn, x_init, times, *args, **kwargs)
            if run is None:
                yield from steps
                return
            try:
                while True:
                    self._runs.append(run)
                    try:
                        found = next(steps)
                    except StopIteration:
                        return
                    finally:
                        self._runs.pop()
                    yield found
            finally:
                run.server.close()

        return solve_iter

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._runs or self._runs[-1].i < 0:
                return original(*args, **kwargs)
            run, name = self._runs[-1], "uncond" if kwargs.get("cfg") else "cond"

            def compute() -> Any:
                run.trace.calls[name] = run.trace.calls.get(name, 0) + 1
                return original(*args, **kwargs)

            return run.server.branch(name, compute)

        return forward

    # --- what the patched loops call --------------------------------------------------------------------------------
    def opens(self, current: Mapping[str, Any]) -> bool:
        """A step begins, and the generator has decided whether it computes; whether there is a run to serve it."""
        if not self._runs:
            return False
        self._runs[-1].opens(current)
        return True

    def serve(self, state: Any, guided: Callable[[], Any]) -> Any:
        """The velocity of the open step: ``guided()`` asks for the branches and combines them."""
        server = self._runs[-1].server
        server.open(self._runs[-1].i, state)
        velocity = guided()
        return guided() if server.again() else velocity

    # --- one run ----------------------------------------------------------------------------------------------------
    def _begin(self, times: Sequence[float]) -> Run | None:
        self.trace = trace = CachedTrace()
        reason = self.settings.off(times)
        if reason is not None:
            trace.notes.append(f"{reason}; the generator's own rule goes on")
            return None
        return Run(Scheduled(self.settings, times, trace), trace)


def hook_of(generator: Any) -> Any:
    """The object whose class the patch gave an attribute ``forecache``."""
    return generator._solver if type(generator).__name__ == "FlowMatching_faster" else generator
