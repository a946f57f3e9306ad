"""Who serves the branches of a run where each call of the network is a branch of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from forecache import Corrector, schedule

from .branches import NOTHING, Apart, Kind, Server, StageTrace, form_of, match
from .settings import Settings


class Each:
    """A cache for each branch, which decides itself when to compute: a plan, or a cache of the user's.

    Args:
        make: the cache of a branch.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self.make = make
        self.caches: dict[str, Any] = {}
        self.i, self.state = -1, None

    def open(self, i: int, state: Any) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        self.i, self.state = i, state

    def branch(self, name: str, compute: Callable[[], Any], kind: Kind = NOTHING) -> Any:
        """See :class:`forecache_adapters.branches.Server`."""
        if name not in self.caches:
            self.caches[name] = self.make(name)
        cache, state, self.state = self.caches[name], self.state, None
        match(cache, form_of(state), kind)
        if cache.needs_compute(self.i):
            return cache.observe(self.i, compute(), state)
        return cache.forecast(self.i, state)

    def again(self) -> bool:
        """What is served is what the loop gets."""
        return False

    def close(self) -> None:
        """See :class:`forecache_adapters.branches.Server`."""
        self.state = None
        for cache in self.caches.values():
            if hasattr(cache, "close"):
                cache.close()


def serve(
    settings: Any,
    times: Sequence[float],
    trace: StageTrace,
    made_for: Callable[[], Mapping[str, Any]],
    follow: Collection[str] = ("uncond",),
    apart: type[Apart] = Apart,
    whole: Sequence[float] | None = None,
    corrector: bool | Corrector = False,
) -> Server | None:
    """A server for one run; ``None``: the cache stays off, and ``trace.notes`` says why.

    Args:
        settings: or a cache, which serves one branch.
        times: the N + 1 grid times.
        trace: filled.
        made_for: the key of a plan for this run, asked for only with a plan.
        follow: see :class:`~forecache_adapters.branches.Apart`.
        apart: what serves without a plan.
        whole: times of the run, where another network has a part of it; that it is long enough is asked of the whole,
            and a budget of calls is shared out.
        corrector: see :class:`~forecache_adapters.branches.Apart`.

    Raises:
        ValueError: by the server: a second branch for a cache; a plan that needs the branches together.
    """
    if not isinstance(settings, Settings):

        def given(name: str) -> Any:
            if server.caches:
                raise ValueError(f"cache: it serves one branch, {next(iter(server.caches))!r}, but {name!r} came too")
            return settings

        server = Each(given)
        return server
    whole = times if whole is None else whole
    reason = settings.off(whole)
    if reason is not None:
        trace.notes.append(reason)
        return None
    if settings.plan is not None:
        long_enough = replace(settings, few_steps=True)  # asked of the whole run above

        def planned(name: str) -> Any:
            cache, trace.branches[name] = long_enough.begin(times, made_for())
            assert cache is not None
            if cache.needs_branches:
                raise ValueError("plan: it has weights for cond - uncond, but here each call is a branch of its own")
            return cache

        return Each(planned)
    moving = len(schedule.effective_steps(whole))
    return apart(settings, times, trace.branches, follow, total=moving, corrector=corrector)
