"""A problem's network in one run: what solvers and caches call, counted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from forecache import Guided

from . import forms
from .grids import level
from .problems import Problem, Seeds, Value, combine

Counts = npt.NDArray[np.int64]
Path = dict[tuple[int, int], tuple[torch.Tensor, Value]]  # (seed, step) -> state and value on the uncached path


class Network:
    """A problem's network for a batch of seeds in one run, counted per condition where it is evaluated."""

    def __init__(self, problem: Problem, seeds: Seeds) -> None:
        self.problem, self.seeds = problem, list(seeds)
        self.calls, self.cond, self.uncond = (np.zeros(len(self.seeds), dtype=np.int64) for _ in range(3))

    def branches(
        self, x: torch.Tensor, alpha: float, sigma: float, rows: torch.Tensor | None = None, guided: bool | None = None
    ) -> Value:
        """Branches at ``x [B, ...]`` or, with a mask ``rows [B]``, at ``x[rows]``. ``guided`` overrides the levels."""
        on = self.problem.guided(alpha, sigma) if guided is None else guided
        seeds = self.seeds
        if rows is not None:
            x, seeds = x[rows], [seed for seed, wanted in zip(seeds, rows.tolist(), strict=True) if wanted]
        value = self.problem.network(x, alpha, sigma, seeds, on)
        self._count(value, rows)
        return value

    def output(self, x: torch.Tensor, alpha: float, sigma: float, guided: bool | None = None) -> torch.Tensor:
        """What the sampler integrates."""
        return combine(self.branches(x, alpha, sigma, guided=guided), self.problem.strength)

    def data(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The denoised sample."""
        return forms.split(self.problem.form, self.output(x, alpha, sigma), x, alpha, sigma)[0]

    def slope(self, u: torch.Tensor, s: float, guided: bool | None = None) -> torch.Tensor:
        """``du/ds`` on the chart of the problem's grid."""
        form, chart = self.problem.form, self.problem.own_grid.chart
        alpha, sigma = level(chart, s)
        x = u * alpha if chart == "vp" else u
        o = self.output(x, alpha, sigma, guided)
        if (chart, form) == ("flow", "velocity"):
            return o
        data, noise = forms.split(form, o, x, alpha, sigma)
        return data - noise if chart == "flow" else noise

    def on_path(self, known: Path, i: int, x: torch.Tensor, here: forms.Pair) -> Value:
        """Branches where no step was forecast yet: evaluated once per state of the uncached run, counted every time."""
        keys = [(seed, i) for seed in self.seeds]
        if not all(key in known and torch.equal(known[key][0], at) for key, at in zip(keys, x, strict=True)):
            value = self.branches(x, *here)
            parts = zip(*value, strict=True) if isinstance(value, Guided) else value
            for key, at, part in zip(keys, x, parts, strict=True):
                known.setdefault(key, (at, Guided(*part) if isinstance(value, Guided) else part))
            return value
        rows = [known[key][1] for key in keys]
        if isinstance(rows[0], Guided):
            value = Guided(torch.stack([row.cond for row in rows]), torch.stack([row.uncond for row in rows]))
        else:
            value = torch.stack(rows)
        self._count(value, None)
        return value

    def _count(self, value: Value, rows: torch.Tensor | None) -> None:
        counted = np.ones(len(self.seeds), dtype=np.int64) if rows is None else rows.numpy().astype(np.int64)
        self.calls += counted
        self.cond += counted
        self.uncond += isinstance(value, Guided) * counted
