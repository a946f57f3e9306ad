"""Serves the calls of one transformer, in one pipeline's call or as long as it is attached."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from forecache import Corrector

from ..handle import StageTrace
from .call import Call
from .head import Head
from .network import original, other_cache
from .relay import Relay
from .run import Run
from .steps import Steps
from .track import Track


class Strengths:
    """Watches a pipeline's ControlNets: beyond their range their residuals are given too, multiplied by 0."""

    def __init__(self) -> None:
        self.newest: dict[int, Any] = {}

    def serve(self, relay: Relay, module: Any, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See :class:`~.relay.Session`."""
        scale = kwargs.get("conditioning_scale")
        self.newest[id(module)] = tuple(scale) if isinstance(scale, (list, tuple)) else scale
        return inside(*args, **kwargs)


class Session:
    """Forecasts the transformer's output.

    Args:
        settings: or a cache. steps: tells the steps apart.
        level: ``velocity``: the whole output is forecast, and on a forecast step nothing of the transformer runs;
            ``last_block``: what stands behind the last block, and everything but the blocks runs.
        made_for: the key of a plan. traced: takes the trace of each run.
        strengths: of the pipeline's ControlNets. strength: of guidance.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        settings: Any,
        level: str,
        steps: Steps,
        made_for: Callable[[], Mapping[str, Any]],
        traced: Callable[[StageTrace], None],
        strengths: Strengths | None = None,
        strength: float = 1.0,
    ) -> None:
        self.settings, self.level, self.steps, self.strength = settings, level, steps, strength
        self.made_for, self.traced = made_for, traced
        self.strengths = strengths or Strengths()
        self.other = other_cache(module)  # found beneath the relay
        self.names = list(inspect.signature(original(module).forward).parameters)  # of positional arguments
        self.state = "hidden_states" if "hidden_states" in self.names else next(iter(self.names), "")

    def serve(self, relay: Relay, module: Any, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See :class:`~.relay.Session`."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        call = Call(given, relay.context, given.get(self.state))
        try:
            return self._served(relay, module, call, lambda: inside(*args, **kwargs))
        except BaseException:
            self.close()
            raise

    def _served(self, relay: Relay, module: Any, call: Call, forward: Callable[[], Any]) -> Any:
        track = self.steps.locate(call)
        fresh = track.run is None
        if fresh:
            admitted = track.corrector if self.level == "velocity" else False
            if isinstance(admitted, Corrector):
                admitted = replace(admitted, strength=self.strength)
            track.run = Run(self.settings, track.times, track.whole, self.made_for, self.state, admitted)
            track.run.trace.notes += [track.remark] if track.remark else []
            self.traced(track.run.trace)
        run: Run = track.run
        reason = track.why or self.other or other_cache(module)  # which may have been enabled since
        head = None if reason or self.level == "velocity" else self._head(relay, module, track)
        if reason is not None:
            run.off(reason)
        as_tuple = not call.arguments.get("return_dict", True)

        def kind() -> Mapping[str, Any]:
            return run.kind_of(track.name, call, module, self.strengths.newest)

        if head is None or run.server is None:
            return run.call(track.i, track.name, as_tuple, call.state, kind, forward)
        output = hidden = None

        def split() -> Any:
            nonlocal output, hidden
            output, hidden = head.split(forward)
            if fresh and not head.follows(forward, output, hidden):
                run.off(f"the output of {head.name} does not follow from what enters its norm_out")
            return hidden

        served = run.call(track.i, track.name, True, call.state, kind, split)
        return output if served is hidden else head(forward, served)

    def _head(self, relay: Relay, module: Any, track: Track) -> Head | None:
        try:
            return relay.head(module)
        except TypeError as reason:
            track.run.off(str(reason))
            return None

    def close(self) -> None:
        """End every run: free every snapshot."""
        self.steps.close()
