"""Generators that hand a dynamics function to an ``ODESolver``: hooks on instances, no patch needed.

A generator has ``_solver.solve_iter(dynamics, x, times, ...)``, a Python generator that yields once a step, and
``reverse_fn``, the guidance wrapper, which calls ``reverse_fn.backbone`` once per branch, in a fixed order. While the
dynamics of a run is at work, the backbone's ``forward`` is served branch by branch, and the wrapper goes on combining
them: guidance and its interval stay exact on forecast steps. Everything that belongs to a run lives in the call of
``solve_iter``, so that several of one generator may be under way at once and a dropped one leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MethodType
from typing import Any

import torch

from .branches import Adaptive, Apart, Combined, Joint, Server, StageTrace
from .flow_euler import Guidance, plan_key
from .settings import Settings

# Where in a step a solver calls the dynamics, as shares of dt
SLOPES = {"Euler": (0.0,), "Midpoint": (0.0, 0.5), "RungeKutta4": (0.0, 0.5, 0.5, 1.0)}
ORDER = {"ClassifierFreeGuidance": ("cond", "uncond"), "PointmapCFG": ("cond", "no_pointmap", "uncond")}


def slopes_of(solver: Any) -> tuple[float, ...]:
    """Where in a step ``solver`` calls the dynamics.

    Raises:
        ValueError: a solver that is not among :data:`SLOPES`; its calls could not be told apart.
    """
    name = type(solver).__name__
    if name not in SLOPES:
        raise ValueError(f"solver must be one of {', '.join(SLOPES)}, got {name}")
    return SLOPES[name]


def order_of(wrapper: Any) -> tuple[str, ...]:
    """The branches in the order in which a guidance wrapper calls them.

    Raises:
        TypeError: not a guidance wrapper that is known.
    """
    for kind in type(wrapper).__mro__:
        if kind.__name__ in ORDER:
            return ORDER[kind.__name__]
    raise TypeError(f"generator.reverse_fn must be one of {', '.join(ORDER)}, got {type(wrapper).__name__}")


def is_compiled(wrapper: Any) -> bool:
    """Whether the network is compiled, so that no Python of ours may run inside of ``inner_forward``."""
    replaced = "inner_forward" in {**vars(wrapper), **wrapper._modules}
    parts = (wrapper, wrapper.backbone)
    return replaced or any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in parts)


def strengths(wrapper: Any, time: float) -> tuple[float, ...]:
    """The wrapper's strength of each leaf at a time of the network.

    It is 0 outside of its interval, of which both ends are inside, and everywhere without one or in training mode.
    """
    strength, interval = wrapper.strength, None if wrapper.training else wrapper.interval
    leaves = strength if isinstance(strength, Mapping) else {"v": strength}
    windows = interval if isinstance(interval, Mapping) else dict.fromkeys(leaves, interval)
    t = torch.tensor(time, dtype=torch.float32)  # as the wrapper compares it
    inside = {name: window is not None and bool(window[0] <= t <= window[1]) for name, window in windows.items()}
    return tuple(float(value) if inside[name] else 0.0 for name, value in leaves.items())


def slope_times(times: Sequence[float], share: float) -> list[float]:
    """The times of one slope: ``t_i + c dt_i``, and one more, as far behind the last as that is behind its own."""
    moved = [a + share * (b - a) for a, b in pairwise(times)]
    return [*moved, times[-1] + share * (times[-1] - times[-2])]


class Run:
    """One call of ``solve_iter``: its grid, its step, and what serves its branches. Freed when the call ends.

    Args:
        hook: of the generator. times: the N + 1 grid times.
    """

    trace_type: type[StageTrace] = StageTrace

    def __init__(self, hook: Hook, times: Sequence[float]) -> None:
        wrapper = hook.generator.reverse_fn
        self.hook, self.order, self.slopes = hook, order_of(wrapper), hook.slopes
        self.trace = self.trace_type()
        self.call = self.place = -1
        scale = hook.generator.time_scale
        self.grids = [slope_times(times, share) for share in self.slopes]
        self.strengths = [[strengths(wrapper, scale * t) for t in grid[:-1]] for grid in self.grids]
        self.servers = self._serve(times)

    def _serve(self, times: Sequence[float]) -> list[Server]:
        """One server a slope, none where the cache stays off."""
        settings, notes, wrapper = self.hook.settings, self.trace.notes, self.hook.generator.reverse_fn
        if settings is None:
            notes.append("off: not asked for in this stage")
            return []
        if wrapper.training:
            notes.append("off: in training mode the network gets its condition at random")
            return []
        if isinstance(settings, Settings) and (reason := settings.off(times)) is not None:
            notes.append(reason)
            return []
        if self.hook.combined:
            notes.append(f"combined: {self.hook.combined}; what is forecast is the velocity after guidance")
        if isinstance(settings, Settings) and settings.plan is None:
            return self._combined(settings) if self.hook.combined else self._apart(settings)
        if len(self.slopes) > 1:
            solver = type(self.hook.generator._solver).__name__
            raise ValueError(f"plan: it serves one call of the network a step, {solver} makes {len(self.slopes)}")
        if not isinstance(settings, Settings):
            return [Combined(settings) if self.hook.combined else Joint(settings, self._guided)]
        if self.hook.combined:
            raise ValueError(f"plan: it needs the branches apart, but they are combined: {self.hook.combined}")
        cache, self.trace.branches["plan"] = settings.begin(times, self.hook.key())
        return [Joint(cache, self._guided)]

    @property
    def _guided(self) -> bool:
        """Whether there is a second branch anywhere."""
        return any(any(each) for each in self.strengths[0])

    def _labels(self) -> list[str]:
        """What tells the traces of the slopes apart."""
        return [f"/k{k + 1}" for k in range(len(self.slopes))] if len(self.slopes) > 1 else [""]

    def _apart(self, settings: Settings) -> list[Server]:
        follow, traces = self.order[1:], self.trace.branches
        if settings.adaptive_guidance is not False and self._guided:
            return [
                Adaptive(settings, grid, self.trace, [max(leaves) for leaves in each], label)
                for grid, each, label in zip(self.grids, self.strengths, self._labels(), strict=True)
            ]
        return [
            Apart(settings, grid, traces, follow, label) for grid, label in zip(self.grids, self._labels(), strict=True)
        ]

    def _combined(self, settings: Settings) -> list[Server]:
        """Slopes share the edges, so that all calls of a step are computed or forecast together."""
        if settings.adaptive_guidance is not False:
            raise ValueError(
                f"adaptive_guidance: it needs the branches apart, but they are combined: {self.hook.combined}"
            )
        edges = sorted({i for each in self.strengths for i in range(1, len(each)) if each[i] != each[i - 1]})
        servers: list[Server] = []
        for grid, label in zip(self.grids, self._labels(), strict=True):
            cache, self.trace.branches[f"combined{label}"] = settings.begin(grid, {}, edges)
            servers.append(Combined(cache))
        return servers

    def velocity(self, dynamics: Callable[..., Any], x_t: Any, *args: Any, **kwargs: Any) -> Any:
        """Encloses one call of the dynamics."""
        self.call += 1
        i, k = divmod(self.call, len(self.slopes))

        def compute() -> Any:
            self.place = 0
            if self.hook.combined:  # nobody sees the single calls
                guided = any(w > 0 for w in self.strengths[k][i])
                for name in self.order if guided else self.order[:1]:
                    self.trace.count(name)
            return dynamics(x_t, *args, **kwargs)

        if not self.servers:
            return compute()
        server = self.servers[k]
        server.open(i, x_t)
        if self.hook.combined:
            return server.branch("combined", compute)
        out = compute()
        return compute() if server.again() else out

    def branch(self, call: Callable[[], Any]) -> Any:
        """Encloses one call of the network."""
        if self.place >= len(self.order):
            raise RuntimeError(
                f"the network is called more than {len(self.order)} times a step: {', '.join(self.order)}"
            )
        name = self.order[self.place]
        self.place += 1

        def compute() -> Any:
            self.trace.count(name)
            return call()

        if not self.servers:
            return compute()
        return self.servers[self.call % len(self.slopes)].branch(name, compute)

    def close(self) -> None:
        """Free every snapshot."""
        for server in self.servers:
            server.close()
        self.servers = []


class Hook:
    """What is attached to one generator.

    Args:
        accelerator: that the generator belongs to. stage: its name there.
        generator: with ``_solver`` and ``reverse_fn``.
        settings: of the stage, or a cache, or ``None`` (off).
        combined: why the velocity after guidance is forecast; empty: it is not.
    """

    def __init__(self, accelerator: Accelerator, stage: str, generator: Any, settings: Any, combined: str) -> None:
        self.accelerator, self.stage, self.generator = accelerator, stage, generator
        self.settings, self.combined = settings, combined
        self._attached: dict[str, tuple[Any, Any, Any]] = {}

    @staticmethod
    def check(generator: Any) -> None:
        """Whether it can be attached to ``generator``.

        Raises:
            ValueError: a solver that is not supported. TypeError: a guidance wrapper that is not known.
        """
        slopes_of(generator._solver)
        order_of(generator.reverse_fn)

    @property
    def slopes(self) -> tuple[float, ...]:
        """See :func:`slopes_of`."""
        return slopes_of(self.generator._solver)

    def key(self) -> dict[str, Any]:
        """What a plan for this stage is made for; the grid is compared beside it."""
        return key_of(self.accelerator.name, self.stage, self.generator)

    def attach(self) -> None:
        """Wrap ``solve_iter`` and ``forward`` of the generator's own solver and network, as instance attributes."""
        self.generator.forecache = self
        self._wrap(self.generator._solver, "solve_iter", self._solve_iter)
        self._look()
        if not self.combined:
            self._wrap(self.generator.reverse_fn.backbone, "forward", self._forward)

    def _look(self) -> None:
        """A network that was compiled meanwhile is traced at its first call: take our Python out of it before."""
        if not self.combined and is_compiled(self.generator.reverse_fn):
            self.combined = "the network is compiled"
            if "forward" in self._attached:
                self._unwrap("forward")

    def detach(self) -> None:
        """Take both away again."""
        for name in list(self._attached):
            self._unwrap(name)
        vars(self.generator).pop("forecache", None)

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        before = vars(owner).get(name)

        def wrapper(owner: Any, *args: Any, **kwargs: Any) -> Any:
            inside = before or MethodType(getattr(type(owner), name), owner)
            mine = self._attached.get(name)
            if mine is None or mine[0] is not owner:  # detached under another's wrapper, or a copy of the owner
                return inside(*args, **kwargs)
            return around(inside, *args, **kwargs)

        method = MethodType(wrapper, owner)
        setattr(owner, name, method)
        self._attached[name] = owner, method, before

    def _unwrap(self, name: str) -> None:
        owner, method, before = self._attached.pop(name)
        if vars(owner).get(name) is not method:  # somebody wrapped it since: it calls through from now on
            return
        del vars(owner)[name]
        if before is not None:
            setattr(owner, name, before)

    def _solve_iter(
        self, inside: Callable[..., Any], dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if dynamics != self.generator._generate_dynamics:  # another generator's, or a likelihood's
            return inside(dynamics, x, times, *args, **kwargs)
        return self._run(inside, dynamics, x, times, *args, **kwargs)

    def _run(
        self, inside: Callable[..., Any], dynamics: Any, x: Any, times: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """Encloses ``solve_iter``; like it, nothing happens before the first step is asked for."""
        self._look()
        run = Run(self, torch.as_tensor(times, dtype=torch.float64).tolist())
        self.accelerator.traces[self.stage] = run.trace
        runs = self.accelerator.runs

        def velocity(*args: Any, **kwargs: Any) -> Any:
            runs().append(run)
            try:
                return run.velocity(dynamics, *args, **kwargs)
            finally:
                runs().pop()

        try:
            yield from inside(velocity, x, times, *args, **kwargs)
        finally:
            run.close()

    def _forward(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        runs = self.accelerator.runs()
        if not runs or runs[-1].hook is not self:  # called outside of a run
            return inside(*args, **kwargs)
        return runs[-1].branch(lambda: inside(*args, **kwargs))


class Accelerator:
    """Attached to the generators of one pipeline; the newest run's trace of each stage is in ``traces``.

    Args:
        name: of the upstream, for a plan's key. generators: by stage.
        stages: settings by stage, or a cache, or ``None`` (off). combined: forecast the velocity after guidance.
        hook_of: what is attached to a generator.
    """

    def __init__(
        self,
        name: str,
        generators: Mapping[str, Any],
        stages: Mapping[str, Any],
        combined: bool = False,
        hook_of: Callable[[Any], type[Hook]] = lambda generator: Hook,
    ) -> None:
        self.name, self.combined = name, combined
        why = "asked for" if combined else ""
        self.hooks = {stage: hook_of(each)(self, stage, each, stages[stage], why) for stage, each in generators.items()}
        self.traces: dict[str, StageTrace] = {}
        self._here = threading.local()

    def runs(self) -> list[Run]:
        """Runs whose dynamics is at work in this thread, innermost last."""
        if not hasattr(self._here, "runs"):
            self._here.runs = []
        runs: list[Run] = self._here.runs
        return runs


def key_of(name: str, stage: str, generator: Any) -> dict[str, Any]:
    """What a plan for a stage of the upstream ``name`` is made for: g = 1 + w of ``(1 + w) c - w u``."""
    wrapper = generator.reverse_fn
    w, interval = wrapper.strength, wrapper.interval
    scale = {k: 1.0 + v for k, v in w.items()} if isinstance(w, Mapping) else 1.0 + w
    guidance = None if interval is None else Guidance(scale, interval)  # type: ignore[arg-type]
    return plan_key(name, stage, wrapper.backbone, guidance)
