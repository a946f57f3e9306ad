"""The reference networks of this repository, trained through the generators' own classes, on the generators' grids."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.frontier import network
from benchmarks.frontier.__main__ import FIRST
from benchmarks.frontier.problems import Problem as Flow
from benchmarks.frontier.problems import combine
from forecache import Guided
from forecache_lab.generators.reference import CALIBRATION_SEED, pictures, solids, trellis

from .grids import GRIDS
from .halves import BUDGETS, Half
from .problems import Problem, Seeds

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
    return [_hunyuan21(flow) for flow in network.problems(checkout).values()]


def _hunyuan21(flow: Flow) -> Problem:
    steps = len(flow.effective)
    name = "even" if flow.shift == 1 else f"shift{flow.shift:g}"
    low, high = flow.interval or (0.0, 1.0)
    whole = (low, high) == (0.0, 1.0)
    key = f"hunyuan21-{name}-{steps}-velocity-{'guided' if whole else 'interval'}"
    budgets = budgets_of(min(BUDGETS, key=lambda n: abs(n - steps)))
    interval = None if whole else (1 - high, 1 - low)
    network_of = partial(_velocity, flow)
    return Problem(
        key, "velocity", GRIDS[name], steps, budgets, flow.start, network_of, interval, group=GROUP, dear=True,
        strength=flow.scale,
    )  # fmt: skip


def _velocity(flow: Flow, x: torch.Tensor, alpha: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor:
    return combine(flow.branches(x, alpha, seeds, guided), flow.scale)


class Trellis:
    """The first stage of TRELLIS: a dense latent, guidance at noise levels of .5 and more, shift 3."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.model = pipe, pipe.models["sparse_structure_flow_model"]
        self.settings = pipe.sparse_structure_sampler_params
        self._tokens: dict[int, torch.Tensor] = {}

    def noise(self, seeds: Seeds) -> torch.Tensor:
        """``[B, 8, 8, 8, 8]``."""
        shape = (self.model.in_channels, *[self.model.resolution] * 3)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def tokens(self, seeds: Seeds) -> torch.Tensor:
        """Of pictures of the seeds' solids."""
        for seed in seeds:
            if seed not in self._tokens:
                picture = solids.picture(solids.solid(seed)[1], pictures.PICTURE)
                self._tokens[seed] = self.pipe.get_cond([picture])["cond"][0]
        return torch.stack([self._tokens[seed] for seed in seeds])

    def velocity(self, x: torch.Tensor, alpha: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        """Toward the data; the network's own is toward the noise, and its time is 1000 times the noise level."""
        cond, time = self.tokens(seeds), torch.full((len(x),), 1000 * sigma)
        with torch.no_grad():
            if not guided:
                return combine(-self.model(x, time, cond), 1.0)
            tokens = torch.cat((cond, torch.zeros_like(cond)))
            both = -self.model(torch.cat((x, x)), torch.cat((time, time)), tokens)
        return combine(Guided(*both.chunk(2)), 1 + self.settings["cfg_strength"])

    def problems(self) -> list[Problem]:
        """25 steps, the weights' own setting, and 12, the application's."""
        name, found = f"shift{self.settings['rescale_t']:g}", []
        for steps in (25, 12):
            found.append(
                Problem(
                    f"trellis-{name}-{steps}-velocity-interval", "velocity", GRIDS[name], steps, budgets_of(steps),
                    self.noise, self.velocity, tuple(self.settings["cfg_interval"]), group=GROUP, dear=True,
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
