"""The network's branches within one sampling run: who serves each of them at each step.

A branch is one condition that the sampler calls the network with: ``cond``, ``uncond``, one of several images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from forecache import AdaptiveGuidance, Corrector, Forecaster, Guided, Trace, rates, schedule, tree
from forecache.schedule import few_calls

from .settings import Settings
from .sparse import is_sparse

Compute = Callable[[], Any]
Kind = Mapping[str, Any]
NOTHING: Kind = MappingProxyType({})


@dataclass
class StageTrace:
    """What happened in one run of a stage.

    Attributes:
        calls: network calls by branch.
        branches: their traces; with a plan there is one, ``"plan"``.
        notes: why the cache stayed off, if it did.
        saved: unconditional calls that adaptive guidance left out at computed steps.
    """

    calls: dict[str, int] = field(default_factory=dict)
    branches: dict[str, Trace] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    saved: int = 0

    @property
    def computed(self) -> int:
        """Network calls of all branches."""
        return sum(self.calls.values())

    def count(self, name: str) -> None:
        """The network is called for a branch."""
        self.calls[name] = self.calls.get(name, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        branches = {name: trace.to_dict() for name, trace in self.branches.items()}
        return {"calls": dict(self.calls), "branches": branches, "notes": list(self.notes), "saved": self.saved}


class Server(Protocol):
    """Serves the branches of one run."""

    def open(self, i: int, state: Any) -> None:
        """Step ``i`` begins at the sampler's ``state``."""

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """The branch's value at this step: ``compute()`` or a forecast.

        ``kind`` says what kind of call this is; see :class:`~forecache_adapters.kinds.Kinds`.
        """

    def again(self) -> bool:
        """The sampler has its velocity: whether it has to ask once more, because computed values were corrected."""

    def close(self) -> None:
        """Free every snapshot."""


