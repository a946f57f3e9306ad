"""One run of a generator that hands a dynamics function to an ``ODESolver``: what serves each call of its network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree

from forecache import Corrector

from ..branches import Adaptive, Apart, Combined, Joint, Server, StageTrace
from ..kinds import Kinds
from ..settings import Settings
from .ode_solver import obstacle, order_of, slope_times, strengths

if TYPE_CHECKING:
    from .ode_hooks import Hook

FAULTS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)  #: of ours: the run goes on without us
MOVING = ("x", "t", "d")  # arguments of the network that every step makes anew
_CALLED = object()


class _Here(threading.local):
    run: Run | None = None


here = _Here()  #: the run whose dynamics is at work in this thread; none while its network is


@contextmanager
def at_work(run: Run | None) -> Iterator[None]:
    """``run`` is at work in this thread."""
    before = here.run
    try:
        here.run = run
        yield
    finally:
        here.run = before


class Run:
    """One call of ``solve_iter``: its grid, its step, and what serves its branches. Freed when the call ends.

    Which step it is rests on two signals: how often the solver asked, and the time that it asks for. What cannot be
    followed switches the cache off for the rest of the run, and the trace says why.
    """

    trace_type: type[StageTrace] = StageTrace

    def __init__(self, hook: Hook, generator: Any) -> None:
        self.hook, self.generator = hook, generator
        self.trace = self.trace_type()
        self.call, self.place = -1, 0  # of the dynamics in the run, of the network in that
        self.order: tuple[str, ...] = ("cond",)
        self.slopes: tuple[float, ...] = (0.0,)
        self.grids: list[list[float]] = []
        self.strengths: list[list[tuple[float, ...]]] = []  # by slope and step, as they stood when the run began
        self.servers: list[Server] = []  # one a slope; none where the cache is off
        self.kinds: dict[tuple[str, int], Kinds] = {}
        self.combined = ""

    def begin(self, times: Any) -> None:
        """The run's N + 1 times are known.

        Raises:
            ValueError: a plan that was made for something else.
        """
        hook, generator = self.hook, self.generator
        if hook.settings is None:
            self.trace.notes.append("off: not asked for in this stage")
            return
        try:
            times = [float(t) for t in (times.tolist() if hasattr(times, "tolist") else times)]
            reason = self._idle(times)
            if reason is not None:
                self.trace.notes.append(reason)
                return
            self.combined = hook.combined(generator)
            self.order, self.slopes = order_of(generator.reverse_fn), hook.slopes(generator)
            self.grids = [slope_times(times, share) for share in self.slopes]
            self.strengths = [[self._strengths(t) for t in grid[:-1]] for grid in self.grids]
            reason = obstacle(hook.settings, generator._solver, self.slopes, self.combined)
        except FAULTS as error:
            reason = str(error)
        if reason is not None:
            return self.off(reason)
        try:
            self.servers = self._serve(times)
        except FAULTS as error:
            if getattr(hook.settings, "plan", None) is not None:
                raise
            self.off(str(error))

    def _idle(self, times: Sequence[float]) -> str | None:
        """Why nothing is to be served; not a fault."""
        settings = self.hook.settings
        if self.generator.reverse_fn.training:
            return "off: in training mode the network gets its condition at random"
        if len(times) < 2:
            return "off: no step moves the state"
        return settings.off(times) if isinstance(settings, Settings) else None

    def _serve(self, times: Sequence[float]) -> list[Server]:
        settings = self.hook.settings
        if self.combined:
            self.trace.notes.append(f"combined: {self.combined}; what is forecast is the velocity after guidance")
        if not isinstance(settings, Settings):
            return [Combined(settings) if self.combined else Joint(settings, self._guided)]
        if settings.plan is None:
            return self._combined(settings) if self.combined else self._apart(settings)
        cache, self.trace.branches["plan"] = settings.begin(times, self.hook.key(self.generator))
        return [Joint(cache, self._guided)]

    def _strengths(self, t: float) -> tuple[float, ...]:
        return strengths(self.generator.reverse_fn, self.generator.time_scale * t)

    @property
    def _guided(self) -> bool:
        """Whether there is a second branch anywhere."""
        return any(any(each) for each in self.strengths[0])

    def _labels(self) -> list[str]:
        """What tells the traces of the slopes apart."""
        return [f"/k{k + 1}" for k in range(len(self.slopes))] if len(self.slopes) > 1 else [""]

    def _apart(self, settings: Settings) -> list[Server]:
        follow, traces = self.order[1:], self.trace.branches
        slopes = list(zip(self.grids, self.strengths, self._labels(), strict=True))
        if settings.adaptive_guidance is not False and self._guided:
            return [
                Adaptive(settings, grid, self.trace, [max(leaves) for leaves in each], label)
                for grid, each, label in slopes
            ]
        return [
            Apart(settings, grid, traces, follow, label, corrector=self._corrector(grid, each))
            for grid, each, label in slopes
        ]

    def _corrector(self, grid: Sequence[float], strengths: Sequence[tuple[float, ...]]) -> bool | Corrector:
        """Of Euler's method; a solver with several slopes a step weighs them its own way."""
        changes = [i for i in range(1, len(strengths)) if strengths[i] != strengths[i - 1]]
        return Corrector(tuple(grid), changes, strength=_steepest(strengths)) if len(self.slopes) == 1 else False

    def _combined(self, settings: Settings) -> list[Server]:
        """Slopes share the edges, so that all calls of a step are computed or forecast together."""
        edges = sorted({i for each in self.strengths for i in range(1, len(each)) if each[i] != each[i - 1]})
        servers: list[Server] = []
        for grid, each, label in zip(self.grids, self.strengths, self._labels(), strict=True):
            corrector = len(self.slopes) == 1 and Corrector(tuple(grid), strength=_steepest(each))
            cache, self.trace.branches[f"combined{label}"] = settings.begin(grid, {}, edges, corrector=corrector)
            servers.append(Combined(cache))
        return servers

    def off(self, why: str) -> None:
        """Every call from now on is the generator's own.

        Raises:
            ValueError: it was given a cache of the user's own, such as a calibration's, which misses the rest.
        """
        if not isinstance(self.hook.settings, Settings):
            raise ValueError(f"cache: it cannot follow this run: {why}")
        self.trace.notes.append(f"off: {why}")
        warnings.warn(f"forecache is off: {why}", stacklevel=4)
        self.close()

    def close(self) -> None:
        """Free every snapshot."""
        servers, self.servers, self.kinds = self.servers, [], {}
        for server in servers:
            server.close()

    def velocity(self, dynamics: Callable[..., Any], x_t: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        """Encloses one call of the dynamics."""
        self.call += 1
        i, k = divmod(self.call, len(self.slopes))
        if self.servers and (why := self._lost(i, self.grids[k], t)) is not None:
            self.off(why)

        def compute() -> Any:
            self.place = 0
            if self.combined:  # nobody sees the single calls
                self._count(t)
            return dynamics(x_t, t, *args, **kwargs)

        if not self.servers:
            return compute()
        server = self.servers[k]
        server.open(i, x_t)
        if self.combined:
            return self._served(server, "combined", compute, lambda: self._after_guidance(i, k, t, args, kwargs))
        out = compute()
        if self.place == 0:
            self.off("the dynamics does not call the network of the generator")
        return compute() if self._again() else out

    def _count(self, t: Any) -> None:
        try:
            guided = any(self._strengths(float(t)))
        except FAULTS:
            guided = False
        for name in self.order if guided else self.order[:1]:
            self.trace.count(name)

    def _again(self) -> bool:
        try:
            return bool(self.servers) and self.servers[self.call % len(self.slopes)].again()
        except FAULTS as error:
            self._failed(error)
            return False

    @staticmethod
    def _lost(i: int, grid: Sequence[float], t: Any) -> str | None:
        """Whether the solver asks for something else than step ``i``."""
        if i >= len(grid) - 1:
            return f"the solver takes step {i} of a grid of {len(grid) - 1}"
        try:
            gaps = [abs(float(t) - known) for known in grid[:-1]]
        except FAULTS:
            return f"step {i} has no time that could be compared, but {t!r}"
        if gaps[i] <= min(gaps):
            return None
        return f"it is step {i} as they are counted, but step {gaps.index(min(gaps))} by its time {float(t):.6g}"

    def branch(self, call: Callable[[], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Encloses one call of the network."""
        place, self.place = self.place, self.place + 1
        name = self.order[place] if place < len(self.order) else f"call {place + 1}"

        def compute() -> Any:
            self.trace.count(name)
            with at_work(None):
                return call()

        if self.servers and place >= len(self.order):
            self.off(f"the network is called more than {len(self.order)} times a step: {', '.join(self.order)}")
        if not self.servers:
            return compute()
        k = self.call % len(self.slopes)
        server = self.servers[k]
        if isinstance(server, Joint) and name != "cond" and not server.guidance:
            self.off(f"the network is called for {name!r} in a run that began without guidance")
            return compute()
        return self._served(server, name, compute, lambda: self.kind(name, k, args, kwargs))

    def _served(self, server: Server, name: str, compute: Callable[[], Any], kind: Callable[[], Any]) -> Any:
        """The server's value; what it cannot do switches it off, and the value is computed."""
        made: list[Any] = []

        def noted() -> Any:
            made.append(_CALLED)
            made[0] = compute()
            return made[0]

        try:
            return server.branch(name, noted, kind())
        except FAULTS as error:
            if made and made[0] is _CALLED:  # the generator's own error
                raise
            self._failed(error)
            return made[0] if made else compute()

    def _failed(self, error: Exception) -> None:
        if not isinstance(self.hook.settings, Settings):
            raise error
        self.off(str(error))

    def kind(self, name: str, k: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call a branch gets."""
        named = {("x", "t")[j] if j < 2 else f"argument {j + 1}": value for j, value in enumerate(args)}
        return self.kinds.setdefault((name, k), Kinds(MOVING)).of({**named, **kwargs})

    def _after_guidance(self, i: int, k: int, t: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call the dynamics is. Its edges are known, where guidance stays as it was when the run began."""
        now = self._strengths(float(t))
        pointmap = _pytree.tree_leaves(getattr(self.generator.reverse_fn, "strength_pm", 0.0))
        guidance = None if now == self.strengths[k][i] else now, tuple(map(float, pointmap))
        return {**self.kind("combined", k, (None, None, *args), kwargs), "guidance": guidance}


def _steepest(strengths: Sequence[tuple[float, ...]]) -> float:
    """G of ``u + g (c - u)``, at the step and in the leaf where it is largest; theirs is ``c + s (c - u)``."""
    return 1 + max((s for each in strengths for s in each), default=0.0)
