"""The object that a sampler holds for one run: which steps call the network, and what serves the others."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import schedule, tree
from .basis import make_rule
from .groups import Group, Groups
from .plan import Plan
from .planned import Planner
from .snapshots import MAX_HISTORY
from .streams import Guided, Stream, products
from .trace import Step, Trace

FEW = 5  # calls up to which plain Euler with as many steps may do as well as "auto" (docs/frontier.md)


class Forecaster:
    """Skip network calls in one sampling run.

    ::

        cache = Forecaster(basis="dmd", times=grid, interval=5, warmup=4, history=6)
        for i in range(len(grid) - 1):
            v = cache.step(i, lambda: model(x, grid[i], cond))
            x = scheduler.step(v, grid[i], x)

    Args:
        basis: "auto", "reuse", "linear", "taylor", "hermite", "dmd", "chebyshev", "exponential", or an object with
            ``weights(times, target, gram)``. "auto" (:class:`forecache.basis.Auto`): Lagrange in true
            time, cautious or bold as the run's own snapshots allow, on a schedule that is dense at both ends.
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
        order, sigma: of the rules that have them (see :func:`forecache.basis.make_rule`).
        guard: largest ``||w||_1`` served (``math.inf``: none). Default: the rule's own, 4 but for "auto" (1.75 or 8); 8
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
        span = self.times[0], self.times[-1]
        self.rule = make_rule(basis, span, order, sigma)
        rules = self.groups.rules(self.rule, span)
        for rule in rules.values():
            if history < rule.floor:
                raise ValueError(f"history must be >= {rule.floor} for basis {rule.name!r}, got {history}")
        planned = None if plan is None else plan.computed
        self.computed = schedule.choose(
            self.effective, basis == "auto", interval, warmup, end, calls, computed, planned
        )
        if basis == "auto" and plan is None and computed is None and len(self.computed) <= FEW < len(self.effective):
            self._warn(
                f"auto with {len(self.computed)} of {len(self.effective)} calls: with so few, the sampler with "
                f"{len(self.computed)} steps of its own often does as well; try fewer steps, or a plan"
            )
        self.edges = frozenset(schedule.whole("edges", i) for i in edges)
        if self.edges:
            self.computed = schedule.with_edges(self.computed, self.effective, sorted(self.edges), calls is not None)
        self._planned = plan is not None
        self._planner = Planner(plan, self.effective, self.computed, self.times, self.groups, guard)
        if history < self._planner.longest:
            raise ValueError(
                f"history must be >= {self._planner.longest}, the longest weights of the plan, got {history}"
            )
        # a lambda that held `self` would keep a dropped forecaster for the collector
        of_stream, least = self.groups.of_stream, self._planner.longest
        self._stream: Callable[[str], Stream] = lambda name: Stream(
            rules[of_stream(name)], history, batch_dim, guard, least
        )
        self._wanted, self._moving = frozenset(self.computed), frozenset(self.effective)
        self._streams: dict[str, Stream] = {}
        self._structure: tree.Structure | None = None
        self._kind: tree.Structure | None = None  # of one branch, if guided
        self._shapes: dict[str, torch.Size] = {}
        self._guided = False
        self._last: int | None = None
        self._at_work = threading.Lock()
        self.trace = self._fresh_trace()

    def _warn(self, note: str) -> None:
        warnings.warn(f"forecache: {note}", stacklevel=3)
        self._notes.append(note)

    @property
    def needs_branches(self) -> bool:
        """Whether the plan has weights for ``cond - uncond``: the values of guided steps must then be ``Guided``."""
        return self._planner.needs_branches

    # --- one step ---------------------------------------------------------------------------------------------------
    def step(self, i: int, compute: Callable[[], Any], state: Any = None) -> Any:
        """The value of step ``i``: ``compute()`` where the schedule asks for it, a forecast elsewhere.

        ``compute`` returns a tensor, a structure of tensors, or ``Guided(cond, uncond)``; each leaf is a stream.
        ``Guided(cond, None)``, where guidance is off, ends the history of ``uncond`` and goes on with that of ``cond``.
        A computed value is handed back untouched, unless the plan corrects it (its last one).

        ``state`` is the sampler's x at this step, in the structure of the velocity (of one branch); a plan that has a
        column for it needs it, nothing else reads it.
        """
        if not self.needs_compute(i):
            return self.forecast(i, state)
        with self._alone(f"step {i}"):
            value = compute()
        return self.observe(i, value, state)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """One caller at a time: two runs that share a history would be forecast from one another's values."""
        if not self._at_work.acquire(blocking=False):
            raise RuntimeError(
                f"{what} while this Forecaster is at work in another call, of another thread or of the compute() that "
                "is running; a Forecaster serves one run at a time: give each thread and each nested run its own"
            )
        try:
            yield
        finally:
            self._at_work.release()

    def needs_compute(self, i: int) -> bool:
        """Whether step ``i`` calls the network. The first step asked for always does: there is nothing to reuse."""
        i = self._check(i)
        return not self._streams or (i in self._wanted and not self._still(i))

    def observe(self, i: int, value: Any, state: Any = None) -> Any:
        """Take the computed value of step ``i``; returns what the sampler should use, as :meth:`step` does.

        Raises:
            ValueError: steps out of order; another structure, shape, dtype or device than before; NaN or infinity; a
                plan that needs the state and did not get it, or one of another form. Nothing of the run's state changes
                then.

        Whatever fails later, while the value is stored (out of memory, an interrupt), is handed on and ends the
        history: the leaves may not have come equally far, and the next step computes.
        """
        i = self._check(i)
        with self._alone(f"observe of step {i}"):
            return self._observe(i, value, state)

    def _observe(self, i: int, value: Any, state: Any) -> Any:
        leaves, structure = tree.flatten(value)
        fresh = not self._streams or i in self.edges
        guided = isinstance(value, Guided)
        kind = tree.flatten(value.cond)[1] if guided else structure
        if not fresh and self._kind is not None and (guided != self._guided or not tree.same(kind, self._kind)):
            assert self._structure is not None
            before, now = tree.describe(self._structure), tree.describe(structure)
            other = sorted(set(self._structure[1]) ^ set(structure[1]))
            which = f" ({', '.join(other)})" if other else ""
            raise ValueError(
                f"value changed its structure within a run{which}: {before} before, {now} now; call reset()"
            )
        if guided and value.uncond is not None and not tree.same(tree.flatten(value.uncond)[1], kind):
            raise ValueError("value: the branches of Guided must have one structure")
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        leaves = self.groups.pack(leaves)
        corrected = self._planner.corrects(i)
        if corrected:
            self._planner.check_state(i, state, leaves)
        known = {} if fresh else self._streams
        streams = {name: known.get(name) or self._stream(name) for name in leaves}
        rows = products(streams, leaves, self._planner.taken())
        audits = {name: streams[name].audit(i, self.times[i], rows[name]) for name in leaves}
        error = {name: float(audit.error.max()) for name, audit in audits.items() if audit is not None}
        skill = {name: float(audit.skill.max()) for name, audit in audits.items() if audit is not None}
        entry = Step(i, self.times[i], "computed", forward_error=error, skill=skill)
        try:
            for name, leaf in leaves.items():  # what refuses a value was done above, for every leaf
                streams[name].push(i, self.times[i], leaf, rows[name])
            self._streams, self._structure, self._last = streams, structure, i
            self._kind, self._guided, self._shapes = kind, guided, shapes
            if corrected:
                values = self._planner.correct(i, streams, state, entry)
                value = value if values is None else self._rebuilt(values)
        except BaseException:
            self._free()
            raise
        self.trace.steps.append(entry)
        return value

    def _rebuilt(self, streams: dict[str, torch.Tensor]) -> Any:
        assert self._structure is not None
        return tree.unflatten(self.groups.unpack(streams, self._shapes), self._structure)

    def forecast(self, i: int, state: Any = None) -> Any:
        """The forecast of step ``i``. ``state``: see :meth:`step`.

        Raises:
            RuntimeError: nothing was computed yet.
            ValueError: steps out of order; a plan that needs the state and did not get it, or one of another form.

        Nothing of the run's state changes then.
        """
        i = self._check(i)
        with self._alone(f"forecast of step {i}"):
            return self._forecast(i, state)

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
        self._streams, self._structure, self._kind, self._last = {}, None, None, None

    def __enter__(self) -> Forecaster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(stream.snapshots.nbytes for stream in self._streams.values())
