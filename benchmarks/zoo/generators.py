"""The reference networks of this repository, trained through the generators' own classes, on the generators' grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forecache import Guided
from forecache_lab.generators.reference import CALIBRATION_SEED, pictures, solids, trellis

from ..flows import hunyuan21 as network
from ..flows.grids import GRIDS
from ..flows.problems import Problem, Seeds, noise
from ..frontier.__main__ import FIRST
from .halves import BUDGETS, Half

FIRST_OF: dict[Half, int] = {"develop": CALIBRATION_SEED, "report": FIRST}
GROUP = "reference network"


def budgets_of(steps: int) -> tuple[int, ...]:
    """The three smallest: a call takes long."""
    return BUDGETS[steps][-3:]


def hunyuan21(checkout: Path) -> list[Problem]:
    """Hunyuan3D-2.1's network as the frontier has it; steps that do not move the state are left out.

    Raises:
        FileNotFoundError: no such checkout.
    """
    return [_renamed(problem) for problem in network.problems(checkout).values()]


def _renamed(problem: Problem) -> Problem:
    grid = next(name for name, each in GRIDS.items() if each is problem.grid)
    whole = problem.interval == (0.0, 1.0)
    key = f"hunyuan21-{grid}-{problem.steps}-velocity-{'guided' if whole else 'interval'}"
    budgets = budgets_of(min(BUDGETS, key=lambda n: abs(n - problem.steps)))
    return replace(problem, key=key, budgets=budgets, group=GROUP, slow=True, parts=None)


class Trellis:
    """The first stage of TRELLIS: a dense latent, guidance at noise levels of .5 and more, shift 3."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.model = pipe, pipe.models["sparse_structure_flow_model"]
        self.settings = pipe.sparse_structure_sampler_params
        self._tokens: dict[int, torch.Tensor] = {}

    def noise(self, seeds: Seeds) -> torch.Tensor:
        """``[B, 8, 8, 8, 8]``."""
        return noise(seeds, self.model.in_channels, *[self.model.resolution] * 3)

    def tokens(self, seeds: Seeds) -> torch.Tensor:
        """Of pictures of the seeds' solids."""
        for seed in seeds:
            if seed not in self._tokens:
                picture = solids.picture(solids.solid(seed)[1], pictures.PICTURE)
                self._tokens[seed] = self.pipe.get_cond([picture])["cond"][0]
        return torch.stack([self._tokens[seed] for seed in seeds])

    def velocity(self, x: torch.Tensor, alpha: float, sigma: float, seeds: Seeds, guided: bool) -> Any:
        """Toward the data; the network's own is toward the noise, and its time is 1000 times the noise level."""
        cond, time = self.tokens(seeds), torch.full((len(x),), 1000 * sigma)
        with torch.no_grad():
            if not guided:
                return -self.model(x, time, cond)
            tokens = torch.cat((cond, torch.zeros_like(cond)))
            both = -self.model(torch.cat((x, x)), torch.cat((time, time)), tokens)
        return Guided(*both.chunk(2))

    def problems(self) -> list[Problem]:
        """25 steps, the weights' own setting, and 12, the application's."""
        name, found = f"shift{self.settings['rescale_t']:g}", []
        for steps in (25, 12):
            found.append(
                Problem(
                    f"trellis-{name}-{steps}-velocity-interval", "velocity", GRIDS[name], steps, budgets_of(steps),
                    self.noise, self.velocity, tuple(self.settings["cfg_interval"]), group=GROUP, slow=True,
                    strength=1 + self.settings["cfg_strength"],
                )
            )  # fmt: skip
        return found


def trellis_structure(checkout: Path) -> list[Problem]:
    """TRELLIS's structure stage around its reference network.

    Raises:
        FileNotFoundError: no such checkout.
    """
    import diffusers  # noqa: F401 (before the stand-ins for what TRELLIS imports)

    return Trellis(trellis.build_reference(trellis.load(checkout))).problems()


GENERATORS = {"hunyuan21": hunyuan21, "trellis": trellis_structure}