class Apart:
    """A history and a schedule for each branch.

    A branch's schedule is made when it is called for the second time: the distance to the first call tells whether it
    runs at every step (TRELLIS' ``multidiffusion``) or takes turns with others (``stochastic``). ``uncond`` computes
    where ``cond`` does: guidance subtracts one from the other, and what they miss is much alike as long as it grows
    over the same steps. If it begins later than the run, its own first steps are a warm-up.

    Args:
        settings: of the stage. times: the N + 1 grid times. traces: filled, by branch.
        follow: the branches that guidance subtracts from ``cond``, or adds to it.
        label: added to the names in ``traces``, where several servers fill one.
        corrector: what the sampler admits, see :class:`forecache.Forecaster`.
        total: steps that move, of a run of which ``times`` is a part: a budget of calls is shared out in proportion.
    """

    def __init__(
        self,
        settings: Settings,
        times: Sequence[float],
        traces: dict[str, Trace],
        follow: Collection[str] = ("uncond",),
        label: str = "",
        total: int | None = None,
        corrector: bool | Corrector = False,
    ) -> None:
        self.settings, self.times, self.traces = settings, times, traces
        self.moving = schedule.effective_steps(times)  # a step with dt = 0 is never computed
        self.total = len(self.moving) if total is None else total
        self.follow, self.label, self.corrector = follow, label, corrector
        self.remark = few_calls(settings.basis, len(settings.computed(self.moving, self.total)), len(self.moving))
        if self.remark:
            warnings.warn(f"forecache: {self.remark}", stacklevel=2)
        self.histories: dict[str, Forecaster] = {}
        self.first: dict[str, int] = {}
        self.wanted: dict[str, frozenset[int]] = {}
        self.i, self.form, self.state = -1, NOTHING, None

    def open(self, i: int, state: Any) -> None:
        """See :class:`Server`."""
        self.i, self.form = i, form_of(state)
        self.state = state if self._rated else None  # the sampler's: held only where it is asked for

    @property
    def _rated(self) -> bool:
        return isinstance(self.corrector, Corrector) and self.corrector.rates is not None

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`."""
        if name not in self.histories:
            value = compute()
            if self._rated and not rates.fits(value, self.state):
                self.corrector = False
            cache = self.settings.history_of(self.times, None if is_sparse(value) else 0, self.corrector)
            self.histories[name], self.first[name] = cache, self.i
            self.traces[name + self.label] = cache.trace
            cache.trace.notes += [self.remark] if self.remark else []
            match(cache, self.form, kind)
            return cache.observe(self.i, value, self.state)
        if name not in self.wanted:
            self.wanted[name] = self._schedule(name)
        cache = self.histories[name]
        match(cache, self.form, kind)
        if self.i in self.wanted[name] or cache.needs_compute(self.i):
            return cache.observe(self.i, compute(), self.state)
        return cache.forecast(self.i, self.state)

    def _schedule(self, name: str) -> frozenset[int]:
        first, total = self.first[name], self.total
        if name not in self.follow:
            own = set(range(first, len(self.times) - 1, self.i - first))
            return self.settings.computed([i for i in self.moving if i in own], total)
        late = range(first, first + (2 if self.settings.warmup is None else self.settings.warmup)) if first else ()
        return self.settings.computed(self.moving, total) | frozenset(late)

    def again(self) -> bool:
        """What is served is what the loop gets."""
        return False

    def close(self) -> None:
        """See :class:`Server`."""
        self.state = None
        for cache in self.histories.values():
            cache.close()


class Joint:
    """One cache for the branches together, as a plan needs it: they are computed at the same steps.

    Args:
        cache: a forecaster with a plan, or what :func:`forecache.calibrate` hands to ``run``.
        guidance: whether the run has a second branch at some of its steps.
    """

    def __init__(self, cache: Any, guidance: bool) -> None:
        self.cache, self.guidance = cache, guidance
        self.i, self.state, self.begun = -1, None, False
        self.served: Any = None
        self.arrived: dict[str, Any] = {}

    def open(self, i: int, state: Any) -> None:
        """See :class:`Server`."""
        self.i, self.state, self.arrived, self.served, self.begun = i, state, {}, None, False

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`.

        If the second branch of a step is of another kind, the next step computes and begins the new history.

        Raises:
            ValueError: a branch that is neither ``cond`` nor ``uncond``.
        """
        if name not in ("cond", "uncond"):
            raise ValueError(f"plan: it serves one condition and its negative, but the sampler asks for {name!r} too")
        if name == "uncond" and not self.guidance:
            raise ValueError("plan: the sampler asks for 'uncond' too, in a run that was said to have no guidance")
        match(self.cache, form_of(self.state), {f"{part} of {name}": what for part, what in kind.items()})
        if not self.begun:
            self.begun = True
            if not self.cache.needs_compute(self.i):
                self.served = self.cache.forecast(self.i, self.state)
        if self.served is None:
            self.arrived[name] = compute()
            return self.arrived[name]
        if not self.guidance:
            return self.served
        value = self.served.cond if name == "cond" else self.served.uncond
        if value is None:  # guidance came back: what stands for the branch is what the plan extrapolates from
            raise ValueError(f"plan: no history of {name!r} at step {self.i}; the plan must name it in edges")
        return value

    def again(self) -> bool:
        """See :class:`Server`."""
        if self.served is not None:
            return False
        value = self._value()
        used = self.cache.observe(self.i, value, self.state)
        self.state = None
        if used is value:
            return False
        self.served = used
        return True

    def _value(self) -> Any:
        if "cond" not in self.arrived:
            raise ValueError(f"plan: the sampler called {sorted(self.arrived)} at step {self.i}, but not 'cond'")
        if not self.guidance:
            return self.arrived["cond"]
        return Guided(self.arrived["cond"], self.arrived.get("uncond"))

    def close(self) -> None:
        """See :class:`Server`."""
        self.served, self.state, self.arrived = None, None, {}
        if hasattr(self.cache, "close"):
            self.cache.close()


class Adaptive(Apart):
    """A history of ``cond`` and one of the guidance difference ``d = c - u``: adaptive guidance.

    At a step that computes ``cond``, ``uncond`` is called only if ``d`` cannot be forecast well enough; where it is
    not, and at forecast steps, ``u = c - d^``. The last guided step counts as the last one here: behind it nothing
    takes the error of the guidance term out of the sample again, so both branches are called if ``cond`` is computed.

    Args:
        settings: of the stage.
        times: the N + 1 grid times.
        trace: filled.
        strengths: s of ``c + s (c - u)`` by step; 0 where guidance is off.
        label: see :class:`Apart`.
    """

    def __init__(
        self, settings: Settings, times: Sequence[float], trace: StageTrace, strengths: Sequence[float], label: str = ""
    ) -> None:
        super().__init__(settings, times, trace.branches, label=label)
        self.trace, self.strength = trace, max(strengths)
        self.guided = [i for i, s in enumerate(strengths) if s > 0]
        self.guidance: AdaptiveGuidance | None = None
        self.computed, self.cond = False, None
        self.kinds: dict[str, Kind] = {}  # of the newest call, by branch

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`.

        Raises:
            ValueError: a branch that is neither ``cond`` nor ``uncond``; ``uncond`` without the other.
        """
        if name not in ("cond", "uncond"):
            raise ValueError(f"adaptive_guidance: it serves one condition and its negative, not {name!r}")
        kind = {**self.form, **kind}
        if self.kinds.get(name, kind) != kind:
            self.guidance = None  # d is a difference of calls of other kinds
        self.kinds[name] = kind
        if name == "uncond":
            return self._uncond(compute)
        self.computed = False

        def noted() -> Any:
            self.computed = True
            return compute()

        self.cond = super().branch(name, noted, kind)
        return self.cond

    def _uncond(self, compute: Compute) -> Any:
        cond, self.cond = self.cond, None
        if cond is None or self.i > self.guided[-1]:
            raise ValueError(
                f"adaptive_guidance: the sampler asks for 'uncond' alone, or behind its end, at step {self.i}"
            )
        if self.guidance is None:
            times = self.times[: self.guided[-1] + 2]
            self.guidance = self.settings.guidance(times, self.strength, None if is_sparse(cond) else 0)
        if not self.computed and not self.guidance.fits(cond):  # begun anew: no full step, but nothing to forecast from
            return compute()
        if self.computed and self.guidance.needs_uncond(self.i, cond):
            value = compute()
            self.guidance.observe(self.i, cond, value)
            self.trace.notes.extend(note for note in self.guidance.notes if note not in self.trace.notes)
            return value
        self.trace.saved += self.computed
        return self.guidance.uncond(self.i, cond)

    def _schedule(self, name: str) -> frozenset[int]:
        """``d`` needs two steps at which both branches were called; an exact budget stays one."""
        steps, exact = range(len(self.times) - 1), self.settings.calls is not None
        return frozenset(schedule.with_edges(sorted(super()._schedule(name)), steps, self.guided[:2], exact))

    def close(self) -> None:
        """See :class:`Server`."""
        super().close()
        self.guidance = self.cond = None


