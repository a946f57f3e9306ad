"""Making a plan: record uncached runs, probe them, search the schedule, fit the weights in closed loop. No gradients.

The fit marches the *cached* sampler: at a skipped step the target is the velocity that lands on the reference state,
``u = (X_{i+1} - x_i) / h_i``, and the weights of the newest snapshots, of the sampler's state and, where the guidance
branches come apart, of their differences minimise ``sum_s ||F_s w - u_s||^2 / ||u_s||^2`` over the calibration runs
with a ridge toward guarded Lagrange weights (0 for the state). The last computed velocity is corrected by the same fit.
The sampler must be Euler in ``times`` (``x_{i+1} = x_i + h_i v_i``), as flow-matching samplers are; its states then
follow from the velocities.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .. import files, schedule
from ..groups import Groups
from ..plan import GroupWeights, Plan, Weights
from ..snapshots import Array
from .closed_loop import ClosedLoop, Condition
from .recording import Recording, load, positions, save
from .refine import Refiner
from .search import Gaps, power_mean, probe_steps, search, survival
from .tapes import Probe, record

COHERENCE = (0.0, 0.5)  # of the searches whose schedules are tried in closed loop, beside the even one

ByGroup = Mapping[str, Weights]
Progress = Callable[[str, int, int], None]


class Run(Protocol):
    """``run(seed, cache)``: one sampling run that asks ``cache`` at every step and returns the final sample."""

    def __call__(self, seed: int, cache: Any, /) -> Any:
        """Run with the noise and condition of ``seed``."""
        ...


def calibrate(run: Run, *, times: Sequence[float], calls: int, seeds: Sequence[int], **options: Any) -> Plan:
    """Make a plan of exactly ``calls`` network calls for the sampler behind ``run``.

    Options are those of :class:`Calibration`, which makes plans for several budgets from the same recordings.
    """
    return Calibration(run, times=times, seeds=seeds, **options).plan(calls)


class Calibration:
    """Uncached runs, recorded once; :meth:`plan` makes a plan for any budget.

    Network calls: per seed one uncached run, ``probes`` times about half of one, the reference run if there is one, and
    at most three cached runs per plan (each anchor is computed once and replayed), and what ``refine`` takes.

    Args:
        run: ``run(seed, cache)``; it must be deterministic for a seed and come through an exception unharmed. It should
            pass its state, ``cache.step(i, compute, state=x)``: the plan then has a column for it, and the sampler is
            checked to be Euler.
        times: the N + 1 grid times.
        seeds: calibration conditions, disjoint from those that the plan is tested on.
        target: "uncached": the plan lands on the N-step run. "reference": on the states of a many-step run, so that it
            approaches the solution of the flow and not the N-step run with its truncation error.
        reference: ``(run, times)`` of the same sampler on a finer grid that contains ``times``; for that target.
        guidance_scale: g of ``u + g (c - u)``, where the run returns ``Guided(cond, uncond)`` (``uncond=None`` on steps
            without guidance).
        edges: as in :class:`forecache.Forecaster`; every plan computes them.
        groups: leaves with weights of their own, by name of the group; the schedule is chosen for all groups alike,
            each error relative to its group's part of the sample.
        memory: snapshots per forecast.
        ridge: toward guarded Lagrange weights, relative to the data.
        probes: steps at which the survival of errors is measured; 0: every error counts as if it survived.
        refine: rounds of Gauss-Newton on all weights of a plan together (:mod:`forecache.calibration.refine`). A round
            costs several times the network calls of the uncached runs; the first lowers drift most. Pays with 32 seeds,
            not with 16.
        made_for: the plans' key.
        folder: keeps the recording of each seed, so that an interrupted calibration goes on where it was.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: an argument out of range, no seeds, a reference grid without a time of ``times``, a folder that
            holds another calibration.
        RuntimeError: a run that does not ask the cache at every step, or whose sampler is not Euler.
    """

    def __init__(
        self,
        run: Run,
        *,
        times: Sequence[float],
        seeds: Sequence[int],
        target: Literal["uncached", "reference"] = "uncached",
        reference: tuple[Run, Sequence[float]] | None = None,
        guidance_scale: float | None = None,
        edges: Sequence[int] = (),
        groups: Mapping[str, Sequence[str]] | None = None,
        memory: int = 4,
        ridge: float = 1e-3,
        probes: int = 8,
        refine: int = 0,
        made_for: Mapping[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.times = np.array([float(t) for t in times])
        self.effective = schedule.effective_steps(self.times.tolist())
        self.seeds = list(seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must name at least one calibration run, each once, got {self.seeds}")
        if target not in ("uncached", "reference") or (target == "reference") != (reference is not None):
            raise ValueError(
                f'target must be "uncached", or "reference" with reference=(run, times); got {target!r} '
                f"{'with' if reference is not None else 'without'} a reference"
            )
        if not 1 <= memory <= 8:
            raise ValueError(f"memory must be 1..8 snapshots, got {memory}")
        if not ridge > 0:
            raise ValueError(f"ridge must be > 0, got {ridge}")
        if not 0 <= probes <= 64:
            raise ValueError(f"probes must be 0..64 steps, got {probes}")
        if not 0 <= refine <= 16:
            raise ValueError(f"refine must be 0..16 rounds, got {refine}")
        foreign = sorted(set(edges) - set(self.effective))
        if foreign:
            raise ValueError(f"edges must be steps that move the state, got {foreign}")
        self.run, self.target, self.reference = run, target, reference
        self.scale, self.edges, self.memory, self.ridge = guidance_scale, tuple(sorted(edges)), memory, ridge
        self.refine = refine
        self.groups = {name: group.leaves for name, group in Groups(groups or {}, None).groups.items()}
        self.made_for = dict(made_for or {})
        self.probed = probe_steps(self.effective, probes) if probes else ()
        self.folder = None if folder is None else Path(folder)
        self._say = progress or (lambda stage, done, total: None)
        self.conditions: dict[int, Condition] = {}
        self._base: Calibration | None = None  # whose recordings and probes serve here too
        if self.folder is not None:
            self._claim(self.folder)

    def toward(self, reference: tuple[Run, Sequence[float]]) -> Calibration:
        """The same with ``target="reference"``: recordings and probes are shared, only the reference runs are made."""
        other = copy.copy(self)
        other.target, other.reference, other.folder, other.conditions = "reference", reference, None, {}
        other._base = self
        return other

    # --- recordings -------------------------------------------------------------------------------------------------
    def record(self) -> None:
        """Record and probe the uncached runs that are not recorded yet; :meth:`plan` does it when it is first asked."""
        for k, seed in enumerate(self.seeds):
            self._condition(seed)
            self._say("uncached runs", k + 1, len(self.seeds))

    def _condition(self, seed: int) -> Condition:
        if seed not in self.conditions:
            self.conditions[seed] = self._load(seed) or self._record(seed)
        return self.conditions[seed]

    def _record(self, seed: int) -> Condition:
        shared = None if self._base is None else self._base._condition(seed)
        recording = shared.recording if shared else record(self.run, self.times, seed, self.scale, self.groups)
        if self.reference is None:
            target = positions(recording, self.times)
        else:
            fine = np.array([float(t) for t in self.reference[1]])
            target = positions(record(self.reference[0], fine, seed, self.scale), self.times)
        left = self._probe(seed, recording) if shared is None else shared.survival
        condition = Condition(recording, left, target)
        if self.folder is not None:
            save(self._file(seed), recording, condition.survival, target)
        return condition

    def _probe(self, seed: int, recording: Recording) -> Array:
        left = []
        for at in self.probed:
            probe = Probe(recording, at)
            self.run(seed, probe)
            left.append(probe.survival())
        return np.array(left)

    def _key(self) -> dict[str, Any]:
        fine = None if self.reference is None else [float(t) for t in self.reference[1]]
        key = {
            "times": self.times.tolist(), "target": self.target, "reference_times": fine, "guidance_scale": self.scale,
            "probed": list(self.probed), "made_for": self.made_for, "groups": self.groups,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(key))
        return plain

    def _claim(self, folder: Path) -> None:
        name = folder / "calibration.json"
        if name.exists():
            try:
                theirs = json.loads(name.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"folder: {name} is not readable: {error}") from error
            mine = self._key()
            differ = [k for k in mine if not isinstance(theirs, dict) or theirs.get(k) != mine[k]]
            if differ:
                raise ValueError(f"folder: {folder} holds another calibration ({', '.join(differ)} differ)")
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._key(), indent=1)
        files.replace(name, lambda partial: partial.write_text(text, encoding="utf-8"))

    def _file(self, seed: int) -> Path:
        assert self.folder is not None
        return self.folder / f"seed-{seed}.pt"

    def _load(self, seed: int) -> Condition | None:
        if self.folder is None or not self._file(seed).exists():
            return None
        condition = Condition(*load(self._file(seed)))
        if not np.array_equal(condition.recording.times, self.times) or len(condition.survival) != len(self.probed):
            raise ValueError(
                f"folder: {self._file(seed)} is of another grid or other probes; remove it to record the run again"
            )
        return condition

    # --- plans ------------------------------------------------------------------------------------------------------
    def plan(self, calls: int) -> Plan:
        """A plan of exactly ``calls`` network calls.

        Raises:
            ValueError: ``calls`` out of range.
            RuntimeError: as the class.
        """
        least = len({self.effective[0], self.effective[-1], *self.edges})
        if not least <= calls <= len(self.effective):
            raise ValueError(
                f"calls must be {least}..{len(self.effective)} (the steps that move the state), got {calls}"
            )
        self.record()
        conditions = [self.conditions[seed] for seed in self.seeds]
        grams = np.stack([each.recording.gram for each in conditions])
        n = len(self.times) - 1
        gaps = Gaps(
            grams, survival(self.probed, np.stack([each.survival for each in conditions]), n), self.times, self.memory,
            self.ridge, self.edges,
        )  # fmt: skip
        found = {search(gaps, self.effective, calls, self.edges, coherence)[0] for coherence in COHERENCE}
        even = schedule.even(self.effective, calls)  # where gaps are so long that open-loop prices mean little
        found.add(schedule.with_edges(even, self.effective, self.edges, exact=True))
        self._say("schedule", 1, 1)
        ordered = dict(zip(self.seeds, conditions, strict=True))
        loops = {computed: self._close(ordered, computed) for computed in sorted(found)}
        computed, (loop, weights) = min(loops.items(), key=lambda each: power_mean(each[1][0].distances()))
        distances = loop.distances()
        if self.refine:
            weights, distances = self._refine(loop)
        statistics = {
            "seeds": self.seeds,
            "target": self.target,
            "memory": self.memory,
            "ridge": self.ridge,
            "refine": self.refine,
            "predicted_drift": gaps.price(computed),
            "distance_to_target": [float(np.median(distances)), float(np.percentile(distances, 95))],
            "expected_misfit": loop.misfits,
            "forward_error": loop.forward,
            "survival": {
                str(at): float(np.median([each.survival[k] for each in conditions])) for k, at in enumerate(self.probed)
            },
        }
        by_group = {group: {i: each[group] for i, each in weights.items()} for group in conditions[0].recording.parts}
        groups = {group: GroupWeights(self.groups[group], each) for group, each in by_group.items() if group}
        times = tuple(self.times.tolist())
        return Plan(times, computed, by_group.get("", {}), self.edges, self.made_for, statistics, groups)

    def _refine(self, loop: ClosedLoop) -> tuple[dict[int, ByGroup], Array]:
        refiner, total = Refiner(loop), self.refine * len(self.seeds)
        for k in range(self.refine):
            done = k * len(self.seeds)
            better = refiner.round(lambda seed, done=done: self._say("refinement", done + seed, total))  # type: ignore[misc]
            if not better:
                break
        return {i: weights for i, (weights, _) in refiner.plan.items()}, refiner.distances()

    def _close(
        self, conditions: Mapping[int, Condition], computed: tuple[int, ...]
    ) -> tuple[ClosedLoop, dict[int, ByGroup]]:
        """March all runs under a schedule; the weights that they needed."""
        loop = ClosedLoop(self.run, conditions, computed, self.edges, self.memory, self.ridge)
        weights: dict[int, ByGroup] = {}
        for k, i in enumerate(self.effective):
            served = loop.advance(i)
            if served is not None:
                weights[i] = served
            self._say("closed loop", k + 1, len(self.effective))
        return loop, weights
