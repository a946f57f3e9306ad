"""The object that a sampler holds for one run: which steps call the network, and what serves the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import rates, schedule, tree
from .corrector import ORDER, Corrector
from .groups import Group, Groups
from .plan import Plan
from .planned import Planner
from .rules import Auto, make_rule
from .snapshots import MAX_HISTORY, Unforecastable
from .streams import Guided, Stream, products
from .trace import Step, Trace
from .turns import Turn, Turns

FEW = 5  # calls up to which plain Euler with as many steps may do as well as "auto" (docs/frontier.md)


def few_calls(basis: Any, calls: int, steps: int) -> str:
    """A warning where ``basis`` is "auto" and the sampler itself may do as well with as many steps; "": none is due."""
    if basis != "auto" or not calls <= FEW < steps:
        return ""
    return (
        f"auto with {calls} of {steps} calls: with so few, the sampler with {calls} steps of its own often does as "
        "well; try fewer steps, or a plan"
    )


class Forecaster:
    """Skip network calls in one sampling run.

    ::

        cache = Forecaster(basis="dmd", times=grid, interval=5, warmup=4, history=6)
        for i in range(len(grid) - 1):
            v = cache.step(i, lambda: model(x, grid[i], cond))
            x = scheduler.step(v, grid[i], x)

    Args:
        basis: "auto", "reuse", "linear", "taylor", "hermite", "dmd", "chebyshev", "exponential", or an object with
            ``weights(times, target, gram)``. "auto" (:class:`forecache.rules.Auto`): a line or a parabola
            as the run's own snapshots speak for, with the corrector, on a schedule that is a little denser at both
            ends.
        times: the N + 1 times (t or sigma) that the sampler visits, in order.
        steps: short for ``range(N + 1)``.
        interval, warmup, end: HiCache's schedule (compute the first ``warmup`` steps, every ``interval``-th, and all
            from ``end`` on). With "auto" they set the budget only.
        calls: an exact number of network calls, spread evenly ("auto": denser at both ends); instead of ``interval``.
        computed: the computed steps themselves; instead of both.
        plan: a :class:`Plan` or its file; instead of all.
        strict: refuse a plan that was made for something else. False: warn, and serve the
            calibration-free ``basis`` with as many calls instead.
        edges: first steps after an edge of a guidance interval or a stage, where a combined velocity jumps: they are
            computed and start a new history, so nothing is extrapolated across (the value may change its structure).
        history: snapshots kept per stream, at most 8.
        groups: leaves of a structured velocity that are forecast together, by name:
            ``{"pose": ("rotation", "scale")}``, or with a rule of their own,
            ``{"pose": Group(("rotation", "scale"), basis="linear")}``. Any other leaf has its own history. A plan
            brings its own.
        batch_dim: axis of independent items, each with its own weights; ``None``: the value is one item.
        corrector: when a computed value arrives, integrate the gap behind it again and add the difference to what
            ``step`` returns (:class:`forecache.Corrector`). For samplers that add a multiple of each velocity to the
            state, as Euler's method does: ``True`` where that is ``times[i + 1] - times[i]``, else a
            :class:`forecache.Corrector`, whose ``rates`` say what is forecast where the state moves by something else
            than the network puts out. On by default with "auto" or an ``Auto`` where ``times`` are given, without a
            plan.
        order, sigma: of the rules that have them (see :func:`forecache.rules.make_rule`).
        guard: largest ``||w||_1`` served (``math.inf``: none). Default: the rule's own, 4 ("auto": 8); 8
            for what a plan adds to the velocity's weights.
        made_for: what this run is (model hash, guidance, ...), compared with a plan's key.

    One run at a time: a sampler in another thread needs a forecaster of its own.

    Raises:
        ValueError: an argument out of its range or in conflict with another; a plan made for something else.
        TypeError: an argument of another kind.
        OSError: a plan's file that cannot be read.
        RuntimeError: by every method, where another of the same object is at work, in another thread or around this one
            (a ``compute`` that asks the cache it is asked by).
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
        if (times is None) == (steps is None):
            raise ValueError("give either times (N + 1 grid times) or steps (N), not both and not neither")
        counts = {"steps": steps, "interval": interval, "warmup": warmup, "end": end, "calls": calls}
        for name, number in {**counts, "history": history, "batch_dim": batch_dim}.items():
            if number is not None or name == "history":
                schedule.whole(name, number)
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        self.times = tuple(float(t) for t in (times if times is not None else range((steps or 0) + 1)))
        self.effective = schedule.effective_steps(self.times)
        if guard is not None and not guard >= 1:
            raise ValueError(f"guard must be >= 1 (the norm of reuse), got {guard}")
        if not 1 <= history <= MAX_HISTORY:
            raise ValueError(f"history must be 1..{MAX_HISTORY}, got {history}")
        if isinstance(plan, (str, Path)):
            plan = Plan.load(plan)
        if plan is not None and not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan or the path of its file, got {plan!r}")
        self._notes: list[str] = []
        if plan is not None and not strict and (differences := plan.differences(self.times, dict(made_for or {}))):
            if any(value is not None for value in (interval, calls, computed)):
                raise ValueError("give one of interval, calls, computed, plan; got plan and another")
            self._warn(f"plan not used, it was made for something else: {'; '.join(differences)}")
            calls, plan = min(len(plan.computed), max(len(self.effective), 1)), None
        if plan is not None:
            plan.check(self.times, dict(made_for or {}))
            if edges and tuple(sorted(edges)) != plan.edges:
                raise ValueError(f"edges must be the plan's {list(plan.edges)}, got {list(edges)}")
            edges = plan.edges
        if plan is not None and plan.groups:
            theirs = {name: each.leaves for name, each in plan.groups.items()}
            if groups and {name: each.leaves for name, each in Groups(groups, None).groups.items()} != theirs:
                raise ValueError(f"groups must be the plan's {theirs}, got {dict(groups)}")
            groups = groups or theirs
        self.groups = Groups(groups or {}, batch_dim)
        span = 0.0, float(len(self.times) - 1)
        self.rule = make_rule(basis, span, order, sigma)
        rules = self.groups.rules(self.rule, span)
        for rule in rules.values():
            if history < rule.floor:
                raise ValueError(f"history must be >= {rule.floor} for basis {rule.name!r}, got {history}")
        planned = None if plan is None else plan.computed
        self.computed = schedule.choose(
            self.effective, basis == "auto", interval, warmup, end, calls, computed, planned
        )
        few = few_calls(basis, len(self.computed), len(self.effective))
        if plan is None and computed is None and few:
            self._warn(few)
        self.edges = frozenset(schedule.whole("edges", i) for i in edges)
        if self.edges:
            self.computed = schedule.with_edges(self.computed, self.effective, sorted(self.edges), calls is not None)
        self._planned = plan is not None
        self._planner = Planner(plan, self.effective, self.computed, self.times, self.groups, guard)
        if history < self._planner.longest:
            raise ValueError(
                f"history must be >= {self._planner.longest}, the longest weights of the plan, got {history}"
            )
        if corrector is None:
            corrector = isinstance(self.rule, Auto) and times is not None
        self.corrector = Corrector(self.times) if corrector is True else corrector or None
        if plan is not None:  # it has corrections of its own
            self.corrector = None
        elif self.corrector is not None and len(self.corrector.positions) != len(self.times):
            raise ValueError(
                f"corrector: it must have {len(self.times)} positions, as many as times, got "
                f"{len(self.corrector.positions)}"
            )
        self._rates = None if self.corrector is None else self.corrector.rates
        # a lambda that held `self` would keep a dropped forecaster for the collector
        of_stream, corrected = self.groups.of_stream, self.corrector is not None
        least = ORDER + 1 if corrected else self._planner.longest
        self._stream: Callable[[str], Stream] = lambda name: Stream(
            rules[of_stream(name)], history, batch_dim, guard, least, corrected
        )
        self._wanted, self._moving = frozenset(self.computed), frozenset(self.effective)
        self._streams: dict[str, Stream] = {}
        self._structure: tree.Structure | None = None
        self._branch: tree.Structure | None = None  # of one branch, if guided
        self._form: tuple[Any, ...] = ()  # of the state, where rates ask for it
        self._kind: dict[str, Any] = {}  # of the calls that the history comes from
        self._shapes: dict[str, torch.Size] = {}
        self._last: int | None = None
        self._turns = Turns()
        self.trace = self._fresh_trace()

    def _warn(self, note: str) -> None:
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

        ``state`` is the sampler's x at this step, in the structure of the velocity (of one branch); a plan that has a
        column for it needs it, and a corrector with rates. ``kind``, and the form of the state, are compared with those
        of the history: see :meth:`match`.
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

    def _alone(self, what: str) -> Turn:
        """One caller at a time: two runs that share a history would be forecast from one another's values."""
        return Turn(self._turns, what)

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network. Without a history it always does: there is nothing to reuse."""
        i = self._check(i)
        return not self._streams or (i in self._wanted and not self._still(i))

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        """Take the computed value of step ``i``; returns what the sampler should use, as :meth:`step` does.

        A value of another form (structure, shape, dtype, device) than before begins a new history. A value that no
        forecast can be made from (NaN, infinity, no floating-point numbers, no memory for a snapshot) is handed back,
        the history ends, and the next step computes. ``trace.notes`` says so.

        Raises:
            ValueError: steps out of order; branches of a ``Guided`` that differ in structure; groups that do not fit; a
                plan that needs the state and did not get it, or one of another form. Nothing of the run's state changes
                then.

        Whatever fails later, while the value is stored (an interrupt), is handed on and ends the history: the leaves
        may not have come equally far, and the next step computes.
        """
        i = self._check(i)
        with self._alone(f"observe of step {i}"):
            if self._rates is None:
                return self._observe(i, value, state)
            velocity = rates.velocity(self._rates[i], value, state)
            used, self._form = self._observe(i, velocity, state), tree.form(state)
            return value if used is velocity else rates.output(self._rates[i], used, state)

    def _observe(self, i: int, value: Any, state: Any) -> Any:
        leaves, structure = tree.flatten(value)
        branch = tree.flatten(value.cond)[1] if isinstance(value, Guided) else structure
        both = isinstance(value, Guided) and value.uncond is not None
        if both and not tree.same(tree.flatten(value.uncond)[1], branch):
            raise ValueError("value: the branches of Guided must have one structure")
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves.values()):
            self._note("gradients end at forecast steps: a forecast is made of snapshots, which have no graph")
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        leaves = self.groups.pack(leaves)
        if self._streams and i not in self.edges and (other := self._changed(leaves, structure, branch)):
            self._begin_anew(other)
        corrected = self._planner.corrects(i)
        if corrected:
            self._planner.check_state(i, state, leaves)
        known = {} if i in self.edges else self._streams
        streams = {name: known.get(name) or self._stream(name) for name in leaves}
        entry, storing = Step(i, self.times[i], "computed"), False
        try:
            rows = products(streams, leaves, self._planner.taken())
            for name, stream in streams.items():
                if (audit := stream.audit(i, self.times[i], rows[name])) is not None:
                    entry.forward_error[name] = float(audit.error.max())
                    entry.skill[name] = float(audit.skill.max())
            storing = True
            for name, leaf in leaves.items():
                streams[name].push(i, self.times[i], leaf, rows[name])
            self._streams, self._structure, self._branch, self._shapes = streams, structure, branch, shapes
            if corrected:
                values = self._planner.correct(i, streams, state, entry)
                value = value if values is None else self._rebuilt(values)
            elif self.corrector is not None:
                value = self._corrected(value, entry)
        except (Unforecastable, torch.cuda.OutOfMemoryError) as reason:
            self._streams = {}
            self._note(f"step {i}: the history ends, since its value can be no snapshot: {reason}")
        except BaseException:
            if storing:
                self._free()
            raise
        self._last = i
        self.trace.steps.append(entry)
        return value

    def _corrected(self, value: Any, entry: Step) -> Any:
        """``value`` with the gap before it integrated again."""
        assert self.corrector is not None
        found = {name: stream.corrected(self.corrector) for name, stream in self._streams.items()}
        if all(each is None for each in found.values()):
            return value
        entry.corrected.update({name: each[1] for name, each in found.items() if each is not None})
        return self._rebuilt({n: self._streams[n].reuse() if each is None else each[0] for n, each in found.items()})

    def _changed(self, leaves: Mapping[str, torch.Tensor], structure: tree.Structure, branch: tree.Structure) -> str:
        """In what a value differs from the history, in words; one branch of two may come or go. "": in nothing."""
        assert self._structure is not None and self._branch is not None
        guided, was = structure is not branch, self._structure is not self._branch
        if guided != was or not tree.same(branch, self._branch):
            return f"{tree.describe(self._structure)} before, {tree.describe(structure)} now"
        known = {name: stream.snapshots for name, stream in self._streams.items()}
        return "; ".join(filter(None, (known[name].differs(v, name) for name, v in leaves.items() if name in known)))

    def _begin_anew(self, why: str) -> None:
        """End the history within the run: what comes is of another kind."""
        if self._streams:
            step = 0 if self._last is None else self._last + 1
            self._note(f"step {step}: a new history begins: {why}")
        self._streams = {}

    def _rebuilt(self, streams: dict[str, torch.Tensor]) -> Any:
        assert self._structure is not None
        return tree.unflatten(self.groups.unpack(streams, self._shapes), self._structure)

    def forecast(self, i: int, state: Any = None) -> Any:
        """The forecast of step ``i``. ``state``: see :meth:`step`.

        Raises:
            RuntimeError: nothing was computed yet.
            ValueError: steps out of order; a plan or a corrector that needs the state and did not get it, or one of
                another form.

        Nothing of the run's state changes then.
        """
        i = self._check(i)
        with self._alone(f"forecast of step {i}"):
            if self._rates is None:
                return self._forecast(i, state)
            if self._streams and tree.form(state) != self._form:
                raise ValueError(f"state of step {i} must have the form {self._form}, got {tree.form(state)}")
            return rates.output(self._rates[i], self._forecast(i, state), state)

    def _forecast(self, i: int, state: Any) -> Any:
        if not self._streams:
            raise RuntimeError(f"forecast of step {i} before any snapshot: observe() a computed value first")
        if self._still(i):
            leaves = {name: stream.reuse() for name, stream in self._streams.items()}
            entry = Step(i, self.times[i], "still")
        else:
            entry = Step(i, self.times[i], "forecast")
            leaves = self._planner.forecast(i, self._streams, state, entry)
        value = self._rebuilt(leaves)
        self._last = i
        self.trace.steps.append(entry)
        return value

    def _still(self, i: int) -> bool:
        """Nothing moves in step ``i``, or nothing has moved since the newest snapshot: it is the value of the step."""
        newest = next(iter(self._streams.values())).snapshots.times[-1]
        return i not in self._moving or self.times[i] == newest

    def _check(self, i: int) -> int:
        i = schedule.whole("step", i)  # also a tensor of one integer, which is equal to a step and hashes like none
        if not 0 <= i < len(self.times) - 1:
            raise ValueError(f"step must be 0..{len(self.times) - 2}, got {i}")
        jump = 0 if self._last is None else i - self._last - 1
        if jump < 0 or (jump and self._planned):
            if jump == -1:
                hint = "a solver with several calls a step needs a Forecaster for each"
            else:
                hint = "a plan is asked at every step" if jump > 0 else "reset() starts a run"
            raise ValueError(f"steps out of order: step {i} after step {self._last}; {hint}")
        return i

    # --- the run ----------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """Start a new run: no snapshot, an empty trace. The last run's trace object stays with whoever holds it."""
        self.close()
        self.trace = self._fresh_trace()

    def _note(self, text: str) -> None:
        if text not in self.trace.notes:
            self.trace.notes.append(text)

    def _fresh_trace(self) -> Trace:
        trace = Trace()
        trace.notes.extend(self._notes)
        return trace

    def close(self) -> None:
        """Free every snapshot. The trace stays."""
        with self._alone("close() or reset()"):
            self._planner.settle()
            self._free()

    def _free(self) -> None:
        self._streams, self._structure, self._branch, self._kind, self._last = {}, None, None, {}, None

    def __enter__(self) -> Forecaster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(stream.snapshots.nbytes for stream in self._streams.values())
