"""Train a reference network of TRELLIS: ``python -m benchmarks.training.trellis CHECKOUT STAGE``.

Flow matching with the upstream's convention: ``x_t = (1 - t) data + (s + (1 - s) t) noise``, ``v = (1 - s) noise -
data``, the network sees ``1000 t``. Here t is uniform and stratified over a batch: the upstream's logit-normal t
starves both ends, and the last step of a sampler is its longest. The sparse structure comes first, with the
conditioner; the structured latent is trained on true voxels with that conditioner frozen, because one condition serves
both stages. What is shipped: ``sparse_structure --iterations 4000 --batch 16``, stopped after the save at 3250, then
``slat --iterations 1500 --batch 8``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from forecache_lab.generators.reference import CALIBRATION_SEED, TRAINING_SEEDS, solids, trellis, trellis_latents
from forecache_lab.generators.reference.pictures import PictureConditioner
from forecache_lab.generators.reference.weights import FOLDER, fill

from .fit import fit

HELD_OUT = range(CALIBRATION_SEED, CALIBRATION_SEED + 96)
BINS = 10


@dataclass
class Solids:
    """Of ``S`` solids: pictures ``[S, 1, 32, 32]``, structures ``[S, 8, 8, 8, 8]``, voxels and their latents."""

    pictures: torch.Tensor
    structures: torch.Tensor
    voxels: list[torch.Tensor]
    """``[N, 3]``, int32."""
    feats: list[torch.Tensor]
    """``[N, 8]``, normalised."""


def data(seeds: Iterable[int]) -> Solids:
    """The solids ``seeds`` as the networks see them."""
    made = Solids(torch.empty(0), torch.empty(0), [], [])
    pictures, structures = [], []
    for seed in seeds:
        _, distance = solids.solid(seed)
        pictures.append(solids.picture(distance))
        coarse = solids.grid(distance, trellis_latents.VOXELS, centres=True)[None]
        structures.append(trellis_latents.to_structure(coarse))
        coords = trellis_latents.occupied(coarse).argwhere()
        fine = solids.grid(distance, 2 * trellis_latents.VOXELS, centres=True)[None]
        made.voxels.append(coords[:, 1:].int())
        made.feats.append((trellis_latents.to_feats(fine, coords) - trellis.SLAT_MEAN) / trellis.SLAT_STD)
    made.pictures, made.structures = torch.stack(pictures), torch.cat(structures)
    return made


def cached(count: int, path: Path | None) -> Solids:
    """The first ``count`` solids of training; kept in ``path``, if given, for the next run (30 ms a solid)."""
    if path is not None and path.is_file():
        return Solids(**torch.load(path))
    made = data(TRAINING_SEEDS[:count])
    if path is not None:
        torch.save(vars(made), path)
    return made


def mix(clean: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy state and velocity of ``clean`` at ``t`` (broadcast), with noise drawn here."""
    noise = torch.randn_like(clean)
    s = trellis.SIGMA_MIN
    return (1 - t) * clean + (s + (1 - s) * t) * noise, (1 - s) * noise - clean


