"""Two networks with published weights."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from forecache_patches import wheel
from forecache_patches.lock import Wheel

from ..flows.grids import GRIDS
from ..flows.problems import Problem, Seeds, noise
from .halves import BUDGETS, Half

# No licence is stated: fetched at run time, read where it lies, never kept in this repository.
GALAXYGRAD = Wheel(
    "galaxygrad", "0.1.0", "794cd4b22eb27547c3f902d74a193ab46d6e08b3f0923ad379543df26431eb5c", "galaxygrad", "", (), ()
)
SCORES = {"hsc32": "eqx_hsc_ScoreNet32", "ztf64": "eqx_ZTF_ScoreNet64"}  # the others are set aside for other checks
OF_HALF: dict[Half, tuple[str, ...]] = {"develop": ("hsc32",), "report": ("ztf64", "hsc32")}
GRID = "karras148"  # log(1 + 148^2) = 10 is the last time that they were trained at
PATCH, BLOCKS = 4, 4


def fetched(folder: Path) -> Path:
    """The wheel in ``folder``, downloaded if it is not there, with its hash checked.

    Raises:
        CheckoutError: it cannot be had, or is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.glob(f"{GALAXYGRAD.package}-{GALAXYGRAD.version}-*.whl"))
    file = there[0] if there else wheel.download(GALAXYGRAD, folder)
    wheel.check_hash(file, GALAXYGRAD)
    return file


def arrays(file: Path, name: str) -> list[torch.Tensor]:
    """The arrays of one member of the wheel, which lie one behind another as ``numpy.save`` writes them."""
    with zipfile.ZipFile(file) as archive:
        stream = io.BytesIO(archive.read(f"{GALAXYGRAD.prefix}/{name}.eqx"))
    size, found = stream.getbuffer().nbytes, []
    while stream.tell() < size:
        found.append(torch.from_numpy(np.ascontiguousarray(np.load(stream))).float())
    return found


class ScoreNet:
    """An MLP mixer on patches of ``y``, with the time as a second channel, that gives the score at that time.

    ``y = x / sqrt(1 + sigma^2)``, ``t = log(1 + sigma^2)`` and ``eps = -sqrt(1 - exp(-t)) score``.
    """

    def __init__(self, given: list[torch.Tensor]) -> None:
        values: Iterator[torch.Tensor] = iter(given)

        def take(count: int) -> list[torch.Tensor]:
            return [next(values) for _ in range(count)]

        self.into, out = take(2), take(2)
        self.blocks = [take(12) for _ in range(BLOCKS)]
        self.norm = take(2)
        self.last = float(next(values))
        # stored for a forward correlation
        self.out = out[0].transpose(0, 1).flip(2, 3).contiguous(), out[1].flatten()
        self.side = PATCH * math.isqrt(self.norm[0].shape[1])

    def score(self, y: torch.Tensor, t: float) -> torch.Tensor:
        """At ``y [B, 1, side, side]``."""
        h = torch.cat((y, torch.full_like(y, t / self.last)), 1)
        h = F.conv2d(h, self.into[0], self.into[1].flatten(), stride=PATCH).flatten(2)
        for block in self.blocks:
            patches, hidden, norms = block[:4], block[4:8], block[8:]
            h = h + _mlp(_norm(h, *norms[:2]), *patches)
            h = h.transpose(1, 2)
            h = h + _mlp(_norm(h, *norms[2:]), *hidden)
            h = h.transpose(1, 2)
        h = _norm(h, *self.norm).reshape(len(y), -1, self.side // PATCH, self.side // PATCH)
        return F.conv_transpose2d(h, *self.out, stride=PATCH)

    def eps(self, x: torch.Tensor, alpha: float, sigma: float, seeds: Seeds, guided: bool) -> torch.Tensor:
        """The noise in ``x = y + sigma z``."""
        with torch.no_grad():
            t = math.log1p(sigma**2)
            return -math.sqrt(-math.expm1(-t)) * self.score(x / math.sqrt(1 + sigma**2), t)

    def noise(self, seeds: Seeds) -> torch.Tensor:
        """Of the seeds."""
        return noise(seeds, 1, self.side, self.side)


def _norm(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(h, weight.shape, weight, bias)


def _mlp(h: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(h, a, b).relu(), c, d)


def published(half: Half, folder: Path) -> list[Problem]:
    """The published networks of a half, 50, 25 and 12 steps; the wheel is kept in ``folder``.

    Raises:
        CheckoutError: the wheel cannot be had.
    """
    file, found = fetched(folder), []
    for name in OF_HALF[half]:
        net = ScoreNet(arrays(file, SCORES[name]))
        group = "published network"
        if half == "report" and name in OF_HALF["develop"]:
            group += ", developed on"
        for steps, budgets in BUDGETS.items():
            key = f"{name}-{GRID}-{steps}-eps-unguided"
            found.append(
                Problem(key, "eps", GRIDS[GRID], steps, budgets, net.noise, net.eps, group=group)
            )  # fmt: skip
    return found
