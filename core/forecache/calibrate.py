"""Making a plan: record uncached runs, search the schedule, fit the weights in closed loop. No gradients.

The fit marches the *cached* sampler: at a skipped step the target is the velocity that lands on the reference state,
``u = (X_{i+1} - x_i) / h_i``, and the weights of the newest snapshots minimise ``sum_s ||F_s w - u_s||^2 / ||u_s||^2``
over the calibration runs with a ridge toward guarded Lagrange weights and ``sum w = 1``. The sampler must be Euler in
``times`` (``x_{i+1} = x_i + h_i v_i``), as flow-matching samplers are; its states then follow from the velocities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from . import schedule, tree
from .basis import Linear
from .plan import Plan
from .search import search
from .select import GUARD, blend, serve
from .snapshots import Array, products

Progress = Callable[[str, int, int], None]


class Run(Protocol):
    """``run(seed, cache)``: one sampling run that asks ``cache`` at every step and returns the final sample."""

    def __call__(self, seed: int, cache: Any, /) -> Any:
        """Run with the noise and condition of ``seed``."""
        ...


class _Pause(BaseException):
    """Ends a calibration run early; not an ``Exception``, so that no sampler swallows it."""


class _Tape(ABC):
    """What a sampler sees as its cache during calibration: the three calls, and ``step`` on top of them."""

    @abstractmethod
    def needs_compute(self, i: int) -> bool: ...

    @abstractmethod
    def observe(self, i: int, value: Any) -> None: ...

    @abstractmethod
    def forecast(self, i: int) -> Any: ...

    def step(self, i: int, compute: Callable[[], Any]) -> Any:
        """As :meth:`forecache.Forecaster.step`."""
        if self.needs_compute(i):
            value = compute()
            self.observe(i, value)
            return value
        return self.forecast(i)


def _flat(value: Any) -> torch.Tensor:
    """All tensors of a value as one float32 vector on the CPU."""
    leaves, _ = tree.flatten(value)
    return torch.cat([leaf.detach().reshape(-1).float().cpu() for leaf in leaves.values()])


class _Recorder(_Tape):
    """Computes every step that moves the state and keeps the velocities."""

    def __init__(self, times: Array) -> None:
        self.moving = set(schedule.effective_steps(times.tolist()))
        self.values: dict[int, torch.Tensor] = {}
        self._last: Any = None

    def needs_compute(self, i: int) -> bool:
        return i in self.moving

    def observe(self, i: int, value: Any) -> None:
        self.values[i], self._last = _flat(value), value

    def forecast(self, i: int) -> Any:
        return self._last


class _March(_Tape):
    """One calibration run of the cached sampler, resumed from what it already computed.

    Anchors are computed once and replayed afterwards; at an anchor that is not known yet the run computes it and
    pauses.
    """

    def __init__(self, computed: Sequence[int]) -> None:
        self.computed = set(computed)
        self.values: dict[int, Any] = {}  # anchors, as the sampler gave them
        self.weights: dict[int, dict[int, float]] = {}  # skipped step -> anchor -> weight

    def needs_compute(self, i: int) -> bool:
        return i in self.computed and i not in self.values

    def observe(self, i: int, value: Any) -> None:
        leaves, structure = tree.flatten(value)
        self.values[i] = tree.unflatten({k: v.detach().clone() for k, v in leaves.items()}, structure)
        raise _Pause

    def forecast(self, i: int) -> Any:
        if i in self.values:
            return self.values[i]
        newest_anchor = max(k for k in self.values if k < i)
        weights = self.weights.get(i, {newest_anchor: 1.0})  # none where dt = 0
        parts = [tree.flatten(self.values[k]) for k in weights]
        leaves = {}
        for name, newest in parts[-1][0].items():
            window = torch.stack([part[0][name].float() for part in parts], -1)
            leaves[name] = (window @ torch.tensor(list(weights.values())).to(window)).to(newest.dtype)
        return tree.unflatten(leaves, parts[-1][1])


def record(run: Run, times: Array, seed: int) -> tuple[dict[int, torch.Tensor], Array]:
    """Velocities of one uncached run by step, and their ``[N, N]`` Gram matrix (zero rows where dt = 0)."""
    tape = _Recorder(times)
    run(seed, tape)
    missing = tape.moving - tape.values.keys()
    if missing:
        raise RuntimeError(f"run({seed}, cache) did not ask the cache at steps {sorted(missing)}")
    gram = np.zeros((len(times) - 1,) * 2)
    steps = sorted(tape.values)
    for k, i in enumerate(steps):
        window = torch.stack([tape.values[j] for j in steps[: k + 1]])[None]
        gram[i, steps[: k + 1]] = gram[steps[: k + 1], i] = products(window, tape.values[i][None])[0, :-1]
    return tape.values, gram


def positions(values: Mapping[int, torch.Tensor], times: Array, at: Array) -> list[torch.Tensor]:
    """Displacements from the start, ``sum h_j v_j``, at the times ``at``, which must lie on the grid ``times``.

    Raises:
        ValueError: a time that is not on the grid.
    """
    total, found, k = torch.zeros_like(next(iter(values.values()))), [], 0
    span = abs(times[-1] - times[0])
    for i in range(len(times)):
        while k < len(at) and abs(times[i] - at[k]) < 1e-6 * span:
            found.append(total.clone())
            k += 1
        if i in values:
            total = total + float(times[i + 1] - times[i]) * values[i]
    if k < len(at):
        raise ValueError(f"reference grid: time {at[k]} is not among its times")
    return found


def calibrate(
    run: Run,
    *,
    times: Sequence[float],
    calls: int,
    seeds: Sequence[int],
    reference: tuple[Run, Sequence[float]] | None = None,
    memory: int = 4,
    ridge: float = 1e-3,
    made_for: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Make a plan of exactly ``calls`` network calls for the sampler behind ``run``.

    Costs ``len(seeds)`` uncached runs and as many cached ones (each anchor is computed once and replayed).

    Args:
        run: ``run(seed, cache)``; it must be deterministic for a seed and come through an exception unharmed.
        times: the N + 1 grid times.
        calls: network calls of the plan.
        seeds: calibration conditions, disjoint from those that the plan is tested on.
        reference: ``(run, times)`` of the same sampler on a finer grid that contains ``times``: the plan then lands on
            *its* states and approaches the solution of the flow, not the N-step run with its truncation error.
        memory: snapshots per forecast.
        ridge: toward guarded Lagrange weights, relative to the data.
        made_for: the plan's key.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: ``calls`` or ``memory`` out of range, no seeds, a reference grid without a time of ``times``.
        RuntimeError: a run that does not ask the cache at every step.
    """
    grid = np.array([float(t) for t in times])
    effective = schedule.effective_steps(grid.tolist())
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds must name at least one calibration run")
    if not 1 <= memory <= 8:
        raise ValueError(f"memory must be 1..8 snapshots, got {memory}")
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    if not 1 <= calls <= len(effective):
        raise ValueError(f"calls must be 1..{len(effective)} (the steps that move the state), got {calls}")
    say = progress or (lambda stage, done, total: None)

    targets: dict[int, list[torch.Tensor]] = {}
    mean = np.zeros((len(grid) - 1,) * 2)
    for k, seed in enumerate(seeds):
        values, gram = record(run, grid, seed)
        mean += gram / (np.trace(gram) / len(effective)) / len(seeds)
        if reference is None:
            targets[seed] = positions(values, grid, grid)
        else:
            fine = np.array([float(t) for t in reference[1]])
            targets[seed] = positions(record(reference[0], fine, seed)[0], fine, grid)
        say("uncached runs", k + 1, len(seeds))

    rule = Linear(2)
    computed, predicted = search(mean, grid, calls, rule)
    say("schedule", 1, 1)
    marches = {seed: _March(computed) for seed in seeds}
    reached = {seed: torch.zeros_like(targets[seed][0]) for seed in seeds}
    columns = {seed: reached[seed][None][:0] for seed in seeds}  # the newest snapshots, oldest first
    weights: dict[int, tuple[float, ...]] = {}
    misses: dict[int, float] = {}
    for i in effective:
        h = float(grid[i + 1] - grid[i])
        if i in computed:
            for seed, march in marches.items():
                try:
                    run(seed, march)
                except _Pause:
                    pass
                else:
                    raise RuntimeError(f"run({seed}, cache) did not ask the cache at step {i}")
                newest = _flat(march.values[i])
                columns[seed] = torch.cat((columns[seed], newest[None]))[-memory:]
                reached[seed] = reached[seed] + h * newest
            say("closed loop", computed.index(i) + 1, len(computed))
            continue
        known = [k for k in computed if k < i][-memory:]
        wanted = {seed: (targets[seed][i + 1] - reached[seed]) / h for seed in seeds}
        prior = serve(rule, grid[known], float(grid[i]), np.eye(len(known)), GUARD).weights
        w, misses[i] = fit(columns, wanted, prior, ridge)
        weights[i] = tuple(float(x) for x in w)
        for seed, march in marches.items():
            march.weights[i] = dict(zip(known, weights[i], strict=True))
            reached[seed] = reached[seed] + h * torch.tensor(w, dtype=torch.float32) @ columns[seed]
    statistics = {
        "seeds": seeds,
        "target": "uncached" if reference is None else "reference",
        "memory": memory,
        "ridge": ridge,
        "predicted_open_loop_error": predicted,
        "relative_misfit": misses,
    }
    return Plan(tuple(grid.tolist()), computed, weights, dict(made_for or {}), statistics)


