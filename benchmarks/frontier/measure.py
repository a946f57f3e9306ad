"""Choosing candidates on calibration conditions and measuring the chosen ones on test conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from forecache_lab.metrics import geometry

from ..flows.methods import Candidate, Method
from ..flows.problems import Problem, Seeds
from ..flows.sampling import Batch, By, Run
from . import methods

TARGETS: tuple[By, By] = ("drift", "error")
DECODED = frozenset({  # rows whose meshes are compared, which takes longer than sampling them
    "uncached Euler", "Euler-K", "AB2-K", "UniPC-K", "best fixed-interval rule", "HiCache++ DMD (hicache-pp)", "auto",
    "plan", "plan, target reference",
})  # fmt: skip
SCREEN, KEPT = 4, 4  # calibration conditions that every candidate runs on, candidates that run on all


@dataclass(frozen=True)
class Row:
    """One method at one budget over the test conditions; arrays hold one value per condition.

    ``geometry``: of the first conditions' meshes, to the mesh of the N-step run ("drift") and of the fine solution
    ("error"); ``None`` where a latent has no surface.
    """

    method: str
    kind: str
    setting: str
    budget: int
    calls: list[int]
    cond: list[int]
    uncond: list[int]
    drift: list[float]
    error: list[float]
    geometry: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)


class Bench:
    """One problem with its calibration and test conditions; a candidate runs once on either."""

    def __init__(
        self,
        problem: Problem,
        calibration: Seeds,
        test: Seeds,
        meshes: int = 0,
        making: methods.Making | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        if set(calibration) & set(test):
            raise ValueError("calibration and test conditions must be disjoint")
        self.problem, self.say, self.making = problem, progress, making or methods.Making()
        self.calibration, self.test = Batch(problem, calibration), Batch(problem, test)
        self.screen = self.calibration.part(calibration[:SCREEN])
        self.meshes = meshes if problem.decode is not None else 0
        self._scores: dict[tuple[Candidate, bool], dict[str, float]] = {}
        self._runs: dict[Candidate, Run] = {}
        self._shapes: dict[str, list[Any]] = {}

    def score(self, candidate: Candidate, by: By, screening: bool = False) -> float:
        """Median over the calibration conditions, or over the first few; a candidate that diverges is worst."""
        key = candidate, screening
        if key not in self._scores:
            batch = self.screen if screening else self.calibration
            end = candidate.run(batch).end
            self._scores[key] = {
                each: float(np.nan_to_num(np.median(batch.distances(end, each)), nan=np.inf)) for each in TARGETS
            }
        return self._scores[key][by]

    def choose(self, method: Method) -> Candidate:
        """The candidate with the least calibration median; of many, the best over a few conditions go on to all."""
        left = list(method.candidates)
        if len(left) == 1:
            return left[0]
        if len(left) > KEPT and len(self.calibration.seeds) > SCREEN:
            left = sorted(left, key=lambda each: self.score(each, method.by, screening=True))[:KEPT]
        return min(left, key=lambda each: self.score(each, method.by))

    def rows(self, calls: int) -> list[Row]:
        """Every method at one budget."""
        todo = [*methods.solver_rows(self.problem, calls), *methods.cache_rows(self.problem, calls)]
        self.say(f"{calls} calls: EasyCache thresholds")
        todo += methods.easycache_rows(self.calibration, calls)
        todo += methods.forecache_rows(self.problem, calls)
        self.say(f"{calls} calls: plans")
        todo += methods.plan_rows(self.calibration, calls, self.making)
        rows, fixed = [], []
        for method in todo:
            self.say(f"{calls} calls: {method.name}")
            chosen = self.choose(method)
            if method.name.startswith(methods.FIXED_INTERVAL):
                fixed.append((self.score(chosen, "drift"), method.name, chosen))
            rows.append(self._row(method.name, method.kind, chosen.label, calls, self._run(chosen)))
        _, name, chosen = min(fixed, key=lambda each: each[0])
        label = f"{name}, {chosen.label}"
        at = next(k for k, row in enumerate(rows) if row.method.startswith("Spectrum"))
        best = self._row("best fixed-interval rule", "published cache", label, calls, self._run(chosen))
        return [*rows[:at], best, *rows[at:]]

    def uncached(self) -> Row:
        """The N-step run itself."""
        return self._row("uncached Euler", "solver", "", self.problem.steps, self.test.sample())

    def _run(self, candidate: Candidate) -> Run:
        if candidate not in self._runs:
            self._runs[candidate] = candidate.run(self.test)
        return self._runs[candidate]

    def _row(self, name: str, kind: str, setting: str, budget: int, run: Run) -> Row:
        values = {by: self.test.distances(run.end, by).tolist() for by in TARGETS}
        counts = {key: getattr(run, key).tolist() for key in ("calls", "cond", "uncond")}
        geometry = self._geometry(run.end) if name in DECODED else {}
        return Row(name, kind, setting, budget, **counts, **values, geometry=geometry)

    def _geometry(self, latents: torch.Tensor) -> dict[str, list[dict[str, Any] | None]]:
        if not self.meshes:
            return {}
        if not self._shapes:
            for key, each in (("drift", self.test.uncached), ("error", self.test.fine)):
                self._shapes[key] = [self._mesh(latent) for latent in each[: self.meshes]]
        made = [self._mesh(latent) for latent in latents[: self.meshes]]
        return {
            key: [
                asdict(geometry.compare(a, b)) if a is not None and b is not None else None
                for a, b in zip(made, shapes, strict=True)
            ]
            for key, shapes in self._shapes.items()
        }

    def _mesh(self, latent: torch.Tensor) -> Any:
        assert self.problem.decode is not None
        try:
            mesh = self.problem.decode(latent)
        except (ValueError, RuntimeError):  # no surface at the level
            return None
        return mesh if mesh is not None and len(mesh.faces) else None
