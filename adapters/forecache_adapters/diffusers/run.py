"""One sampling run of one transformer: its branches, and who serves each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree

from forecache import Corrector

from .. import run
from ..others import count_skipped
from ..serving import server_of
from .call import TIMESTEP, Call
from .switches import Switches


class Run(run.Run):
    """One run over ``times``.

    Where ``return_dict`` changes within a run, each form of the output has a history of its own. A history serves calls
    of one kind: see :class:`~forecache_adapters.kinds.Kinds`; of the residuals of a ControlNet, which are others at
    every step, whether they are given and in what form.

    Args:
        settings: or a cache. times: N + 1 of them. whole: of the run, which two transformers may share.
        made_for: the key of a plan for this run, asked for only with a plan.
        state: name of the argument that holds the latents.
    """

    def __init__(
        self,
        settings: Any,
        times: Sequence[float],
        whole: Sequence[float],
        made_for: Callable[[], Mapping[str, Any]],
        state: str,
        corrector: bool | Corrector = False,
    ) -> None:
        super().__init__()
        self.moving = {state, *TIMESTEP}
        if len(times) > 1:
            self.server = server_of(settings, times, self.trace, made_for, whole=whole, corrector=corrector)
        self.forms: dict[str, bool] = {}
        self.switches: Switches | None = None

    def kind_of(self, name: str, call: Call, network: torch.nn.Module, strengths: Mapping[int, Any]) -> dict[str, Any]:
        """The kind of a call of a branch. ``strengths``: of the ControlNets that ran for it."""
        if self.switches is None:
            self.switches = Switches(network)
        residuals = {each for each in call.arguments if "controlnet" in each}
        return {
            **self.kind(name, call.arguments, self.moving | residuals),
            "state of adapters": self.switches.state(network),
            "strength of ControlNets": dict(strengths),
        }

    def call(
        self,
        i: int,
        name: str,
        as_tuple: bool,
        state: Any,
        kind: Callable[[], Mapping[str, Any]],
        compute: Callable[[], Any],
    ) -> Any:
        """The transformer's output for branch ``name`` at step ``i``: ``compute()``, or a forecast in the same form."""
        computed: list[Any] = []

        def noted() -> Any:
            self.trace.count(name)
            computed.append(compute())
            computed.append(taken_apart(computed[0]))
            return computed[1]

        server = self.server
        if server is None:
            noted()
            return computed[0]
        first = self.forms.setdefault(name, as_tuple)
        stream = name if as_tuple == first else f"{name}/return_dict={not as_tuple}"
        server.open(i, state)
        served = server.branch(stream, noted, kind())
        if not computed:
            count_skipped(self.switches.counters if self.switches else ())
        return computed[0] if computed and served is computed[1] else put_together(served)

    def off(self, why: str, since: str = "off") -> None:
        """See :class:`forecache_adapters.run.Run`; said once a run."""
        self.server = None  # a call in another thread may be at work in it; what it holds goes with it
        if any(note.startswith("off: ") for note in self.trace.notes):
            self.close()
        else:
            super().off(why, since)

    def close(self) -> None:
        """See :class:`forecache_adapters.run.Run`."""
        super().close()
        self.switches = None


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
