"""The calls of one transformer: which of them cache-dit may serve, and from what."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..kinds import Kinds
from .calls import Calls
from .handle import Handle

TIMESTEP = ("timestep", "timesteps", "t")
STATE = ("hidden_states", "x", "sample", "img")
MOVING = (*TIMESTEP, *STATE, "audio_hidden_states", "audio_timestep", "sigma", "audio_sigma")
BLOCKWISE = ("control", "skip_layers")  # in the name of an argument that has a part for each block
SURPLUS = {
    1: "two calls at one timestep: enable_separate_cfg=True serves them apart",
    2: "enable_separate_cfg: three calls at one timestep; a solver with several calls a step, or a third branch, cannot"
    " be told from the two branches",
}


class Run:
    """Around a transformer's ``forward``, from ``enable`` to ``disable``.

    Args:
        handle: of the target. names: the transformer's contexts. kind: its class.
    """

    def __init__(self, handle: Handle, names: Sequence[str], kind: type[torch.nn.Module]) -> None:
        self.handle, self.names = handle, list(names)
        self.parameters = list(inspect.signature(kind.forward).parameters)[1:]
        self.calls = Calls(handle.within)
        self.fits: dict[tuple[Any, ...], bool] = {}  # whether cache-dit hands such arguments on to each block
        self.begin()

    # --- a run -------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """The next call is the first of a run."""
        self.off = ""
        self.kinds: dict[int, Kinds] = {}
        self.kind: dict[int, Mapping[str, Any]] = {}
        self.calls.clear()

    def end(self) -> None:
        """However it ended: free every tensor."""
        steps, contexts = self.calls.step + 1, self.contexts()
        total = contexts[0].cache_config.num_inference_steps if contexts else None
        if total not in (None, steps) and steps and not self.off and len(self.handle.runs) == 1:
            self.note(f"num_inference_steps={total}, but the run had {steps} steps")
        self.begin()
        self.free()

    def refreshed(self, name: str) -> None:
        """Somebody else has begun a context anew."""
        if name in self.names:
            self.calls.broken.clear()
            self.begin()

    def stop(self, why: str) -> None:
        """The rest of the run is computed, by the transformer as it is without a cache."""
        if not self.off:
            self.off = f"off for the rest of this run: {why}"
            self.note(self.off)
            warnings.warn(f"forecache is {self.off}", stacklevel=2)
        self.free()

    def note(self, text: str) -> None:
        """Say something of the run as a whole, once."""
        if text not in self.handle.remarks:
            self.handle.remarks.append(text)

    def contexts(self) -> list[Any]:
        """Those of cache-dit: one for each list of blocks."""
        return list(self.handle.contexts(self.names).values())

    def free(self) -> None:
        """Drop what the contexts hold."""
        for context in self.contexts():
            self.handle.free(context)

    # --- a call ------------------------------------------------------------------------------------------------------
    def __call__(
        self, plain: Callable[[], Any], cached: Callable[[], Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """The output for the arguments: ``cached()`` where cache-dit may serve the call, ``plain()`` elsewhere."""
        handle = self.handle
        with handle.lock:
            if handle.at_work or not handle.asked() or not self.contexts():
                return plain()
            try:
                handle.at_work = True
                given = dict(zip(self.parameters, args, strict=False)) | dict(kwargs)
                return self.through_blocks(given, plain, cached) if self.follow(given) else plain()
            except BaseException:
                self.free()
                if handle.within:
                    self.off = "off for the rest of this run: a call was broken off"
                else:
                    self.begin()
                raise
            finally:
                handle.at_work = False

    def follow(self, given: Mapping[str, Any]) -> bool:
        """Place a call, and see to it that only a history of its kind serves it; ``False``: nothing may serve it."""
        config, scheduler = self.contexts()[0].cache_config, self.handle.scheduler
        index = getattr(scheduler, "step_index", None)
        if index is None and hasattr(scheduler, "step_index"):
            index = -1  # before its first step
        time, state = first(TIMESTEP, given), first((*STATE, self.parameters[0]), given)
        fresh, lost = self.calls.place(number(time), state, index, config.num_inference_steps)
        if fresh:
            self.fresh()
        if self.off:
            return False
        if getattr(scheduler, "order", 1) > 1:
            lost = f"{type(scheduler).__name__} calls the network {scheduler.order} times a step"
        requests, request = (2 if config.enable_separate_cfg else 1), self.calls.request
        if not lost and request >= requests:
            if self.kinds[0].of(given) == self.kind[0]:  # asked the same once more: no branch, and computed apart
                return False
            lost = SURPLUS[requests]
        if not lost and requests == 2 and request == 0:
            lost = self.align(config)
        if lost:
            self.stop(lost)
            return False
        kind = self.kinds.setdefault(request, Kinds({*MOVING, self.parameters[0]})).of(given)
        before, self.kind[request] = self.kind.get(request, kind), kind
        other = [f"another {name}" for name, what in kind.items() if before.get(name, what) != what]
        if self.calls.jumped and not self.handle.within:
            other.append("the timestep jumps")
        if other:
            for context in self.contexts():
                second = requests == 2 and (request == 1) is not bool(config.cfg_compute_first)
                self.handle.forget(context, second, f"a new history begins: {', '.join(other)}")
        return True

    def fresh(self) -> None:
        """A run begins with this call; a pipeline's may have several, one after the other."""
        if not self.handle.within:
            self.off, self.handle.remarks = "", []
        self.kinds, self.kind = {}, {}
        for context in self.contexts():
            if context.transformer_executed_steps:
                self.handle.renew(context)

    def align(self, config: Any) -> str:
        """Count the request of the second branch where the step before had none; why not, if it cannot be told."""
        for context in self.contexts():
            if context.transformer_executed_steps % 2 == 1:
                if config.cfg_compute_first:
                    return "cfg_compute_first: a timestep with one call, which may have been either branch"
                context.mark_step_begin()
        return ""

    def through_blocks(self, given: Mapping[str, Any], plain: Callable[[], Any], cached: Callable[[], Any]) -> Any:
        """The output, through cache-dit's blocks if that is what the network computes.

        cache-dit runs a list of blocks as if it were one. An argument with a part for each block, such as the residuals
        of a ControlNet, may then reach the first alone: its first call is computed both ways.
        """
        blockwise = {name: value for name, value in given.items() if any(word in name for word in BLOCKWISE)}
        form = tuple((name, len(value)) for name, value in blockwise.items() if isinstance(value, (list, tuple, dict)))
        if form and not self.fits.get(form, True):
            self.note(f"computed where there is {', '.join(name for name, _ in form)}: cache-dit leaves it out")
            for context in self.contexts():
                context.mark_step_begin()
            return plain()
        wanted = plain() if form and form not in self.fits else None
        try:
            output = cached()
        except Exception as error:
            if not own(error):
                raise
            self.stop(f"cache-dit failed: {type(error).__name__}: {error}")
            return plain()
        if wanted is not None:
            self.fits[form] = close(output, wanted)
            output = wanted
        config = self.contexts()[0].cache_config
        if self.calls.step + 1 == config.num_inference_steps and self.calls.request == bool(config.enable_separate_cfg):
            self.free()  # it was the last call of the run
        return output


def first(names: Sequence[str], given: Mapping[str, Any]) -> Any:
    """The argument that is given by the first of ``names``; ``None``: none is."""
    return next((given[name] for name in names if given.get(name) is not None), None)


def number(timestep: Any) -> float | None:
    """The largest timestep of a call: where there is one a token, those of known frames are 0."""
    return None if timestep is None else float(torch.as_tensor(timestep).max())


def close(output: Any, wanted: Any) -> bool:
    """Whether two outputs are one but for rounding."""
    pairs = zip(tree_leaves(output), tree_leaves(wanted), strict=True)
    return all(float((a - b).float().norm()) <= 1e-3 * float(b.float().norm()) for a, b in pairs)


def own(error: BaseException) -> bool:
    """Whether an error comes from cache-dit itself and not from the network that it runs."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__")).startswith("cache_dit.")
