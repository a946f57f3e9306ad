"""The network's branches within one sampling run: who serves each of them at each step.

A branch is one condition that the sampler calls the network with: ``cond``, ``uncond``, one of several images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from forecache import Corrector, Forecaster, Guided, Trace, rates, schedule, tree
from forecache.schedule import few_calls

from .settings import Settings
from .sparse import is_sparse

Compute = Callable[[], Any]
Kind = Mapping[str, Any]
NOTHING: Kind = MappingProxyType({})


class Server:
    """Serves the branches of one run: at each step the sampler calls :meth:`open`, then :meth:`branch` for each."""

    i = -1
    state: Any = None

    def open(self, i: int, state: Any) -> None:
        """Step ``i`` begins at the sampler's ``state``."""
        self.i, self.state = i, state

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """The branch's value at this step: ``compute()`` or a forecast.

        ``kind`` says what kind of call this is; see :class:`~forecache_adapters.kinds.Kinds`.
        """
        raise NotImplementedError

    def asks_again(self) -> bool:
        """Every branch of the step was served. Whether the sampler has to make its velocity once more, because the
        values that it computed were corrected; it then gets the corrected ones.
        """
        return False

    def close(self) -> None:
        """Free every snapshot."""
        self.state = None


class Apart(Server):
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
        self.form = NOTHING

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

    def close(self) -> None:
        """See :class:`Server`."""
        super().close()
        for cache in self.histories.values():
            cache.close()


class Joint(Server):
    """One cache for the branches together, as a plan needs it: they are computed at the same steps.

    Args:
        cache: a forecaster with a plan, or what :func:`forecache.calibrate` hands to ``run``.
        guidance: whether the run has a second branch at some of its steps.
    """

    def __init__(self, cache: Any, guidance: bool) -> None:
        self.cache, self.guidance = cache, guidance
        self.begun = False
        self.served: Any = None
        self.arrived: dict[str, Any] = {}

    def open(self, i: int, state: Any) -> None:
        """See :class:`Server`."""
        super().open(i, state)
        self.arrived, self.served, self.begun = {}, None, False

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

    def asks_again(self) -> bool:
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
        super().close()
        self.served, self.arrived = None, {}
        close(self.cache)


class Each(Server):
    """A cache for each branch, which decides itself when to compute: a plan, a cache of the user's, or one for the
    velocity after guidance, which is then the only branch.

    Args:
        make: returns the cache of a branch.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self.make = make
        self.caches: dict[str, Any] = {}

    def branch(self, name: str, compute: Compute, kind: Kind = NOTHING) -> Any:
        """See :class:`Server`."""
        if name not in self.caches:
            self.caches[name] = self.make(name)
        cache, state, self.state = self.caches[name], self.state, None
        match(cache, form_of(state), kind)
        if cache.needs_compute(self.i):
            return cache.observe(self.i, compute(), state)
        return cache.forecast(self.i, state)

    def close(self) -> None:
        """See :class:`Server`."""
        super().close()
        for cache in self.caches.values():
            close(cache)


def form_of(state: Any) -> Kind:
    """The form of the sampler's state as a part of a call's kind."""
    return NOTHING if state is None else {"state": tree.form(state)}


def match(cache: Any, *kinds: Kind) -> None:
    """See :meth:`forecache.Forecaster.match`; a cache of the user's own may do without it."""
    if isinstance(cache, Forecaster):
        cache.match({name: what for kind in kinds for name, what in kind.items()})


def close(cache: Any) -> None:
    """Free the snapshots of a cache; one of the user's own may have nothing to free."""
    if hasattr(cache, "close"):
        cache.close()


def same_tensor(a: Any, b: Any) -> bool:
    """Whether two conditions are one: the same object or the same memory in the same shape."""
    if a is b:
        return True
    return bool(
        hasattr(a, "data_ptr") and hasattr(b, "data_ptr") and a.data_ptr() == b.data_ptr() and a.shape == b.shape
    )
