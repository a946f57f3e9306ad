"""Train the reference network of Hunyuan3D-2.1: ``python -m benchmarks.training.hunyuan21 CHECKOUT``.

Rectified flow with the upstream's convention: ``x_t = (1 - t) noise + t data``, ``v = data - noise``, t rising to 1.
Uniform t (the default of the upstream's ``create_transport``), 10 % of the conditions dropped for guidance, AdamW with
cosine decay, exponential average of weights. Deterministic for a seed on one machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from forecache_lab.generators.reference import TRAINING_SEEDS, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE, PictureConditioner
from forecache_lab.generators.reference.weights import FOLDER, fill

from .fit import fit


def data(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``[S, 64, 64]`` and pictures ``[S, 1, 32, 32]`` of the solids ``seeds``."""
    latents, pictures = [], []
    for seed in seeds:
        _, distance = solids.solid(seed)
        latents.append(hunyuan21.to_latent(solids.grid(distance, hunyuan21.RESOLUTION)[None]))
        pictures.append(solids.picture(distance, PICTURE)[None])
    return torch.cat(latents), torch.cat(pictures)


def train(
    checkout: Path, out: Path, iterations: int, batch: int, seed: int, rate: float, every: int, resume: Path | None
) -> None:
    upstream = hunyuan21.load(checkout)
    torch.manual_seed(seed)
    network, conditioner = upstream.Network(**hunyuan21.NETWORK), PictureConditioner()
    modules = {"network": network, "conditioner": conditioner}
    if resume is not None:
        fill(resume, modules)
    start = time.time()
    latents, pictures = data(TRAINING_SEEDS)
    print(f"{len(latents)} solids in {time.time() - start:.0f} s: mean {latents.mean():.2f}, std {latents.std():.2f}")

    def loss() -> torch.Tensor:
        pick = torch.randint(len(latents), (batch,))
        target, noise = latents[pick], torch.randn(batch, hunyuan21.TOKENS, hunyuan21.CHANNELS)
        t = torch.rand(batch)
        keep = (torch.rand(batch, 1, 1) > 0.1).float()
        context = {"main": conditioner(pictures[pick])["main"] * keep}
        mixed = torch.lerp(noise, target, t[:, None, None])
        error: torch.Tensor = (network(mixed, t, context) - (target - noise)).square().mean()
        return error

    network.train()
    fit(modules, loss, out, iterations, rate, every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds hy3dshape/hy3dshape")
    parser.add_argument("--out", type=Path, default=FOLDER / "hunyuan21.safetensors")
    parser.add_argument("--iterations", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="weights to start from (default: random)")
    parser.add_argument("--save-every", type=int, default=500)
    a = parser.parse_args()
    train(a.checkout, a.out, a.iterations, a.batch, a.seed, a.rate, a.save_every, a.resume)


if __name__ == "__main__":
    main()
