"""Adaptive guidance: drop the unconditional call while the guidance difference can be forecast (arXiv:2312.12487)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import tree
from .history import History, Packed
from .rules import Linear, Rule
from .schedule import effective_steps
from .snapshots import Snapshots, Unforecastable
from .streams import Audit, Stream


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
        rule, history, batch_dim = self.rule, self.history, self.batch_dim
        self._differences = History(lambda name: Stream(rule, history, batch_dim, None))
        self._form: Form | None = None  # of cond, whose difference is kept
        self._full = 0  # steps since then where both branches ran
        self._agrees = False
        if note:
            self.notes.append(note)

    def fits(self, cond: Any = None) -> bool:
        """Whether there are two full steps to forecast from, of the form of ``cond`` if that is given."""
        return self._full >= 2 and (cond is None or not self._differs(self._differences.pack(cond)))

    def _differs(self, cond: Packed) -> bool:
        return self._form is not None and (not self._differences.same_structure(cond) or _form(cond) != self._form)

    def needs_uncond(self, i: int, cond: Any = None) -> bool:
        """Whether step ``i`` calls the unconditional branch; ``cond``: the value of the other one, if it is known."""
        newest = self._differences.step
        return (
            not self.fits(cond)
            or self._full < self.warmup
            or i >= self._last_effective
            or newest is None
            or i - newest >= self.refresh
            or not self._agrees
        )

    def observe(self, i: int, cond: Any, uncond: Any) -> None:
        """Both branches of step ``i``: score the forecast of ``d``, then keep it."""
        if not 0 <= i < len(self.times) - 1:
            raise ValueError(f"step must be 0..{len(self.times) - 2}, got {i}")
        c, u = self._differences.pack(cond), self._differences.pack(uncond)
        if not tree.same(c.structure, u.structure):
            raise ValueError(
                f"branches differ in structure: cond {tree.describe(c.structure)}, uncond {tree.describe(u.structure)}"
            )
        for name, shape in c.shapes.items():
            if shape != u.shapes[name]:
                raise ValueError(f"branches differ in shape: {name} {tuple(shape)} and {tuple(u.shapes[name])}")
        d = c._replace(values={name: value - u.values[name] for name, value in c.values.items()})
        newest = self._differences.step
        if self._differs(c):
            self._forget(f"step {i}: begins anew, since cond has another form: {_form(c)}, before {self._form}")
        elif other := self._differences.differs(d):
            self._forget(f"step {i}: begins anew, since cond - uncond has another form: {other}")
        elif newest is not None and i < newest:
            self._forget(f"step {i}: begins anew, since it comes after step {newest}")
        elif self.times[i] == self._differences.time:
            return  # nothing has moved since
        try:
            audits = self._differences.observe(i, self.times[i], d)
            self._judge(i, c, u, d, audits)
        except Unforecastable as reason:
            self._forget(f"step {i}: begins anew, since {reason}")
        except BaseException:  # it may not have been judged
            self._forget()
            raise
        else:
            self._form = _form(c)

    def _judge(self, i: int, c: Packed, u: Packed, d: Packed, audits: Mapping[str, Audit]) -> None:
        """Whether the unconditional call may be dropped after step ``i``; notes the error of the guidance term."""
        worst, lowest, s = 0.0, 1.0, self.scale
        for name, difference in d.values.items():
            one = Snapshots(1, self.batch_dim)  # products of c, u and v = c + s d, per item
            one.push(0.0, c.values[name].to(difference))
            with_u = one.products(u.values[name].to(difference))
            cc, cu, uu = one.gram[:, 0, 0], with_u[:, 0], with_u[:, 1]
            size = np.sqrt(np.maximum((1 + s) ** 2 * cc - 2 * s * (1 + s) * cu + s * s * uu, 1e-300))
            audit = audits.get(name)
            worst = max(worst, float("inf") if audit is None else float((s * audit.error * audit.size / size).max()))
            lowest = min(lowest, float((cu / np.sqrt(np.maximum(cc * uu, 1e-300))).min()))
        self._agrees = worst <= self.tolerance if self.cosine is None else lowest >= self.cosine
        self._full += 1
        self.errors.append((i, worst))

    def uncond(self, i: int, cond: Any) -> Any:
        """``u^ = c - d^`` for step ``i``."""
        c = self._differences.pack(cond)
        if self._full < 2 or self._differs(c):
            raise RuntimeError(f"uncond of step {i} before two full steps of its form: observe() both branches first")
        self.saved += 1
        d = self._differences.forecast(i, self.times[i])
        return self._differences.unpack({name: value - d[name] for name, value in c.values.items()})


Form = list[tuple[Any, ...]]  #: shape, dtype and device of each tensor


def _form(packed: Packed) -> Form:
    return [(tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in packed.values.values()]
