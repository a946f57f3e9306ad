"""One sampling run of ComfyUI: the functions that it calls around its own.

A step of a sampler passes through three of them, outermost first: ``predict_noise`` (once a call of the network by the
sampler), ``calc_cond_batch`` (the conditions that guidance needs), ``apply_model`` (one batch of them). The last one is
where the network is called or not. What is forecast there is the derivative of the sampler's ODE,
``d = (x - denoised) / sigma``: the velocity of a flow model, the noise of an eps model, and smooth for the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..branches import Apart, Server, StageTrace
from ..serving import serve
from ..settings import Settings
from .entries import Entry, Names, labelled, of_batch
from .samplers import ONE, adds_noise, refusal, stands_at

PROBED = 3  # calls of an unknown sampler that show whether a step has one: heunpp2's fourth goes back


class Probing(Apart):
    """For a sampler that is not known: the first calls are computed whatever the schedule says."""

    def _schedule(self, name: str) -> frozenset[int]:
        return super()._schedule(name) | frozenset(range(min(PROBED, len(self.times) - 1)))


class Run:
    """One run.

    Args:
        settings: or a cache. sampler: the name of its function. sigmas: N + 1 of them.
        model_options: those of the run. made_for: the key of a plan for this run, asked for only with a plan.
    """

    def __init__(
        self,
        settings: Any,
        sampler: str,
        sigmas: Sequence[float],
        model_options: Mapping[str, Any],
        made_for: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.sampler, self.sigmas = sampler, sigmas
        self.trace, self.names = StageTrace(), Names()
        self.i, self.asked, self.sigma, self.bare = -1, 0, 0.0, False
        self.server: Server | None = None
        reason = refusal(sampler, sigmas) or conflict(model_options)
        self.exact = not isinstance(settings, Settings) or settings.plan is not None
        if reason is None and self.exact and sampler not in ONE:
            reason = f"off: sampler {sampler} is not known, and a plan needs one call a step from the first on"
        if reason is not None:
            self._off(reason)
            return
        if adds_noise(sampler):
            self.trace.notes.append(f"sampler {sampler} adds noise, which nothing can forecast: expect more drift")
        apart = Apart if sampler in ONE else Probing
        self.server = serve(settings, sigmas, self.trace, made_for, self.names.all, apart)

    def _off(self, reason: str) -> None:
        warnings.warn(f"forecache is {reason}", stacklevel=3)
        self.trace.notes.append(reason)
        self.close()

    def predict_noise(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the sampler's call: the next step begins."""
        self.i, self.asked = self.i + 1, 0
        if self.server is not None:
            self.sigma = float(timestep.max())
            if not stands_at(self.sigma, self.sigmas, self.i):
                here = f"sigma {self.sigma:.4g} in call {self.i + 1}"
                self._off(f"off from step {self.i} on: sampler {self.sampler} is at {here}, where its sigmas are not")
        return executor(x, timestep, *args, **kwargs)

    def calc_cond_batch(self, executor: Any, model: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the conditions of guidance: each entry gets its own label.

        Where every one of them is going to be forecast, their ControlNets do not run either.
        """
        self.asked += 1
        conds = labelled(self.asked - 1, conds, self.sigma)
        self.bare = all(self._skips(each["uuid"]) for entries in conds for each in entries or ())
        if self.bare:
            conds = [entries and [{**each, "control": None} for each in entries] for entries in conds]
        return executor(model, conds, *args, **kwargs)

    def _skips(self, entry: Entry) -> bool:
        """Whether it is certain that this step of an entry needs no call of the network."""
        if not isinstance(self.server, Apart) or self.names.last.get(entry) != self.i - 1:
            return False
        wanted = self.server.wanted.get(self.names.known[entry])
        return wanted is not None and self.i not in wanted

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Around the network: its denoised batch, or forecasts.

        The network is called if one entry of the batch needs it; each entry takes from it what it would take from a
        batch of its own, so that no forecast depends on who stands beside it.

        Raises:
            RuntimeError: the step has not begun: ComfyUI is too old.
        """
        entries = of_batch(args, kwargs)
        if entries is None:  # a call of a node's own, for no condition
            return executor(x, t, *args, **kwargs)
        if self.i < 0:
            raise RuntimeError("model: forecache needs ComfyUI 0.3.52 or newer, whose samplers' calls can be counted")
        batch: list[Any] = []
        parts = list(zip(entries, x.chunk(len(entries)), t.chunk(len(entries)), strict=True))

        def denoised(k: int) -> torch.Tensor:
            if not batch:
                assert not self.bare, "called without the ControlNets of the entries"
                for each in entries:
                    self.trace.count(self.names.at(each, self.i))
                batch.append(executor(x, t, *args, **kwargs))
            part: torch.Tensor = batch[0].chunk(len(entries))[k]
            return part

        out = [self._served(entry, x_k, t_k, partial(denoised, k)) for k, (entry, x_k, t_k) in enumerate(parts)]
        if all(each is None for each in out):
            return batch[0]
        return torch.cat([denoised(k) if each is None else each for k, each in enumerate(out)])

    def _served(
        self, entry: Any, x: torch.Tensor, t: torch.Tensor, denoised: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """The denoised forecast of an entry; ``None``: the network's own."""
        late = self.i > 0 and entry not in self.names.known
        name = self.names.at(entry, self.i)
        if self.server is None:
            denoised()
            return None
        if late and self.exact:
            raise ValueError(f"plan: {name!r} begins at step {self.i}, and a plan needs it from the first step on")
        sigma = t.reshape(-1, *[1] * (x.ndim - 1))
        computed: list[torch.Tensor] = []

        def derivative() -> torch.Tensor:
            computed.append((x - denoised()) / sigma)
            return computed[0]

        self.server.open(self.i, x)
        d = self.server.branch(name, derivative)
        return None if computed and d is computed[0] else x - sigma * d

    def close(self) -> None:
        """Free every snapshot."""
        if self.server is not None:
            self.server.close()
        self.server = None


def conflict(model_options: Mapping[str, Any]) -> str | None:
    """What else in a model would be forecast from, or from what is forecast; ``None``: nothing."""
    if "easycache" in model_options.get("transformer_options", {}):
        return "off: the model has ComfyUI's EasyCache or LazyCache too; use one of them"
    if model_options.get("context_handler") is not None:
        return "off: context windows, which are not the same from step to step"
    if model_options.get("multigpu_clones"):
        return "off: the model's work is split over several GPUs"
    return None
