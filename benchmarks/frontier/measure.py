"""Choosing candidates on calibration conditions and measuring the chosen ones on test conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forecache_lab.metrics import geometry

from . import methods
from .methods import Candidate, Method
from .problems import Problem, Seeds
from .sampling import Result, sample, solution

Values = npt.NDArray[np.float64]
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


def distance(latents: torch.Tensor, reference: torch.Tensor) -> Values:
    """``||x - x_ref|| / ||x_ref||`` per condition."""
    off, size = ((each).double().flatten(1).norm(dim=1) for each in (latents - reference, reference))
    return np.asarray((off / size).numpy())


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
        self.problem, self.calibration, self.test, self.say = problem, list(calibration), list(test), progress
        self.making = making
        self.meshes = meshes if problem.decode is not None else 0
        self._scores: dict[tuple[Candidate, int], dict[str, float]] = {}
        self._results: dict[Candidate, Result] = {}
        self._near: dict[tuple[int, ...], torch.Tensor] = {}
        self._shapes: dict[str, list[Any]] = {}

    def targets(self, seeds: Seeds) -> dict[str, torch.Tensor]:
        """Final latents of the N-step run ("drift") and of the fine solution ("error")."""
        key = tuple(seeds)
        if key not in self._near:
            self.say("references")
            self._near[key] = sample(self.problem, seeds).latents
        return {"drift": self._near[key], "error": solution(self.problem, seeds)[-1]}

    def score(self, candidate: Candidate, by: str, conditions: int | None = None) -> float:
        """Median over the (first) calibration conditions; a candidate that diverges is worst."""
        seeds = self.calibration[:conditions]
        key = candidate, len(seeds)
        if key not in self._scores:
            latents = candidate.run(seeds).latents
            self._scores[key] = {
                name: float(np.nan_to_num(np.median(distance(latents, each[: len(seeds)])), nan=np.inf))
                for name, each in self.targets(self.calibration).items()
            }
        return self._scores[key][by]

    def choose(self, method: Method) -> Candidate:
        """The candidate with the least calibration median; of many, the best over a few conditions go on to all."""
        left = list(method.candidates)
        if len(left) == 1:
            return left[0]
        if len(left) > KEPT and len(self.calibration) > SCREEN:
            left = sorted(left, key=lambda each: self.score(each, method.by, SCREEN))[:KEPT]
        return min(left, key=lambda each: self.score(each, method.by))

    def rows(self, calls: int) -> list[Row]:
        """Every method at one budget."""
        todo = [*methods.solver_rows(self.problem, calls), *methods.cache_rows(self.problem, calls)]
        self.say(f"{calls} calls: EasyCache thresholds")
        todo += methods.easycache_rows(self.problem, calls, self.calibration)
        todo += methods.forecache_rows(self.problem, calls)
        self.say(f"{calls} calls: plans")
        todo += methods.plan_rows(self.problem, calls, self.calibration, self.making)
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
        steps = len(self.problem.effective)
        return self._row("uncached Euler", "solver", "", steps, sample(self.problem, self.test))

    def _run(self, candidate: Candidate) -> Result:
        if candidate not in self._results:
            self._results[candidate] = candidate.run(self.test)
        return self._results[candidate]

    def _row(self, name: str, kind: str, setting: str, budget: int, result: Result) -> Row:
        targets = self.targets(self.test)
        values = {key: distance(result.latents, each).tolist() for key, each in targets.items()}
        counts = {key: getattr(result, key).tolist() for key in ("calls", "cond", "uncond")}
        return Row(
            name,
            kind,
            setting,
            budget,
            **counts,
            **values,
            geometry=self._geometry(result.latents) if name in DECODED else {},
        )

    def _geometry(self, latents: torch.Tensor) -> dict[str, list[dict[str, Any] | None]]:
        if not self.meshes:
            return {}
        found = {}
        made = [self._mesh(latent) for latent in latents[: self.meshes]]
        for key, each in self.targets(self.test).items():
            if key not in self._shapes:
                self._shapes[key] = [self._mesh(latent) for latent in each[: self.meshes]]
            found[key] = [
                asdict(geometry.compare(a, b)) if a is not None and b is not None else None
                for a, b in zip(made, self._shapes[key], strict=True)
            ]
        return found

    def _mesh(self, latent: torch.Tensor) -> Any:
        assert self.problem.decode is not None
        try:
            mesh = self.problem.decode(latent)
        except (ValueError, RuntimeError):  # no surface at the level
            return None
        return mesh if mesh is not None and len(mesh.faces) else None
