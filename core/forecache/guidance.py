"""Adaptive guidance: drop the unconditional call while the guidance difference can be forecast (arXiv:2312.12487)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import tree
from .rules import Linear, Rule
from .schedule import effective_steps
from .snapshots import Snapshots, Unforecastable
from .streams import Stream, products


class AdaptiveGuidance:
    """Decides per step whether the unconditional branch is called, and forecasts it where it is not.

    With ``d = c - u`` and ``v = c + s d`` the unconditional call may be dropped once its own forward error is small,
    ``s ||d - d^|| / ||v|| <= tolerance`` for every item and leaf at the last step where both branches ran. The
    published test, ``cos(c, u) >= cosine``, ignores s (cos = .94 still allows ``||d|| = .34 ||c||``) and is used only
    if asked for. The first ``warmup`` and the last effective step always call both branches; so does every
    ``refresh``-th step after a full one, because an error test that is never repeated cannot fail.

    ::

        c = model(x, cond)
        if guidance.needs_uncond(i, c):
            u = model(x, uncond)
            guidance.observe(i, c, u)
        else:
            u = guidance.uncond(i, c)

    A ``cond`` of another structure, shape, dtype or device than before, and a difference that is not finite or of a
    kind that has no weighted sum, begin anew: both branches are called until there is a difference to forecast from.
    ``notes`` says so.

    Args:
        times: the N + 1 grid times.
        scale: ``s`` in ``v = c + s (c - u)``.
        tolerance: of the error test.
        cosine: threshold of the published test, replaces the error test.
        batch_dim: axis of independent items; all must pass.
        rule: forecasts ``d``; by default a straight line through the last two.
        history: snapshots of ``d`` kept.

    Attributes:
        saved: unconditional calls dropped. errors: by full step, the largest relative forward error of the guidance
            term. notes: where it began anew, and why.

    Raises:
        ValueError: an argument out of range; branches that differ in structure or shape.
        RuntimeError: :meth:`uncond` before two full steps of its form.
    """

    def __init__(
        self,
        *,
        times: Any,
        scale: float,
        tolerance: float = 0.02,
        cosine: float | None = None,
        warmup: int = 2,
        refresh: int = 4,
        batch_dim: int | None = 0,
        rule: Rule = Linear(1),  # noqa: B008  frozen
        history: int = 2,
    ) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}")
        if cosine is not None and not 0 <= cosine <= 1:
            raise ValueError(f"cosine must lie in [0, 1], got {cosine}")
        if warmup < 2 or refresh < 1:
            raise ValueError(f"warmup must be >= 2 and refresh >= 1, got {warmup} and {refresh}")
        self.times = tuple(float(t) for t in times)
        self._last_effective = max(effective_steps(self.times), default=0)
        self.scale, self.tolerance, self.cosine = float(scale), tolerance, cosine
        self.warmup, self.refresh, self.batch_dim = warmup, refresh, batch_dim
        self.rule, self.history = rule, history
        self.reset()

    def reset(self) -> None:
        """Start a new run."""
        self.saved = 0
        self.errors: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self._forget()

    def _forget(self, note: str = "") -> None:
        """Begin anew: both branches are called again."""
        self._streams: dict[str, Stream] = {}
        self._structure: tree.Structure | None = None
        self._form: list[tuple[Any, ...]] = []  # shape, dtype and device of each leaf of cond
        self._seen: list[int] = []
        self._agrees = False
        if note:
            self.notes.append(note)

    def fits(self, cond: Any = None) -> bool:
        """Whether there are two full steps to forecast from, of the form of ``cond`` if that is given."""
        return len(self._seen) >= 2 and (cond is None or not self._differs(*tree.flatten(cond)))

    def _differs(self, conds: dict[str, torch.Tensor], structure: tree.Structure) -> bool:
        return self._structure is not None and (not tree.same(structure, self._structure) or _form(conds) != self._form)

    def needs_uncond(self, i: int, cond: Any = None) -> bool:
        """Whether step ``i`` calls the unconditional branch; ``cond``: the value of the other one, if it is known."""
        return (
            not self.fits(cond)
            or len(self._seen) < self.warmup
            or i >= self._last_effective
            or i - self._seen[-1] >= self.refresh
            or not self._agrees
        )

    def observe(self, i: int, cond: Any, uncond: Any) -> None:
        """Both branches of step ``i``: score the forecast of ``d``, then keep it."""
        if not 0 <= i < len(self.times) - 1:
            raise ValueError(f"step must be 0..{len(self.times) - 2}, got {i}")
        conds, structure = tree.flatten(cond)
        unconds, theirs = tree.flatten(uncond)
        if not tree.same(structure, theirs):
            raise ValueError(f"branches differ in structure: cond {structure[1]}, uncond {theirs[1]}")
        for name, c in conds.items():
            if c.shape != unconds[name].shape:
                raise ValueError(f"branches differ in shape: {name} {tuple(c.shape)} and {tuple(unconds[name].shape)}")
        differences = {name: c - unconds[name] for name, c in conds.items()}
        if self._differs(conds, structure):
            self._forget(f"step {i}: begins anew, since cond has another form: {_form(conds)}, before {self._form}")
        elif other := [d for name, d in differences.items() if self._seen and self._streams[name].snapshots.differs(d)]:
            self._forget(f"step {i}: begins anew, since cond - uncond is now of {other[0].dtype}")
        elif self._seen and i < self._seen[-1]:
            self._forget(f"step {i}: begins anew, since it comes after step {self._seen[-1]}")
        elif self._seen and self.times[i] == self.times[self._seen[-1]]:
            return  # nothing has moved since
        try:
            self._take(i, conds, unconds, differences)
        except Unforecastable as reason:
            self._forget(f"step {i}: begins anew, since {reason}")
        except BaseException:  # the leaves may not have come equally far
            self._forget()
            raise
        else:
            self._structure, self._form = structure, _form(conds)

    def _take(
        self, i: int, conds: dict[str, torch.Tensor], unconds: dict[str, torch.Tensor],
        differences: dict[str, torch.Tensor],
    ) -> None:  # fmt: skip
        streams = self._streams or {name: Stream(self.rule, self.history, self.batch_dim, None) for name in conds}
        rows = products(streams, differences)
        worst, lowest, s = 0.0, 1.0, self.scale
        for name, c in conds.items():
            row = rows[name]
            audit = streams[name].audit(i, self.times[i], row)
            one = Snapshots(1, self.batch_dim)  # products of c, u and v = c + s d, per item
            one.push(0.0, c.to(differences[name]))
            with_u = one.products(unconds[name].to(differences[name]))
            cc, cu, uu = one.gram[:, 0, 0], with_u[:, 0], with_u[:, 1]
            size = np.sqrt(np.maximum((1 + s) ** 2 * cc - 2 * s * (1 + s) * cu + s * s * uu, 1e-300))
            if audit is not None:
                worst = max(worst, float((s * audit.error * np.sqrt(row[:, -1]) / size).max()))
            else:
                worst = float("inf")
            lowest = min(lowest, float((cu / np.sqrt(np.maximum(cc * uu, 1e-300))).min()))
        for name, d in differences.items():
            streams[name].push(i, self.times[i], d, rows[name])
        self._streams = streams
        self._agrees = worst <= self.tolerance if self.cosine is None else lowest >= self.cosine
        self._seen.append(i)
        self.errors.append((i, worst))

    def uncond(self, i: int, cond: Any) -> Any:
        """``u^ = c - d^`` for step ``i``."""
        conds, structure = tree.flatten(cond)
        if not self.fits(cond):
            raise RuntimeError(f"uncond of step {i} before two full steps of its form: observe() both branches first")
        self.saved += 1
        return tree.unflatten(
            {name: c - self._streams[name].forecast(i, self.times[i])[0] for name, c in conds.items()}, structure
        )


def _form(leaves: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    return [(tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves.values()]
