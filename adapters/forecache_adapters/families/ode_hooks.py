"""What generators with an ODE solver wear: no patch needed.

While the dynamics of a run is at work, the calls of the network are served branch by branch, and the guidance wrapper
goes on combining them: guidance and its interval stay exact on forecast steps. Everything that belongs to a run lives
in the call of ``solve_iter``, a Python generator that yields once a step, so that several runs of one generator may be
under way at once and a dropped one leaves nothing behind.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..attach import Worn, attached, worn
from ..handle import Handle, Piece, StageTrace
from ..run import FAULTS
from .flow_euler import Guidance, plan_key
from .ode_run import OdeRun, at_work, here
from .ode_solver import is_compiled, obstacle, order_of, slopes_of


class Part:
    """What a solver or a network wears: the hooks of the generators that it is a part of. Pipelines may share it."""

    def __init__(self) -> None:
        self.hooks: list[Hook] = []

    @staticmethod
    def join(target: Any, hook: Hook, methods: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
        """A hook serves ``target`` from now on.

        Raises:
            ValueError: another cache is on it. TypeError: its class cannot be exchanged.
        """
        found = ours(target)
        if found is None:
            found = Part()
            around: dict[str, Any] = {"solve_iter": found.solve_iter, "__call__": found.call}
            Worn(target, found, {name: around[name] for name in methods}, attributes).attach()
        found.hooks = [each for each in found.hooks if each.alive is not None] + [hook]

    @staticmethod
    def leave(target: Any, hook: Hook) -> None:
        """A hook serves ``target`` no more."""
        wearing = worn(target)
        if wearing is not None and isinstance(found := wearing.handle, Part):
            found.hooks = [each for each in found.hooks if each is not hook and each.alive is not None]
            if not found.hooks:
                wearing.detach()

    def solve_iter(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Encloses the solver's; a likelihood's dynamics, and that of a generator without a cache, are none of ours."""
        for hook in self.hooks:
            generator = hook.alive
            if generator is not None and len(args) > 2 and args[0] == generator._generate_dynamics:
                return hook.run(inside, generator, *args, **kwargs)
        return inside(*args, **kwargs)

    def call(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Encloses a call of the network."""
        run = here.run
        if run is None or run.hook not in self.hooks:  # called outside of a run
            return inside(*args, **kwargs)
        return run.branch(lambda: inside(*args, **kwargs), args, kwargs)


def ours(part: Any) -> Any:
    """What a part wears, if anything.

    Raises:
        ValueError: another cache is on it.
    """
    found = attached(part)
    if not isinstance(found, (Part, Hook, type(None))):
        raise ValueError(f"generator: {type(part).__name__} has another cache already; take that off first")
    return found


class Hook(Piece):
    """What one generator wears. It does not keep the generator.

    Args:
        accelerator: that the generator belongs to. stage: its name there.
        generator: with ``_solver`` and ``reverse_fn``.
        settings: of the stage, or a cache, or ``None`` (off).

    Raises:
        ValueError: a solver that is not supported, settings that it cannot be served with, a part that has another
            cache. TypeError: a guidance wrapper that is not known.
    """

    run_type: type[OdeRun] = OdeRun

    def __init__(self, accelerator: Accelerator, stage: str, generator: Any, settings: Any) -> None:
        self.accelerator, self.stage, self.settings = accelerator, stage, settings
        self._generator = weakref.ref(generator)
        self._parts: dict[str, Callable[[], Any]] = {}
        self._worn = Worn(generator, self, {"generate_iter": self._generate_iter}, {"forecache": self})
        why = obstacle(settings, generator._solver, self.slopes(generator), self.combined(generator))
        if why is None and getattr(settings, "adaptive_guidance", False) is not False:
            three = [name for name in order_of(generator.reverse_fn) if name not in ("cond", "uncond")]
            why = f"adaptive_guidance: it serves one condition and its negative, not {three[0]!r}" if three else None
        if why is not None:
            raise ValueError(why)
        for part in (generator, generator._solver, generator.reverse_fn.backbone):
            ours(part)

    @property
    def alive(self) -> Any:
        """The generator; ``None`` when it is gone."""
        return self._generator()

    def slopes(self, generator: Any) -> tuple[float, ...]:
        """See :func:`slopes_of`."""
        order_of(generator.reverse_fn)
        return slopes_of(generator._solver)

    def key(self, generator: Any) -> dict[str, Any]:
        """What a plan for this stage is made for; the grid is compared beside it."""
        return key_of(self.accelerator.name, self.stage, generator)

    def combined(self, generator: Any) -> str:
        """Why the velocity after guidance is forecast; "": the branches are, apart."""
        if self.accelerator.combined:
            return "asked for"
        return "the network is compiled" if is_compiled(generator.reverse_fn) else ""

    def attach(self) -> None:
        """Put it on the generator, on its own solver and on its network.

        Raises:
            ValueError: another cache is on one of them. TypeError: its class cannot be exchanged.
        """
        generator = self.alive
        if generator is None:
            return
        self._worn.attach()
        try:
            self._look(generator)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take it off again."""
        for reference in self._parts.values():
            Part.leave(reference(), self)
        self._parts = {}
        self._worn.detach()

    def current(self) -> Hook | None:
        """See :class:`Piece`."""
        found = attached(self.alive)
        return found if isinstance(found, Hook) else None

    def _look(self, generator: Any) -> None:
        """Follow solver and network where they were exchanged, and leave a network that was compiled meanwhile: it is
        traced at its first call, with what it wears.
        """
        network = None if self.combined(generator) else getattr(generator.reverse_fn, "backbone", None)
        self._follow("solver", generator._solver, ("solve_iter",), self.shown(generator))
        self._follow("network", network, ("__call__",), {})

    def _follow(self, name: str, part: Any, methods: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
        before = self._parts.get(name, lambda: None)()
        if before is part:
            return
        if before is not None:
            Part.leave(before, self)
            del self._parts[name]
        if part is not None:
            Part.join(part, self, methods, attributes)
            self._parts[name] = weakref.ref(part)

    def shown(self, generator: Any) -> Mapping[str, Any]:
        """Attributes that the solver shows."""
        return {}

    def _generate_iter(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generator = self.alive
        try:
            self._look(generator)
        except FAULTS as reason:
            self.accelerator.traces[self.stage] = StageTrace(notes=[f"off: {reason}"])
            warnings.warn(f"forecache is off: {reason}", stacklevel=3)
        return inside(*args, **kwargs)

    def run(
        self, inside: Callable[..., Any], generator: Any, dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """Encloses ``solve_iter``; like it, nothing happens before the first step is asked for."""
        run = self.begin(generator, times)

        def velocity(*args: Any, **kwargs: Any) -> Any:
            with at_work(run):
                return run.velocity(dynamics, *args, **kwargs)

        try:
            yield from inside(velocity, x, times, *args, **kwargs)
        finally:
            run.close()

    def begin(self, generator: Any, times: Any) -> OdeRun:
        """The run of a call of ``solve_iter``."""
        run = self.run_type(self, generator)
        self.accelerator.traces[self.stage] = run.trace
        try:
            self._look(generator)
        except FAULTS as reason:
            run.off(str(reason))
        else:
            run.begin(times)
        return run


class Accelerator(Handle):
    """Attached to the generators of one pipeline; the newest run's trace of each stage is in ``traces``.

    Args:
        name: of the upstream, for a plan's key. owner: the pipeline, or the generator; it is not kept.
        generators: by stage. stages: settings by stage, or a cache, or ``None`` (off).
        combined: forecast the velocity after guidance. hook_of: what is attached to a generator.
    """

    def __init__(
        self,
        name: str,
        owner: Any,
        generators: Mapping[str, Any],
        stages: Mapping[str, Any],
        combined: bool = False,
        hook_of: Callable[[Any], type[Hook]] = lambda generator: Hook,
    ) -> None:
        self.name, self.combined = name, combined
        try:
            self._owner: Callable[[], Any] = weakref.ref(owner)
        except TypeError:  # an object that is not to be referred to weakly
            self._owner = lambda: None
        self.traces: dict[str, StageTrace] = {}
        self.hooks = {stage: hook_of(each)(self, stage, each, stages[stage]) for stage, each in generators.items()}
        self.pieces = list(self.hooks.values())

    def belongs_to(self, *targets: Any) -> bool:
        """Whether it was attached to one of ``targets``, and not to a copy that has the same generators."""
        owner = self._owner()
        return owner is None or any(owner is target for target in targets)


def key_of(name: str, stage: str, generator: Any) -> dict[str, Any]:
    """What a plan for a stage of the upstream ``name`` is made for: g = 1 + w of ``(1 + w) c - w u``."""
    wrapper = generator.reverse_fn
    w, interval = wrapper.strength, wrapper.interval
    scale = {k: 1.0 + v for k, v in w.items()} if isinstance(w, Mapping) else 1.0 + w
    guidance = None if interval is None else Guidance(scale, interval)  # type: ignore[arg-type]
    return plan_key(name, stage, wrapper.backbone, guidance)
