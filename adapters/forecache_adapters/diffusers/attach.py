"""What a pipeline or a transformer has attached to it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from forecache import fingerprint

from .. import attach, handle
from ..attach import Worn
from ..handle import Piece, StageTrace
from .network import original, present
from .relay import Relay, seat, under_way
from .session import Session, Strengths
from .steps import Scheduled, Steps

STRENGTHS = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")  # of guidance, as the calls of pipelines name them


class Handle(handle.Handle):
    """``traces`` are those of each transformer's newest run, by its name in the pipeline.

    Args:
        target: a pipeline or a transformer, which is not kept. settings: or a cache. level: see :class:`Session`.
    """

    of_diffusers = True

    def __init__(self, target: Any, settings: Any, level: str) -> None:
        self._target = weakref.ref(target)
        self.settings, self.level = settings, level
        self.traces: dict[str, StageTrace] = {}

    @property
    def target(self) -> Any:
        """``None``: it is gone."""
        return self._target()

    def session(
        self, name: str, transformer: Any, steps: Steps, strengths: Mapping[str, Any], beside: Strengths | None = None
    ) -> Session:
        """One that writes ``traces[name]``, in a call with these ``strengths`` of guidance, ``beside`` ControlNets."""
        module = weakref.ref(transformer)

        def made_for() -> Mapping[str, Any]:
            return plan_key(name, module(), strengths)

        def traced(trace: StageTrace) -> None:
            self.traces[name] = trace

        known = [each for each in strengths.values() if isinstance(each, (int, float))]
        return Session(
            transformer, self.settings, self.level, steps, made_for, traced, beside, float(max(known, default=1.0))
        )


class OnTransformer(Handle, Piece):
    """Attached to a transformer; a run ends where the next begins, where a call raises, or with :meth:`reset`."""

    def __init__(self, target: Any, settings: Any, level: str, steps: Steps) -> None:
        super().__init__(target, settings, level)
        self.steps, self.pieces = steps, [self]

    def attach(self) -> None:
        """The transformer's calls that belong to no pipeline's are served."""
        if self.target is None:
            return
        seat(self.target).bare = self.session("transformer", self.target, self.steps, {})
        bare[self.target] = self

    def reset(self) -> None:
        """End the run: free every snapshot."""
        self.steps.close()

    def current(self) -> Piece | None:
        """See :class:`Piece`."""
        return None if self.target is None else bare.get(self.target)

    def detach(self) -> None:
        """See :class:`Piece`."""
        self.reset()
        relay = attach.attached(self.target)
        if isinstance(relay, Relay) and self.current() is self:
            del bare[self.target]
            relay.bare = None
            relay.leave()


bare: weakref.WeakKeyDictionary[Any, OnTransformer] = weakref.WeakKeyDictionary()


class OnPipeline(Handle):
    """The transformers wear their relays from the beginning of the pipeline's call to its end.

    So nothing outlives a call that raises, and another pipeline with the same transformer is untouched.
    """

    def __init__(self, target: Any, settings: Any, level: str) -> None:
        super().__init__(target, settings, level)
        self.pieces = [Worn(target, self, {"__call__": self._called})]

    def _called(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pipe = inside.__self__  # type: ignore[attr-defined]
        try:
            given = inspect.signature(inside).bind(*args, **kwargs).arguments
        except TypeError:  # the call says so itself
            given = {}
        with self.running(pipe, guidance(pipe, given)):
            return inside(*args, **kwargs)

    @contextmanager
    def running(self, pipe: Any, strengths: Mapping[str, Any]) -> Iterator[None]:
        """Encloses one call, with these ``strengths`` of guidance."""
        self.traces.clear()
        calls, beside = under_way(), Strengths()
        sessions: dict[int, Any] = {}
        with ExitStack() as stack:
            for name, each in present(pipe).items():
                session = self.session(name, each, scheduled(pipe, name), strengths, beside)
                stack.callback(session.close)
                stack.callback(seat(each).leave)
                sessions[id(each)] = session
            for each in present(pipe, "controlnet").values():
                stack.callback(seat(each).leave)
                sessions[id(each)] = beside
            calls.append(sessions)
            stack.callback(calls.pop)
            yield


def scheduled(pipe: Any, name: str) -> Scheduled:
    """The steps of a pipeline's transformer: of two (Wan 2.2), the first has those at ``boundary_ratio`` and above."""

    def boundary() -> float | None:
        ratio = pipe.config.get("boundary_ratio") if name == "transformer" else None
        return None if ratio is None else float(ratio * pipe.scheduler.config.num_train_timesteps)

    return Scheduled(lambda: pipe.scheduler, boundary)


def guidance(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each strength of guidance that a call of ``pipe`` takes: ``given``, or its default."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: given.get(name, known[name].default) for name in STRENGTHS if name in known}


def plan_key(name: str, transformer: Any, strengths: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan was made for; the grid (steps, shift) is compared beside it.

    Raises:
        ValueError: weights that are not there to be compared.
    """
    network = original(transformer)
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError(
            f"plan: sequential offloading keeps the weights of {name} where they cannot be compared with the plan's;"
            " use model or group offloading"
        )
    return {
        "generator": f"diffusers/{type(network).__name__}", "stage": name, **strengths,
        "weights": fingerprint(network), "dtype": str(transformer.dtype),
    }  # fmt: skip


def attached(target: Any) -> Handle | None:
    """What a pipeline or transformer has attached to it."""
    found = attach.attached(target)
    if isinstance(found, Relay):
        return bare.get(target)
    return found if isinstance(found, OnPipeline) else None
