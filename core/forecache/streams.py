"""One history per stream: a branch of the guidance, a leaf of a structured velocity. Streams never share one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .corrector import Corrector
from .rules import Rule
from .rules.guard import Served, fallen, serve
from .rules.rule import newest
from .snapshots import Array, Snapshots, read, residual
from .tree import Guided as Guided

CORRECTOR = "corrector"
TINY = 1e-100  # denominator of a zero value: the ratio is huge and finite
ROUNDOFF = 1e-7  # of the norm: residuals below it are noise of the Gram matrix, and reuse is exact


@dataclass(frozen=True)
class Audit:
    """Forward error of the forecast that a window would have made of an arriving value: per item, relative to it."""

    error: Array
    skill: Array  #: the error divided by that of reuse; below 1 the rule earns its place


Asked = tuple[torch.Tensor, Callable[[Array], None]]  #: numbers ``[n, 1]`` of a device and who is told them, ``[n]``


def products(
    streams: Mapping[str, Stream], values: Mapping[str, torch.Tensor], asked: Sequence[Asked] = ()
) -> dict[str, Array]:
    """:meth:`Snapshots.products` of the value of each stream. The host waits for the device once, not for each; with
    that it reads what else is ``asked``.
    """
    queued = [streams[name].snapshots.queued(value, name) for name, value in values.items()]
    known = read([*queued, *(numbers for numbers, _ in asked)])
    for (_, tell), numbers in zip(asked, known[len(queued) :], strict=True):
        tell(numbers)
    return {
        name: streams[name].snapshots.products(value, name, row)
        for (name, value), row in zip(values.items(), known[: len(queued)], strict=True)
    }


class Stream:
    """Snapshots of one tensor, its rule, and both clocks (the sampler's time, the step index).

    ``history`` snapshots are kept, or as many as the rule reads; ``least``: of those, as many as somebody else needs.
    ``corrected``: one more than the rule reads, since its weights are looked at when the next value has arrived.
    """

    def __init__(
        self, rule: Rule, history: int, batch_dim: int | None, guard: float | None, least: int = 0,
        corrected: bool = False,
    ) -> None:  # fmt: skip
        self.rule, self.guard = rule, guard
        self.snapshots = Snapshots(min(history, max(rule.window + corrected, least)), batch_dim)
        self.indices: list[int] = []
        self.dropped: int | None = None  # index of the snapshot that gave way to the newest one
        self.gap: list[tuple[int, Array]] = []  # steps that were forecast since the newest snapshot, and their weights
        self.closed: list[tuple[int, Array]] = []  # those before it
        self._times, self._steps = np.zeros(0), np.zeros(0)  # of the window, as time and as step index

    def _served(self, index: int, time: float) -> list[Served]:
        """Weights per item; one entry serves all items if the rule does not look at the Gram matrix.

        Where it only chooses by it, items with the same choice are served together.
        """
        served: list[Served] = []
        shared: dict[int, Served] = {}  # by the choice, an object of the rule that makes it
        for gram in self.snapshots.gram if self.rule.uses_gram else self.snapshots.gram[:1]:
            rule = self.rule.chosen(self._steps if self.rule.clock == "index" else self._times, gram)
            if (each := shared.get(id(rule))) is None:
                each = serve(rule, self._times, time, gram, self.guard, (self._steps, float(index)))
                if not rule.uses_gram:
                    shared[id(rule)] = each
            served.append(each)
        return served

    def push(self, index: int, time: float, value: torch.Tensor, row: Array) -> None:
        """Take a computed value as the newest snapshot; ``row`` is ``snapshots.products(value)``."""
        self.closed, self.gap = self.gap, []
        self.snapshots.push(time, value, row)
        self.dropped = self.indices[0] if len(self.indices) == self.snapshots.capacity else None
        self.indices = [*self.indices, index][-self.snapshots.capacity :]
        self._times, self._steps = np.array(self.snapshots.times), np.array(self.indices, dtype=np.float64)

    def audit(self, index: int, time: float, row: Array) -> Audit | None:
        """Score the forecast of a computed value, given by its products, before it is pushed; changes nothing."""
        if not len(self.snapshots):
            return None
        gram = self.snapshots.gram
        weights = np.stack([s.weights for s in self._served(index, time)])
        error, reuse = (
            residual(gram, row, np.broadcast_to(w, gram.shape[:2])) for w in (weights, np.eye(gram.shape[1])[-1:])
        )
        norm = np.maximum(np.sqrt(row[:, -1]), TINY)
        return Audit(error / norm, error / np.maximum(reuse, ROUNDOFF * norm))

    def forecast(self, index: int, time: float) -> tuple[torch.Tensor, list[Served]]:
        """The forecast value at ``time`` and how it was made."""
        served = self._served(index, time)
        value, served = self.checked(self.snapshots.combine(_weights(served)), served)
        self.gap.append((index, _weights(served)))
        return value, served

    def corrected(self, corrector: Corrector) -> tuple[torch.Tensor, float] | None:
        """The newest snapshot with the gap before it integrated again, and how much was added, relative to it.

        ``None``: nothing was, as where it would be round-off. The snapshot itself becomes the velocity at the corrected
        state. An item of either that overflows stays as it is.
        """
        added = corrector.correction(self.closed, self._steps, self.dropped)
        if added is None:
            return None
        gram = self.snapshots.gram
        used, kept = (np.broadcast_to(each, gram.shape[:2]) for each in added)
        size = np.sqrt(np.maximum(np.einsum("bj,bjk,bk->b", used, gram, used), 0))
        norm = np.maximum(np.sqrt(gram[:, -1, -1]), TINY)
        counts = size > ROUNDOFF * np.maximum(np.abs(used).sum(1), 1) * norm
        if not counts.any():
            return None
        value, served = self._with(counts[:, None] * used)
        done = counts & [each.rule == CORRECTOR for each in served]
        snapshot, remain = self._with(done[:, None] * kept)
        self.snapshots.rewrite(np.stack([each.weights for each in remain]), snapshot)
        return value, float((done * size / norm).max())

    def _with(self, added: Array) -> tuple[torch.Tensor, list[Served]]:
        """The newest snapshot plus a sum of all, weights ``[items, n]``."""
        weights = newest(len(self.snapshots)) + added
        return self.checked(self.snapshots.combine(weights), [Served(each, CORRECTOR) for each in weights])

    def checked(self, value: torch.Tensor, served: list[Served]) -> tuple[torch.Tensor, list[Served]]:
        """``value``, the sum of snapshots that ``served`` says, or the newest snapshot for items of it that overflow.

        Overflow of a half-precision result is excluded by ``max|v^| <= ||w||_1 max ||v_j||`` without touching a tensor;
        only where that bound fails does the host look at the value.
        """
        if max(s.size for s in served) * self.snapshots.largest > torch.finfo(value.dtype).max:
            value, finite = self.mended(value)
            served = fallen(served, finite.cpu().tolist(), f"overflows {value.dtype}")
        return value, served

    def mended(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``value`` with the newest snapshot in place of each item that is not finite, and which are, ``[items]``; the
        host does not wait.
        """
        axis, items = self.snapshots.batch_dim, self.snapshots.items
        if axis is None or value.ndim <= 1:
            finite = torch.isfinite(value).all().view(1)
            return torch.where(finite.view(()), value, self.reuse()), finite
        finite = torch.isfinite(value).movedim(axis, 0).reshape(items, -1).all(1)
        shape = [items if d == axis % value.ndim else 1 for d in range(value.ndim)]
        return torch.where(finite.view(shape), value, self.reuse()), finite

    def reuse(self) -> torch.Tensor:
        """The newest snapshot, exactly."""
        return self.snapshots.combine(np.eye(len(self.snapshots))[-1])


def _weights(served: Sequence[Served]) -> Array:
    """``[n]`` for all items, or ``[items, n]``."""
    return served[0].weights if len(served) == 1 else np.stack([each.weights for each in served])