class StructureStage:
    """Network, conditioner and squared error of the sparse structure."""

    def __init__(self, upstream: SimpleNamespace, folder: Path) -> None:
        self.network = upstream.models.SparseStructureFlowModel(**trellis.STRUCTURE)
        self.conditioner = PictureConditioner()
        self.modules: dict[str, nn.Module] = {"network": self.network, "conditioner": self.conditioner}
        self.out, self.frozen = folder / f"{trellis.STRUCTURE_WEIGHTS}.safetensors", False

    def errors(self, source: Solids, pick: list[int], t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the velocity, ``[B]``, of the solids ``pick`` at ``t [B]``."""
        x, v = mix(source.structures[pick], t[:, None, None, None, None])
        error: torch.Tensor = (self.network(x, 1000 * t, cond) - v).square().flatten(1).mean(1)
        return error


class SlatStage:
    """Network and squared error of the structured latent; the conditioner is that of the sparse structure."""

    def __init__(self, upstream: SimpleNamespace, folder: Path) -> None:
        self.network, self.SparseTensor = upstream.models.SLatFlowModel(**trellis.SLAT), upstream.SparseTensor
        self.modules: dict[str, nn.Module] = {"network": self.network}
        self.conditioner = PictureConditioner()
        fill(folder / f"{trellis.STRUCTURE_WEIGHTS}.safetensors", {"conditioner": self.conditioner})
        self.out, self.frozen = folder / f"{trellis.SLAT_WEIGHTS}.safetensors", True

    def errors(self, source: Solids, pick: list[int], t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """As :meth:`StructureStage.errors`; a solid counts once, whatever the number of its voxels."""
        item = torch.repeat_interleave(torch.tensor([len(source.voxels[k]) for k in pick]))
        coords = torch.cat([item.int()[:, None], torch.cat([source.voxels[k] for k in pick])], 1)
        x, v = mix(torch.cat([source.feats[k] for k in pick]), t[item, None])
        rows = (self.network(self.SparseTensor(feats=x, coords=coords), 1000 * t, cond).feats - v).square().mean(1)
        return torch.zeros(len(pick)).index_add(0, item, rows) / item.bincount()


STAGES: dict[str, Any] = {"sparse_structure": StructureStage, "slat": SlatStage}


def held_out(stage: StructureStage | SlatStage, source: Solids, batch: int) -> list[float]:
    """Mean error by tenths of t, from t = 0 (data) to t = 1 (noise), with the condition."""
    torch.manual_seed(1)
    count, found = len(source.pictures), []
    for k in range(BINS):
        parts = []
        for first in range(0, count, batch):
            pick = list(range(first, min(first + batch, count)))
            with torch.no_grad():
                cond = stage.conditioner(source.pictures[pick])["main"]
                parts.append(stage.errors(source, pick, (k + torch.rand(len(pick))) / BINS, cond))
        found.append(float(torch.cat(parts).mean()))
    return found


def train(
    checkout: Path, name: str, folder: Path, iterations: int, batch: int, seed: int, rate: float, every: int,
    resume: bool, count: int, keep: Path | None,
) -> None:  # fmt: skip
    upstream = trellis.load(checkout)
    torch.manual_seed(seed)
    stage = STAGES[name](upstream, folder)
    if resume:
        fill(stage.out, stage.modules)
    start = time.time()
    source = cached(count, keep)
    every_feat = torch.cat(source.feats)
    print(f"{len(source.pictures)} solids in {time.time() - start:.0f} s")
    print(f"structures: mean {source.structures.mean():.2f}, std {source.structures.std():.2f}")
    print(f"feats: mean {every_feat.mean():.2f}, std {every_feat.std():.2f}, {len(every_feat)} voxels", flush=True)

    def loss() -> torch.Tensor:
        pick = torch.randint(len(source.pictures), (batch,)).tolist()
        t = (torch.arange(batch) + torch.rand(batch)) / batch
        kept = (torch.rand(batch, 1, 1) > 0.1).float()
        with torch.set_grad_enabled(not stage.frozen):
            cond = stage.conditioner(source.pictures[pick])["main"] * kept
        mean: torch.Tensor = stage.errors(source, pick, t, cond).mean()
        return mean

    for module in stage.modules.values():
        module.train()
    fit(stage.modules, loss, stage.out, iterations, rate, every)
    fill(stage.out, stage.modules)  # as shipped: the average, in float16
    errors = held_out(stage, data(HELD_OUT), batch)
    print(f"held-out error by tenths of t: {' '.join(f'{e:.3f}' for e in errors)}; mean {sum(errors) / BINS:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds trellis")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of both files of weights")
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out (default: random)")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--solids", type=int, default=10_000)
    parser.add_argument("--data", type=Path, help="keep the solids in this file, for the other stage")
    a = parser.parse_args()
    train(
        a.checkout, a.stage, a.out, a.iterations, a.batch, a.seed, a.rate, a.save_every, a.resume, a.solids, a.data
    )  # fmt: skip


if __name__ == "__main__":
    main()
