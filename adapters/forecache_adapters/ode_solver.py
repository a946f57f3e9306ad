"""One run of a generator that hands a dynamics function to an ``ODESolver``: what serves each call of its network.

A generator has ``_solver.solve_iter(dynamics, x, times, ...)`` and ``reverse_fn``, the guidance wrapper, which calls
``reverse_fn.backbone`` once per branch, in a fixed order. A solver calls the dynamics once or several times a step, at
fixed shares of the step: each such slope has histories of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from .branches import Adaptive, Apart, Combined, Joint, Server, StageTrace
from .settings import Settings

if TYPE_CHECKING:
    from .ode_hooks import Hook

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
