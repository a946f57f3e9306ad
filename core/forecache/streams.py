"""One stream: the snapshots of one tensor, and the rule that forecasts it. Streams never share a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .corrector import Corrector
from .rules import Rule
from .rules.guard import Served, guarded, with_reuse
from .rules.rule import newest
from .snapshots import Array, Snapshots, bordered, forward_error, norm_of_sum

TINY = 1e-100  # denominator of a zero value: the ratio is huge and finite
ROUNDOFF = 1e-7  # of the norm: errors below it are noise of the Gram matrix, and reuse counts as exact


@dataclass(frozen=True)
class Audit:
    """How far off the forecast of an arriving value would have been, per item."""

    error: Array  #: forward error, relative to the value
    skill: Array  #: forward error divided by that of reuse; below 1 the rule is better than reuse
    size: Array  #: norm of the value


class Stream:
    """Snapshots of one tensor, and its rule.

    Args:
        rule: forecasts the tensor.
        history: most snapshots that are kept; no more are than the rule reads.
        batch_dim: axis of the independent items.
        guard: largest ``||w||_1`` that is served; ``None``: each rule's own.
        least: snapshots that are kept even if the rule reads fewer, as far as ``history`` allows.
        corrected: keep one more than the rule reads. The corrector looks at the weights of a skipped step when the next
            computed value has already arrived.

    Attributes:
        steps: step index of each snapshot, oldest first; ``snapshots.times`` has their times.
    """

    def __init__(
        self, rule: Rule, history: int, batch_dim: int | None, guard: float | None, least: int = 0,
        corrected: bool = False,
    ) -> None:  # fmt: skip
        self.rule, self.guard = rule, guard
        self.snapshots = Snapshots(min(history, max(rule.window + corrected, least)), batch_dim)
        self.steps: Array = np.zeros(0)
        self._dropped: int | None = None  # step of the snapshot that gave way to the newest one
        self._gap: list[tuple[int, Array]] = []  # steps that were forecast since the newest snapshot, and their weights
        self._closed: list[tuple[int, Array]] = []  # the same of the gap before the newest snapshot

    def _weights(self, step: int, time: float) -> list[Served]:
        """Weights for each item; a single entry, for all items, if the rule does not look at the Gram matrix.

        A rule may look at the Gram matrix only to choose another one that does not. Items with the same choice then
        have the same weights, and these are made once.
        """
        found: list[Served] = []
        shared: dict[int, Served] = {}  # by the identity of the chosen rule
        times = np.array(self.snapshots.times)
        for gram in self.snapshots.gram if self.rule.uses_gram else self.snapshots.gram[:1]:
            rule = self.rule.chosen(self.steps if self.rule.clock == "index" else times, gram)
            if (each := shared.get(id(rule))) is None:
                each = guarded(rule, times, time, gram, self.guard, (self.steps, float(step)))
                if not rule.uses_gram:
                    shared[id(rule)] = each
            found.append(each)
        return found

    def push(self, step: int, time: float, value: torch.Tensor, row: Array) -> None:
        """Take a computed value as the newest snapshot; ``row`` is ``snapshots.products(value)``."""
        self._closed, self._gap = self._gap, []
        self.snapshots.push(time, value, row)
        full = len(self.steps) == self.snapshots.capacity
        self._dropped = int(self.steps[0]) if full else None
        self.steps = np.append(self.steps[1:] if full else self.steps, float(step))

    def audit(self, step: int, time: float, row: Array) -> Audit | None:
        """Score the forecast of a computed value, given by its products, before it is pushed; changes nothing."""
        if not len(self.snapshots):
            return None
        gram = bordered(self.snapshots.gram, row)
        weights = np.stack([each.weights for each in self._weights(step, time)])
        error, of_reuse = (forward_error(w, gram) for w in (weights, newest(len(self.snapshots))[None]))
        size = np.maximum(np.sqrt(row[:, -1]), TINY)
        return Audit(error / size, error / np.maximum(of_reuse, ROUNDOFF * size), size)

    def forecast(self, step: int, time: float) -> tuple[torch.Tensor, list[Served]]:
        """The forecast value at ``time`` and how it was made."""
        made = self._weights(step, time)
        value, served = self.checked(self.snapshots.combine(_stacked(made)), made)
        self._gap.append((step, _stacked(served)))
        return value, served

    def corrected(self, corrector: Corrector) -> tuple[torch.Tensor, float] | None:
        """Integrate the gap before the newest snapshot again.

        Returns:
            The value for the sampler, and how much was added to the computed one, relative to it, the largest over the
            items. ``None``: nothing was added, or no more than round-off.

        The snapshot itself becomes the velocity at the corrected state. An item whose correction overflows is left as
        it was.
        """
        added = corrector.correction(self._closed, self.steps, self._dropped)
        if added is None:
            return None
        gram = self.snapshots.gram
        used, kept = (np.broadcast_to(each, gram.shape[:2]) for each in added)
        moved = norm_of_sum(used, gram)
        size = np.maximum(np.sqrt(gram[:, -1, -1]), TINY)
        counts = moved > ROUNDOFF * np.maximum(np.abs(used).sum(1), 1) * size
        if not counts.any():
            return None
        value, finite = self._plus(counts[:, None] * used)
        done = counts & finite
        weights = done[:, None] * kept
        snapshot, finite = self._plus(weights)
        self.snapshots.rewrite(newest(len(self.snapshots)) + finite[:, None] * weights, snapshot)
        return value, float((done * moved / size).max())

    def _plus(self, added: Array) -> tuple[torch.Tensor, Array]:
        """The newest snapshot plus a sum of all, weights ``[items, n]``; which items are finite, the others being the
        newest snapshot alone.
        """
        weights = newest(len(self.snapshots)) + added
        value, finite = self._within_range(self.snapshots.combine(weights), float(np.abs(weights).sum(1).max()))
        return value, np.ones(len(weights), dtype=bool) if finite is None else np.array(finite)

    def checked(self, value: torch.Tensor, served: list[Served]) -> tuple[torch.Tensor, list[Served]]:
        """The sum that ``served`` describes, with the newest snapshot in place of each item that overflows."""
        value, finite = self._within_range(value, max(each.size for each in served))
        return value, served if finite is None else with_reuse(served, finite, f"overflows {value.dtype}")

    def _within_range(self, value: torch.Tensor, size: float) -> tuple[torch.Tensor, list[bool] | None]:
        """A sum of snapshots with ``||w||_1 <= size``, with the newest snapshot in place of each item that overflows;
        which items are finite (``None``: all are, and the host did not have to look).

        Overflow of a half-precision sum is excluded by ``max|v^| <= ||w||_1 max ||v_j||`` without touching a tensor;
        only where that bound exceeds the range of the dtype does the host look at the value.
        """
        if not size * self.snapshots.largest > torch.finfo(value.dtype).max:
            return value, None
        value, finite = self.mended(value)
        return value, finite.cpu().tolist()

    def mended(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``value`` with the newest snapshot in place of each item that is not finite, and which items are finite,
        ``[items]``. The host does not wait for the device.
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
        return self.snapshots.combine(newest(len(self.snapshots)))


def _stacked(served: Sequence[Served]) -> Array:
    """Weights ``[n]`` for all items, or ``[items, n]``."""
    return served[0].weights if len(served) == 1 else np.stack([each.weights for each in served])
