"""One run of a generator that hands a dynamics function to an ``ODESolver``: what serves each call of its network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils import _pytree

from forecache import Corrector

from ..branches import Joint, Server
from ..handle import StageTrace
from ..run import FAULTS, Run, misplaced
from ..serving import server_of
from ..settings import Settings
from .ode_solver import obstacle, order_of, slope_times, strengths

MOVING = ("x", "t", "d")  # arguments of the network that every step makes anew


class _Here(threading.local):
    run: OdeRun | None = None


here = _Here()  #: the run whose dynamics is at work in this thread; none while its network is


@contextmanager
def at_work(run: OdeRun | None) -> Iterator[None]:
    """``run`` is at work in this thread."""
    before = here.run
    try:
        here.run = run
        yield
    finally:
        here.run = before


class OdeRun(Run):
    """One call of ``solve_iter``: its grid, its step, and what serves its branches.

    Args:
        hook: what the generator wears (:class:`~forecache_adapters.families.ode_hooks.Hook`): its settings, and what
            it knows of solver and guidance.
        generator: with ``_solver`` and ``reverse_fn``.
    """

    trace_type: type[StageTrace] = StageTrace

    def __init__(self, hook: Any, generator: Any) -> None:
        super().__init__(self.trace_type(), given=not isinstance(hook.settings, (Settings, type(None))))
        self.hook, self.generator = hook, generator
        self.call, self.place = -1, 0  # of the dynamics in the run, of the network in that
        self.order: tuple[str, ...] = ("cond",)
        self.slopes: tuple[float, ...] = (0.0,)
        self.grids: list[list[float]] = []
        self.strengths: list[list[tuple[float, ...]]] = []  # by slope and step, as they stood when the run began
        self.servers: list[Server] = []  # one a slope; none where the cache is off
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
            self.servers = self._make_servers()
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

    def _make_servers(self) -> list[Server]:
        if self.combined:
            self.trace.notes.append(f"combined: {self.combined}; what is forecast is the velocity after guidance")
        return [server for k in range(len(self.slopes)) if (server := self._server(k)) is not None]

    def _server(self, k: int) -> Server | None:
        """Of one slope. Where velocities are forecast after guidance, slopes share the edges, so that all calls of a
        step are computed or forecast together. The corrector is that of Euler's method.
        """
        grid, strengths, several = self.grids[k], self.strengths[k], len(self.slopes) > 1
        changes = [] if self.combined else _changes(strengths)
        return server_of(
            self.hook.settings, grid, self.trace, lambda: self.hook.key(self.generator),
            guided=any(map(any, self.strengths[0])), strengths=[max(leaves, default=0.0) for leaves in strengths],
            edges=sorted({i for each in self.strengths for i in _changes(each)}) if self.combined else None,
            follow=self.order[1:], label=f"/k{k + 1}" if several else "", whole=self.grids[0],
            corrector=not several and Corrector(tuple(grid), changes, strength=_steepest(strengths)),
        )  # fmt: skip

    def _strengths(self, t: float) -> tuple[float, ...]:
        return strengths(self.generator.reverse_fn, self.generator.time_scale * t)

    def close(self) -> None:
        """See :class:`Run`."""
        super().close()
        servers, self.servers = self.servers, []
        for server in servers:
            server.close()

    def velocity(self, dynamics: Callable[..., Any], x_t: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        """Encloses one call of the dynamics."""
        self.call += 1
        i, k = divmod(self.call, len(self.slopes))
        if self.servers and (why := misplaced(i, t, self.grids[k], "the solver takes ", "it is ")) is not None:
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
            return self.branch_or_off(server, "combined", compute, lambda: self._after_guidance(i, k, t, args, kwargs))
        out = compute()
        if self.place == 0:
            self.off("the dynamics does not call the network of the generator")
        return compute() if self.must_repeat() else out

    def _count(self, t: Any) -> None:
        try:
            guided = any(self._strengths(float(t)))
        except FAULTS:
            guided = False
        for name in self.order if guided else self.order[:1]:
            self.trace.count(name)

    def must_repeat(self) -> bool:
        """Whether the open step's velocity has to be made once more; see :meth:`Server.asks_again`."""
        return self.asks_again(self.servers[self.call % len(self.slopes)] if self.servers else None)

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
        return self.branch_or_off(server, name, compute, lambda: self.kind_of(name, k, args, kwargs))

    def kind_of(self, name: str, k: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call a branch gets."""
        named = {("x", "t")[j] if j < 2 else f"argument {j + 1}": value for j, value in enumerate(args)}
        return self.kind((name, k), {**named, **kwargs}, MOVING)

    def _after_guidance(self, i: int, k: int, t: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What kind of call the dynamics is. Its edges are known, where guidance stays as it was when the run began."""
        now = self._strengths(float(t))
        pointmap = _pytree.tree_leaves(getattr(self.generator.reverse_fn, "strength_pm", 0.0))
        guidance = None if now == self.strengths[k][i] else now, tuple(map(float, pointmap))
        return {**self.kind_of("combined", k, (None, None, *args), kwargs), "guidance": guidance}


def _changes(strengths: Sequence[tuple[float, ...]]) -> list[int]:
    """The steps at which guidance changes."""
    return [i for i in range(1, len(strengths)) if strengths[i] != strengths[i - 1]]


def _steepest(strengths: Sequence[tuple[float, ...]]) -> float:
    """G of ``u + g (c - u)``, at the step and in the leaf where it is largest; theirs is ``c + s (c - u)``."""
    return 1 + max((s for each in strengths for s in each), default=0.0)