class Combined:
    """One cache for the velocity after guidance; each edge of the guidance interval starts a new history.

    Args:
        cache: a forecaster that knows the edges.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.i, self.state = -1, None

    def open(self, i: int, state: Any) -> None:
        """See :class:`Server`."""
        self.i, self.state = i, state

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`."""
        match(self.cache, form_of(self.state), kind)
        if self.cache.needs_compute(self.i):
            return self.cache.observe(self.i, compute(), self.state)
        return self.cache.forecast(self.i, self.state)

    def again(self) -> bool:
        """What is served is the sampler's velocity itself."""
        return False

    def close(self) -> None:
        """See :class:`Server`."""
        self.state = None
        if hasattr(self.cache, "close"):
            self.cache.close()


def form_of(state: Any) -> Kind:
    """The form of the sampler's state as a part of a call's kind."""
    return NOTHING if state is None else {"state": tree.form(state)}


def match(cache: Any, *kinds: Kind) -> None:
    """See :meth:`forecache.Forecaster.match`; a cache of the user's own may do without it."""
    if isinstance(cache, Forecaster):
        cache.match({name: what for kind in kinds for name, what in kind.items()})


def same_tensor(a: Any, b: Any) -> bool:
    """Whether two conditions are one: the same object or the same memory in the same shape."""
    if a is b:
        return True
    return bool(
        hasattr(a, "data_ptr") and hasattr(b, "data_ptr") and a.data_ptr() == b.data_ptr() and a.shape == b.shape
    )