def fit(
    columns: Mapping[int, torch.Tensor], wanted: Mapping[int, torch.Tensor], prior: Array, ridge: float
) -> tuple[Array, float]:
    """Weights shared by all runs: ``min sum_s ||F_s w - u_s||^2 / ||u_s||^2 + lam ||w - w0||^2``, ``sum w = 1``.

    Args:
        columns: per run the snapshots ``F_s^T [m, d]``.
        wanted: per run ``u_s [d]``.
        prior: ``w0 [m]``.
        ridge: ``lam = ridge tr(K) / m``.

    Returns:
        Weights ``[m]`` with ``||w||_1 <= 4`` (blended toward the prior), and the root mean square relative misfit.
    """
    m = len(prior)
    k, r, rows = np.zeros((m, m)), np.zeros(m), []
    for seed, f in columns.items():
        window = torch.cat((f, wanted[seed][None]))[None]
        g = np.stack([products(window, each[None])[0, :-1] for each in window[0]])
        scale = max(g[m, m], 1e-300)
        k += g[:m, :m] / scale
        r += g[:m, m] / scale
        rows.append(g / scale)
    lam = ridge * float(np.trace(k)) / m
    system = np.zeros((m + 1, m + 1))
    system[:m, :m] = k + lam * np.eye(m)
    system[:m, m] = system[m, :m] = 1
    w = np.linalg.solve(system, np.append(r + lam * prior, 1.0))[:m]
    if np.abs(w).sum() > GUARD:
        w = prior + blend(w, prior, GUARD) * (w - prior)
    signed = np.append(-w, 1.0)
    return w, float(np.sqrt(np.mean([max(signed @ g @ signed, 0) for g in rows])))
