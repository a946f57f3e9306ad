"""The cached sampler under construction: all calibration runs, side by side, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import schedule
from ..groups import combine
from ..plan import Weights
from ..rules import Auto
from ..rules.guard import guarded
from ..snapshots import Array, gram_matrix
from .fit import fit, prior
from .recording import Recording, Velocity
from .tapes import March, Pause


@dataclass
class Condition:
    """What is kept of one calibration condition.

    Attributes:
        survival: ``[probes]``, share of a displacement at each probed step that is left at the end.
        target: by step, the displacement from the start to land on.
    """

    recording: Recording
    survival: Array
    target: list[torch.Tensor]


class ClosedLoop:
    """Marches the runs of ``conditions`` under the schedule ``computed`` and fits the weights of each skipped step and,
    as a correction, of the last one.

    Attributes:
        misfits: by served step, the root mean square over runs and leaf groups of ``||F w - u|| / ||u||``.
        forward: by anchor, ``[median, p95]`` over the runs of the relative error that the calibration-free rule would
            have made there; what a run's trace reports as forward error can be held against it.
    """

    def __init__(
        self, run: Callable[[int, Any], Any], conditions: Mapping[int, Condition], computed: tuple[int, ...],
        edges: Sequence[int], memory: int, ridge: float,
    ) -> None:  # fmt: skip
        self.run, self.conditions, self.computed = run, conditions, computed
        self.edges, self.memory, self.ridge = edges, memory, ridge
        self.model = next(iter(conditions.values())).recording
        self.times, self.scale = self.model.times, self.model.scale
        self.marches = {seed: March(each.recording, computed) for seed, each in conditions.items()}
        self.moved = {seed: torch.zeros_like(each.target[0]) for seed, each in conditions.items()}
        self.anchors: dict[int, dict[int, Velocity]] = {seed: {} for seed in conditions}
        self.misfits: dict[str, float] = {}
        self.forward: dict[str, list[float]] = {}
        self._rule = Auto()

    def advance(self, i: int) -> Mapping[str, Weights] | None:
        """Make step ``i`` of every run: compute it, or fit the weights that serve it, by leaf group; the last computed
        one both.

        An error of the sample that lies in the span of the columns when the last velocity arrives can be taken out with
        it, and by nothing later; this is what the corrector of a predictor-corrector sampler does (UniPC, Zhao et al.
        2023, section 3.1).
        """
        h = float(self.times[i + 1] - self.times[i])
        before = [k for k in self.computed if k < i]
        if i not in self.computed:
            return self._fit(i, h, schedule.window(before, self.memory, self.edges))
        self._compute(i, () if i in self.edges else schedule.window(before, self._rule.window, self.edges))
        if i == self.computed[-1] and self.misfits:
            return self._fit(i, h, schedule.window(self.computed, self.memory, self.edges))
        for seed, arrived in self.anchors.items():
            self.moved[seed] = self.moved[seed] + h * arrived[i].combined(self.scale)
        return None

    def _compute(self, i: int, known: Sequence[int]) -> None:
        errors = []
        for seed, march in self.marches.items():
            try:
                self.run(seed, march)
            except Pause:
                pass
            else:
                raise RuntimeError(f"run({seed}, cache) did not ask the cache at step {i}")
            arrived = march.velocities[i]
            if known:
                window = torch.stack([self.anchors[seed][k].cond for k in known])
                w = guarded(self._rule, np.array(known, dtype=np.float64), float(i), gram_matrix(window)).weights
                guess = torch.tensor(w, dtype=window.dtype) @ window
                errors.append(float((guess - arrived.cond).norm() / arrived.cond.norm().clamp(min=1e-30)))
            self.anchors[seed][i] = arrived
        if errors:
            self.forward[str(i)] = [float(np.median(errors)), float(np.percentile(errors, 95))]

    def _fit(self, i: int, h: float, known: tuple[int, ...]) -> Mapping[str, Weights]:
        apart = tuple(k for k in known if self.model.guided(k)) if self.model.guided(i) else ()
        if self.model.guided(i) and not apart:
            raise RuntimeError(
                f"run: guidance is on at step {i} but at none of the {len(known)} newest computed steps; name the step "
                "where it switches on in edges"
            )
        with_state = self.model.start is not None
        columns = {seed: self._columns(seed, known, apart) for seed in self.conditions}
        wanted = {seed: (each.target[i + 1] - self.moved[seed]) / h for seed, each in self.conditions.items()}
        apart_prior = [prior(apart, i)] if apart else []
        toward = np.concatenate([prior(known, i), *apart_prior, [0.0] * with_state])
        n, m = len(known), len(known) + len(apart)
        fitted, misfits = {}, []
        for group, at in self.model.parts.items():
            theirs = {seed: each[:, at] for seed, each in columns.items()}
            goal = {seed: each[at] for seed, each in wanted.items()}
            fitted[group], misfit = fit(theirs, goal, toward, n, self.ridge, len(apart))
            misfits.append(misfit)
        self.misfits[str(i)] = float(np.sqrt(np.mean(np.square(misfits))))
        weights = {
            group: Weights(tuple(map(float, w[:n])), float(w[m]) if with_state else 0.0, tuple(map(float, w[n:m])))
            for group, w in fitted.items()
        }
        for seed, march in self.marches.items():
            march.weights[i] = weights, {"velocity": known, "difference": apart}
            self.moved[seed] = self.moved[seed] + h * combine(fitted, columns[seed], self.model.parts)
        return weights

    def _columns(self, seed: int, known: Sequence[int], apart: Sequence[int]) -> torch.Tensor:
        """``[columns, d]``: conditional velocities, scaled guidance differences, the state."""
        anchors, start = self.anchors[seed], self.conditions[seed].recording.start
        rows = [anchors[k].cond for k in known]
        rows += [(self.scale - 1) * d for d in (anchors[k].difference for k in apart) if d is not None]
        if start is not None:
            rows.append(start + self.moved[seed])
        return torch.stack(rows)

    def distances(self) -> Array:
        """``[S]``: distance of each run to its target, relative to the sample."""
        off = [each.recording.relative(self.moved[seed] - each.target[-1]) for seed, each in self.conditions.items()]
        return np.array([float(each.norm()) for each in off])
