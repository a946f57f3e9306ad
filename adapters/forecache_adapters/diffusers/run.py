"""One sampling run of one transformer: its branches, and who serves each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree

from forecache import schedule

from ..branches import Apart, StageTrace
from ..settings import Settings


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

    def branch(self, name: str, compute: Callable[[], Any]) -> Any:
        """See :class:`forecache_adapters.branches.Server`."""
        if name not in self.caches:
            self.caches[name] = self.make(name)
        cache, state, self.state = self.caches[name], self.state, None
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


class Run:
    """One run over ``times``.

    A branch is a cache context (``cond``, ``uncond``), or ``call`` where there is none; another call of it within a
    step is ``call[1]``. Where ``return_dict`` changes within a run, each form of the output has a history of its own.

    Args:
        settings: or a cache. times: N + 1 of them. whole: of the run, which two transformers may share.
        made_for: the key of a plan for this run, asked for only with a plan.
    """

    def __init__(
        self, settings: Any, times: Sequence[float], whole: Sequence[float], made_for: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.settings, self.times, self.whole, self.made_for = settings, times, whole, made_for
        self.trace = StageTrace()
        self.server = self._server()
        self.i, self.calls = -1, Counter[str]()
        self.forms: dict[str, bool] = {}

    def _server(self) -> Any:
        if not isinstance(self.settings, Settings):
            return Each(self._given)
        reason = self.settings.off(self.whole)
        if reason is not None:
            self.trace.notes.append(reason)
            return None
        if self.settings.plan is not None:
            return Each(self._planned)
        total = len(schedule.effective_steps(self.whole))
        return Apart(self.settings, self.times, self.trace.branches, total=total)

    def _given(self, name: str) -> Any:
        if self.server.caches:
            raise ValueError(f"cache: it serves one branch, {next(iter(self.server.caches))!r}, but {name!r} came too")
        return self.settings

    def _planned(self, name: str) -> Any:
        cache, self.trace.branches[name] = self.settings.begin(self.times, self.made_for())
        if cache.needs_branches:
            raise ValueError("plan: it has weights for cond - uncond, but here each call is a branch of its own")
        return cache

    def call(self, i: int, context: str | None, as_tuple: bool, state: Any, compute: Callable[[], Any]) -> Any:
        """The transformer's output at step ``i``: ``compute()``, or a forecast in the same form."""
        if i != self.i:
            self.i = i
            self.calls.clear()
        branch = context or "call"
        self.calls[branch] += 1
        name = branch if self.calls[branch] == 1 else f"{branch}[{self.calls[branch] - 1}]"
        computed: list[Any] = []

        def noted() -> Any:
            self.trace.count(name)
            computed.append(compute())
            computed.append(taken_apart(computed[0]))
            return computed[1]

        first = self.forms.setdefault(name, as_tuple)
        stream = name if as_tuple == first else f"{name}/return_dict={not as_tuple}"
        if self.server is None:
            noted()
            return computed[0]
        self.server.open(i, state)
        served = self.server.branch(stream, noted)
        return computed[0] if computed and served is computed[1] else put_together(served)

    def close(self) -> None:
        """Free every snapshot."""
        if self.server is not None:
            self.server.close()
        self.server = None


@dataclass
class Output:
    """Fields of an output of diffusers' own classes (mappings without what is ``None``), named for the trace."""

    kind: type
    fields: dict[str, Any]


_pytree.register_pytree_node(
    Output,
    lambda out: (list(out.fields.values()), (out.kind, tuple(out.fields))),
    lambda leaves, context: Output(context[0], dict(zip(context[1], leaves, strict=True))),
    flatten_with_keys_fn=lambda out: (
        [(_pytree.GetAttrKey(name), leaf) for name, leaf in out.fields.items()],
        (out.kind, tuple(out.fields)),
    ),
)


def taken_apart(output: Any) -> Any:
    """A transformer's output as a structure that can be named leaf by leaf."""
    return Output(type(output), dict(output)) if isinstance(output, Mapping) else output


def put_together(value: Any) -> Any:
    """The inverse of :func:`taken_apart`."""
    return value.kind(**value.fields) if isinstance(value, Output) else value
