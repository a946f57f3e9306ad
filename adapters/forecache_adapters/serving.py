"""From settings to what serves the branches of a run: the one way in which every adapter goes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from forecache import Corrector, schedule

from .adaptive import Adaptive
from .branches import Apart, Each, Joint, Server
from .handle import StageTrace
from .settings import Settings


def server_of(
    settings: Any,
    times: Sequence[float],
    trace: StageTrace,
    made_for: Callable[[], Mapping[str, Any]],
    *,
    guided: bool | None = None,
    strengths: Sequence[float] = (),
    edges: Sequence[int] | None = None,
    follow: Collection[str] = ("uncond",),
    apart: type[Apart] = Apart,
    whole: Sequence[float] | None = None,
    corrector: bool | Corrector = False,
    label: str = "",
) -> Server | None:
    """A server for one run; ``None``: the cache stays off, and ``trace.notes`` says why.

    Args:
        settings: or a cache of the user's own.
        times: the N + 1 grid times.
        trace: filled.
        made_for: the key of a plan for this run, asked for only with a plan.
        guided: whether the run has a second branch, where a plan, or a cache of the user's own, serves both as one
            value. ``None``: each call of the network has a plan of its own, and a cache serves one branch.
        strengths: s of ``c + s (c - u)`` by step, where guidance is on at any.
        edges: what is forecast is the velocity after guidance, which begins a new history at these steps.
        follow: see :class:`~forecache_adapters.branches.Apart`.
        apart: what serves branches with histories of their own.
        whole: times of the run, where another network has a part of it; that it is long enough is asked of the whole,
            and a budget of calls is shared out.
        corrector: see :class:`~forecache_adapters.branches.Apart`.
        label: added to the names in ``trace.branches``, where several servers fill one.

    Raises:
        ValueError: a plan that was made for something else; by the server: a second branch for a cache; a plan that
            needs the branches together.
    """
    whole, combined = times if whole is None else whole, edges is not None
    if not isinstance(settings, Settings):
        return Each(_given(settings)) if guided is None or combined else Joint(settings, guided)
    reason = settings.off(whole)
    if reason is not None:
        trace.notes.append(reason)
        return None
    if combined or (settings.plan is not None and guided is not None):
        name, key = ("combined" + label, {}) if combined else ("plan", made_for())
        cache = settings.forecaster(times, key, edges or (), corrector)
        trace.branches[name] = cache.trace
        return Each(lambda branch: cache) if combined else Joint(cache, bool(guided))
    if settings.plan is not None:

        def planned(name: str) -> Any:
            cache = settings.forecaster(times, made_for())
            trace.branches[name] = cache.trace
            if cache.needs_branches:
                raise ValueError("plan: it has weights for cond - uncond, but here each call is a branch of its own")
            return cache

        return Each(planned)
    if settings.adaptive_guidance is not False and any(strengths):
        return Adaptive(settings, times, trace, strengths, label)
    moving = len(schedule.effective_steps(whole))
    return apart(settings, times, trace.branches, follow, label, moving, corrector)


def _given(cache: Any) -> Callable[[str], Any]:
    """What returns the user's cache for one branch, and for no other."""
    served: list[str] = []

    def make(name: str) -> Any:
        served.append(name)
        if len(served) > 1:
            raise ValueError(f"cache: it serves one branch, {served[0]!r}, but {name!r} came too")
        return cache

    return make
