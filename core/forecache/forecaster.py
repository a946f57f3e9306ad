"""What a sampler holds for one run: a history, a schedule, and a rule or a plan for the steps that it skips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import rates, schedule, tree
from .corrector import ORDER, Corrector, corrector_of_run
from .groups import Group, Groups
from .history import History
from .plan import Plan, plan_of_run
from .planned import Planner, agreed
from .rules import Auto, make_rule
from .schedule import few_calls
from .snapshots import Unforecastable
from .streams import Stream
from .trace import Step, Trace
from .turns import Turns


class Forecaster:
    """Skips network calls in one sampling run; :mod:`forecache` shows the loop.

    Args:
        basis: the rule that forecasts: "auto", "reuse", "linear", "taylor", "hermite", "dmd", "chebyshev",
            "exponential", or an object with ``weights(times, target, gram)``. "auto" (:class:`forecache.rules.Auto`)
            serves a line or a parabola, whichever would have done better in this run so far, with the corrector, on a
            schedule that is a little denser at both ends.
        times: the N + 1 times (t or sigma) that the sampler visits, in order.
        steps: short for ``range(N + 1)``.
        interval, warmup, end: HiCache's schedule: compute the first ``warmup`` steps, every ``interval``-th, and all
            from ``end`` on. With "auto" they only set the number of calls.
        calls: an exact number of network calls, spread evenly ("auto": denser at both ends); instead of ``interval``.
        computed: the computed steps themselves; instead of both.
        plan: a :class:`Plan` or its file; instead of all of these.
        strict: refuse a plan that was made for something else. False: warn, and use ``basis`` with as many calls.
        edges: first steps after an edge of a guidance interval or of a stage, where a combined velocity jumps. They are
            computed and begin a new history, so nothing is extrapolated across (the value may change its structure).
        history: snapshots kept per stream, at most 8.
        groups: leaves of a structured velocity that are forecast together, by name of the group:
            ``{"pose": ("rotation", "scale")}``, or with a rule of their own,
            ``{"pose": Group(("rotation", "scale"), basis="linear")}``. Any other leaf has its own history. A plan
            brings its own groups.
        batch_dim: axis of independent items, each with its own weights; ``None``: the value is one item.
        corrector: when a computed value arrives, integrate the skipped steps before it again and add the difference to
            what ``step`` returns (:class:`forecache.Corrector`). It is for samplers that add a multiple of each
            velocity to the state, as Euler's method does: ``True`` where that is ``times[i + 1] - times[i]``, else a
            :class:`forecache.Corrector`. Default: on with "auto" or an ``Auto``, ``times`` and no plan.
        order, sigma: of the rules that have them (see :func:`forecache.rules.make_rule`).
        guard: largest ``||w||_1`` served (``math.inf``: none). Default: the rule's own, 4 ("auto": 8), and 8 for what a
            plan adds to the velocity's weights.
        made_for: what this run is (model hash, guidance, ...), compared with a plan's key.

    Raises:
        ValueError: an argument out of its range or in conflict with another; a plan made for something else.
        TypeError: an argument of another kind.
        OSError: a plan's file that cannot be read.
        RuntimeError: by every method, where another one of the same object is at work: in another thread, which needs a
            forecaster of its own, or around this one (a ``compute`` that asks the cache it is asked by).
    """

    def __init__(
        self,
        basis: str | Any = "auto",
        *,
        times: Sequence[float] | None = None,
        steps: int | None = None,
        interval: int | None = None,
        warmup: int | None = None,
        end: int | None = None,
        calls: int | None = None,
        computed: Sequence[int] | None = None,
        plan: Plan | str | Path | None = None,
        strict: bool = True,
        edges: Sequence[int] = (),
        history: int = 6,
        groups: Mapping[str, Group | Sequence[str]] | None = None,
        batch_dim: int | None = 0,
        order: int | None = None,
        sigma: float | None = None,
        guard: float | None = None,
        corrector: bool | Corrector | None = None,
        made_for: Mapping[str, Any] | None = None,
    ) -> None:
        self.times = schedule.grid(times, steps)
        numbers = {"interval": interval, "warmup": warmup, "end": end, "calls": calls, "batch_dim": batch_dim}
        for name, number in {**numbers, "history": history}.items():
            if number is not None or name == "history":
                schedule.whole(name, number)
        self.effective = schedule.effective_steps(self.times)
        self._notes: list[str] = []
        others = interval, calls, computed
        plan, refused, as_many = plan_of_run(plan, self.times, dict(made_for or {}), strict, others)
        if refused:
            calls = min(as_many, max(len(self.effective), 1))
        self._warn(refused)
        edges, leaves = agreed(plan, edges, groups)
        self.groups = Groups(leaves, batch_dim)
        span = 0.0, float(len(self.times) - 1)
        self.rule = make_rule(basis, span, order, sigma)
        rules = self.groups.rules(self.rule, span, history)
        steps_of_plan = None if plan is None else plan.computed
        self.computed = schedule.choose(
            self.effective, basis == "auto", interval, warmup, end, calls, computed, steps_of_plan
        )
        if plan is None and computed is None:
            self._warn(few_calls(basis, len(self.computed), len(self.effective)))
        self.edges = frozenset(schedule.whole("edges", i) for i in edges)
        if self.edges:
            self.computed = schedule.with_edges(self.computed, self.effective, sorted(self.edges), calls is not None)
        self._planner = Planner(plan, self.effective, self.computed, self.times, self.groups, guard, history)
        if corrector is None:
            corrector = isinstance(self.rule, Auto) and times is not None
        self.corrector = None if plan is not None else corrector_of_run(corrector, self.times)
        self._rates = None if self.corrector is None else self.corrector.rates
        corrected = self.corrector is not None
        least = ORDER + 1 if corrected else self._planner.longest
        of_stream = self.groups.of_stream  # a lambda that held `self` would keep a dropped forecaster alive
        self.history = History(
            lambda name: Stream(rules[of_stream(name)], history, batch_dim, guard, least, corrected), self.groups
        )
        self._every = plan is not None  # whether no step may be left out
        self._wanted, self._moving = frozenset(self.computed), frozenset(self.effective)
        self._kind: dict[str, Any] = {}  # of the calls that the history comes from
        self._last: int | None = None
        self._alone = Turns()  # two runs that share a history would be forecast from one another's values
        self.trace = Trace(self._notes)

    def _warn(self, note: str) -> None:
        if note:
            warnings.warn(f"forecache: {note}", stacklevel=3)
            self._notes.append(note)

    @property
    def needs_branches(self) -> bool:
        """Whether the plan has weights for ``cond - uncond``: the values of guided steps must then be ``Guided``."""
        return self._planner.needs_branches

    # --- one step ---------------------------------------------------------------------------------------------------
    def step(self, i: int, compute: Callable[[], Any], state: Any = None, kind: Mapping[str, Any] | None = None) -> Any:
        """The value of step ``i``: ``compute()`` where the schedule asks for it, a forecast elsewhere.

        ``compute`` returns a tensor, a structure of tensors, or ``Guided(cond, uncond)``; each leaf is a stream.
        ``Guided(cond, None)``, where guidance is off, ends the history of ``uncond`` and goes on with that of ``cond``.
        A computed value is handed back untouched, unless the plan corrects it (its last one) or ``corrector`` is on and
        steps were skipped before it.

        ``state`` is the sampler's x at this step, in the structure of the velocity (of one branch). A plan that has a
        column for it needs it, and so does a corrector with rates. ``kind`` and the form of the state are compared with
        those of the history: see :meth:`match`.
        """
        self.match({**(kind or {}), **({} if state is None else {"state": tree.form(state)})})
        if not self.needs_compute(i):
            return self.forecast(i, state)
        with self._alone(f"step {i}"):
            value = compute()
        return self.observe(i, value, state)

    def match(self, kind: Mapping[str, Any]) -> None:
        """Say what kind of call the next step is, such as ``{"batch": 2, "controlnet": True}``.

        A history of another kind ends here: the step is computed and begins a new one. What is not named, in this call
        or before, is not compared.
        """
        with self._alone("match"):
            if other := [name for name, what in kind.items() if self._kind.get(name, what) != what]:
                self._begin_anew(f"another {', another '.join(other)}")
            self._kind = {**self._kind, **kind}

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network. Without a history it always does: there is nothing to reuse."""
        i = schedule.check_order(i, self._last, self.times, self._every)
        return not self.history.streams or (i in self._wanted and not self._is_still(i))

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        """Take the computed value of step ``i``; returns what the sampler should use, as :meth:`step` does.

        A value of another form (structure, shape, dtype, device) than before begins a new history. A value that no
        forecast can be made from (NaN, infinity, no floating-point numbers, no memory for a snapshot) is handed back,
        the history ends, and the next step computes. ``trace.notes`` says so.

        Raises:
            ValueError: steps out of order; branches of a ``Guided`` that differ in structure; groups that do not fit; a
                state that is needed and missing or of another form. Nothing of the run's state changes then.

        If anything else fails while the value is stored, such as by an interrupt, the error is raised again and the
        history ends; the next step computes.
        """
        i = schedule.check_order(i, self._last, self.times, self._every)
        with self._alone(f"observe of step {i}"):
            if self._rates is None:
                return self._observe(i, value, state)
            velocity = rates.velocity(self._rates[i], value, state)
            used = self._observe(i, velocity, state)
            self._kind["state"] = tree.form(state)
            return value if used is velocity else rates.output(self._rates[i], used, state)

    def _observe(self, i: int, value: Any, state: Any) -> Any:
        packed, history = self.history.pack(value), self.history
        if torch.is_grad_enabled() and any(each.requires_grad for each in packed.values.values()):
            self.trace.note("gradients end at forecast steps: a forecast is made of snapshots, which have no graph")
        if i not in self.edges and (other := history.differs(packed)):
            self._begin_anew(other)
        corrects = self._planner.corrects(i)
        if corrects:
            self._planner.check_state(i, state, packed.values)
        if i in self.edges:
            history.clear()
        entry = Step(i, self.times[i], "computed")
        try:
            for name, audit in history.observe(i, self.times[i], packed, asked=self._planner.taken()).items():
                entry.forward_error[name], entry.skill[name] = float(audit.error.max()), float(audit.skill.max())
            if corrects:
                values = self._planner.correct(i, history.streams, state, entry)
            else:
                values = None if self.corrector is None else history.corrected(self.corrector, entry)
            value = value if values is None else history.unpack(values)
        except (Unforecastable, torch.cuda.OutOfMemoryError) as reason:
            history.clear()
            self.trace.note(f"step {i}: the history ends, since its value can be no snapshot: {reason}")
        except BaseException:
            if history.step in (None, i):  # the value was stored, in whole or in part
                self._free()
            raise
        self._last = i
        self.trace.steps.append(entry)
        return value

    def _begin_anew(self, why: str) -> None:
        """End the history within the run: what comes is of another kind."""
        if self.history.streams:
            self.trace.note(f"step {0 if self._last is None else self._last + 1}: a new history begins: {why}")
        self.history.clear()

    def forecast(self, i: int, state: Any = None) -> Any:
        """The forecast of step ``i``. ``state``: see :meth:`step`.

        Raises:
            RuntimeError: nothing was computed yet.
            ValueError: steps out of order; a state that is needed and missing or of another form. Nothing of the run's
                state changes then.
        """
        i = schedule.check_order(i, self._last, self.times, self._every)
        with self._alone(f"forecast of step {i}"):
            if self._rates is None:
                return self._forecast(i, state)
            known = self._kind.get("state")
            if self.history.streams and tree.form(state) != known:
                raise ValueError(f"state of step {i} must have the form {known}, got {tree.form(state)}")
            return rates.output(self._rates[i], self._forecast(i, state), state)

    def _forecast(self, i: int, state: Any) -> Any:
        if not self.history.streams:
            raise RuntimeError(f"forecast of step {i} before any snapshot: observe() a computed value first")
        if self._is_still(i):
            entry, values = Step(i, self.times[i], "still"), self.history.newest()
        else:
            entry = Step(i, self.times[i], "forecast")
            values = self._planner.forecast(i, self.history.streams, state, entry)
        value = self.history.unpack(values)
        self._last = i
        self.trace.steps.append(entry)
        return value

    def _is_still(self, i: int) -> bool:
        """Nothing moves in step ``i``, or nothing has moved since the newest snapshot: it is the value of the step."""
        return i not in self._moving or self.times[i] == self.history.time

    # --- the run ----------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """Start a new run: no snapshot, an empty trace. The last run's trace object stays with whoever holds it."""
        self.close()
        self.trace = Trace(self._notes)

    def close(self) -> None:
        """Free every snapshot. The trace stays."""
        with self._alone("close() or reset()"):
            self._planner.settle()
            self._free()

    def _free(self) -> None:
        self.history.clear()
        self._kind, self._last = {}, None

    def __enter__(self) -> Forecaster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return self.history.nbytes
