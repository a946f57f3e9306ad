"""One sampling run of ComfyUI: the functions that it calls around its own.

A step of a sampler passes through three of them, outermost first: ``predict_noise`` (once a call of the network by the
sampler), ``calc_cond_batch`` (the conditions that guidance needs), ``apply_model`` (one batch of them). The last one is
where the network is called or not. What is forecast there is the derivative of the sampler's ODE,
``d = (x - denoised) / sigma``: the velocity of a flow model, the noise of an eps model, and smooth for the others.

What cannot be followed switches the cache off for the rest of the run, with a note; nothing is raised for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from .. import run
from ..branches import Apart, Server
from ..kinds import Kinds
from ..serving import server_of
from ..settings import Settings
from .calls import Question, Unfollowed, altered, arguments, halves, kind_of, part_of, within
from .controls import Controls, Once, asked
from .entries import Entry, Names, Place, by_place, options_of, places, told_apart
from .samplers import ONE, adds_noise, astray, euler, refusal

NAME = "forecache"
PROBED = 3  # calls of an unknown sampler that show whether a step has one: heunpp2's fourth goes back


class Probing(Apart):
    """For a sampler that is not known: the first calls are computed whatever the schedule says."""

    def _schedule(self, name: str) -> frozenset[int]:
        return super()._schedule(name) | frozenset(range(min(PROBED, len(self.times) - 1)))


class Run(run.Run):
    """One run.

    Args:
        settings: or a cache. sampler: the name of its function. sigmas: N + 1 of them.
        conflict: why nothing is forecast with what else the model has, if so.
        made_for: the key of a plan for this run, asked for only with a plan. cfg: strength of guidance.
    """

    def __init__(
        self,
        settings: Any,
        sampler: str,
        sigmas: Sequence[float],
        conflict: str | None,
        made_for: Callable[[], Mapping[str, Any]],
        cfg: Any = None,
    ) -> None:
        super().__init__()
        self.sampler, self.sigmas = sampler, sigmas
        self.names, self.controls = Names(), Controls()
        self.i, self.asked, self.sigma = -1, 0, 0.0
        self.question: Question | None = None
        self.input: Any = None  # of a batch that a node's function has in hand
        self.requests, self.before = Counter[Entry](), Counter[Entry]()
        reason = refusal(sampler, sigmas) or conflict
        self.exact = not isinstance(settings, Settings) or settings.plan is not None
        if reason is None and self.exact and sampler not in ONE:
            reason = f"sampler {sampler} is not known, and a plan needs one call a step from the first on"
        if reason is not None:
            return self.off(reason)
        if adds_noise(sampler):
            self.note(f"sampler {sampler} adds noise, which nothing can forecast: expect more drift")
        apart = Apart if sampler in ONE else Probing
        corrector = euler(sigmas, cfg) if sampler == "euler" else False
        self.server = server_of(
            settings, sigmas, self.trace, made_for, follow=self.names.all, apart=apart, corrector=corrector
        )

    def _stray(self, reason: str) -> None:
        self.off(reason, f"off from step {self.i} on")

    # --- what ComfyUI calls -----------------------------------------------------------------------------------------
    def predict_noise(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the sampler's call: the next step begins."""
        self.i, self.asked = self.i + 1, 0
        if self.server is not None:
            self.sigma = float(timestep.max())
            other = [entry for entry, n in self.requests.items() if self.before.get(entry, n) != n]
            if other:
                now, then = self.requests[other[0]], self.before[other[0]]
                self._stray(f"{other[0].name} was asked for {now} times in the last step and {then} times before")
            elif reason := astray(self.sigma, timestep.dtype, self.sigmas, self.i, self.sampler):
                self._stray(reason)
        self.before, self.requests = self.requests, Counter()
        return executor(x, timestep, *args, **kwargs)

    def calc_cond_batch(self, executor: Any, model: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the conditions of guidance: what they say is kept for the calls of the network that come of it."""
        if self.server is None:
            return executor(model, conds, *args, **kwargs)
        conds, former = told_apart(conds), self.question
        entries, options = by_place(conds), kwargs.get("model_options", args[-1] if args else {})
        self.question = Question(self.asked, entries, altered(options, entries, NAME))
        self.asked += 1
        if not self.question.altered:
            conds = self.controls.within(conds)
        args = tuple(self._watched(each) for each in args)
        try:
            return executor(model, conds, *args, **{name: self._watched(each) for name, each in kwargs.items()})
        finally:
            self.question = former

    def _watched(self, options: Any) -> Any:
        """Model options whose function around the network tells what batch it was given."""
        function = options.get("model_function_wrapper") if isinstance(options, Mapping) else None
        if function is None:
            return options

        def watched(apply_model: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
            former, self.input = self.input, given.get("input")
            try:
                return function(apply_model, given, *args, **kwargs)
            finally:
                self.input = former

        return {**options, "model_function_wrapper": watched}

    def apply_model(self, executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the network: its denoised batch, or forecasts.

        The network is called if one entry of the batch needs it; each entry takes from it what it would take from a
        batch of its own, so that no forecast depends on who stands beside it.
        """
        network = Once(lambda: executor(x, t, *map(asked, args), **{name: asked(v) for name, v in kwargs.items()}))
        where = places(options_of(args, kwargs))
        if self.server is not None and where:
            try:
                return self._batch(self.server, where, x, t, args, kwargs, network)
            except Unfollowed as what:
                self._stray(str(what))
        if not network.outputs:
            for condition, uuid in where:
                self.trace.count(Entry(0, condition, uuid).name)
        return network.now()

    # --- one batch --------------------------------------------------------------------------------------------------
    def _batch(
        self, server: Server, where: Sequence[Place], x: Any, t: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        network: Once,
    ) -> Any:  # fmt: skip
        question, count = self.question, len(where)
        if self.i < 0:
            raise Unfollowed("the sampler's calls cannot be counted, as ComfyUI 0.3.52 and newer let us")
        if question is None or not all(each in question.conds for each in where):
            self.note("calls of the network that a node makes for no condition of the step are computed")
            return network.now()
        parts = halves(x, t, count)
        entries = [self._entry(question, *each) for each in where]
        if any(each.part for each in entries):
            if not within(x, self.input):
                raise Unfollowed(
                    "the network is called several times a step for one entry, with inputs of a node's own"
                )
            self.note("the network is called several times a step for parts of a batch: each has its own history")
        names, options = [], options_of(args, kwargs)
        for k, (entry, place) in enumerate(zip(entries, where, strict=True)):
            kinds, cond = self.kinds.setdefault(entry, Kinds()), question.conds[place]
            try:
                given = arguments(args, kwargs, count, k) if question.altered else {}
                kind = kind_of(kinds, parts[k][0], x, cond, options, self.sigma, given)
            except Exception as error:  # of objects that are not ours: whatever they raise, the run has to go on
                raise Unfollowed(f"what the network is called with cannot be compared: {error!r}") from error
            names.append(self._name(server, entry, kind))

        def denoised(k: int) -> torch.Tensor:
            if not network.outputs:
                for name in names:
                    self.trace.count(name)
            return part_of(network.now(), parts[k][0], count, k)

        out = [self._served(server, name, *parts[k], partial(denoised, k)) for k, name in enumerate(names)]
        if all(each is None for each in out):
            return network.now()
        return torch.cat([denoised(k) if each is None else each for k, each in enumerate(out)])

    def _entry(self, question: Question, condition: int, uuid: Any) -> Entry:
        whole = Entry(question.number, condition, uuid)
        self.requests[whole] += 1
        return replace(whole, part=self.requests[whole] - 1)

    def _name(self, server: Server, entry: Entry, kind: Mapping[str, Any]) -> str:
        """The history of an entry. The one that it had before, if that ends, is freed."""
        known = len(self.names.all)
        name, ended, other = self.names.at(entry, self.i, kind)
        if len(self.names.all) > known and self.exact and self.i > 0:
            raise Unfollowed(f"{name} begins there, and a plan needs it from the first step on")
        if other:
            self.note(f"step {self.i}: {name} begins in place of {ended}: another {', another '.join(other)}")
        if ended and isinstance(server, Apart) and ended in server.histories:
            server.histories.pop(ended).close()
        return name

    def _served(
        self, server: Server, name: str, x: torch.Tensor, t: torch.Tensor, denoised: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """The denoised forecast of an entry; ``None``: the network's own."""
        sigma = t.reshape(-1, *[1] * (x.ndim - 1))
        computed: list[torch.Tensor] = []

        def derivative() -> torch.Tensor:
            computed.append((x - denoised()) / sigma)
            return computed[0]

        server.open(self.i, x)
        d = server.branch(name, derivative)
        return None if computed and d is computed[0] else x - sigma * d
