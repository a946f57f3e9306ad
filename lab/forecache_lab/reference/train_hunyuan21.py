"""Train the reference network of Hunyuan3D-2.1: ``python -m forecache_lab.reference.train_hunyuan21 CHECKOUT``.

Rectified flow with the upstream's convention: ``x_t = (1 - t) noise + t data``, ``v = data - noise``, t rising to 1.
Uniform t (the default of the upstream's ``create_transport``), 10 % of the conditions dropped for guidance, AdamW with
cosine decay, exponential average of weights. Deterministic for a seed on one machine.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import hunyuan21, solids

TRAINING_SEEDS = range(0, 20_000)  # test and calibration pictures are drawn from other ranges: see `drift`


def data(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``[S, 64, 64]`` and pictures ``[S, 1, 32, 32]`` of the solids ``seeds``."""
    latents, pictures = [], []
    for seed in seeds:
        _, distance = solids.solid(seed)
        latents.append(hunyuan21.to_latent(solids.grid(distance, hunyuan21.RESOLUTION)[None]))
        pictures.append(solids.picture(distance, hunyuan21.PICTURE)[None])
    return torch.cat(latents), torch.cat(pictures)


def train(
    checkout: Path, out: Path, iterations: int, batch: int, seed: int, rate: float, every: int, resume: Path | None
) -> None:
    upstream = hunyuan21.load(checkout)
    torch.manual_seed(seed)
    network, conditioner = upstream.Network(**hunyuan21.NETWORK), hunyuan21.PictureConditioner()
    if resume is not None:
        hunyuan21.load_weights(resume, network, conditioner)
    named = {f"network.{k}": v for k, v in network.state_dict().items()}
    named |= {f"conditioner.{k}": v for k, v in conditioner.state_dict().items()}
    average = {k: v.clone().float() for k, v in named.items()}
    size = sum(v.numel() for v in named.values())
    print(f"{size / 1e6:.2f} M parameters, {2 * size / 2**20:.2f} MiB in float16")
    parameters = [*network.parameters(), *conditioner.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    start = time.time()
    latents, pictures = data(TRAINING_SEEDS)
    print(f"{len(latents)} solids in {time.time() - start:.0f} s: mean {latents.mean():.2f}, std {latents.std():.2f}")
    network.train()
    running, start = 0.0, time.time()
    for k in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (k + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * k / iterations)) / 2)
        pick = torch.randint(len(latents), (batch,))
        target, noise = latents[pick], torch.randn(batch, hunyuan21.TOKENS, hunyuan21.CHANNELS)
        t = torch.rand(batch)
        keep = (torch.rand(batch, 1, 1) > 0.1).float()
        context = {"main": conditioner(pictures[pick])["main"] * keep}
        mixed = torch.lerp(noise, target, t[:, None, None])
        loss = (network(mixed, t, context) - (target - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.999, (1 + k) / (10 + k))
        with torch.no_grad():
            for name, value in named.items():
                average[name].lerp_(value.float(), 1 - decay)
        running += loss.item()
        if (k + 1) % 100 == 0:
            print(f"{k + 1:6d}  loss {running / 100:.4f}  {time.time() - start:.0f} s", flush=True)
            running = 0.0
        if (k + 1) % every == 0 or k + 1 == iterations:
            partial = out.with_suffix(".partial")
            save_file({k: v.half().contiguous() for k, v in average.items()}, partial, {"iterations": str(k + 1)})
            partial.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds hy3dshape/hy3dshape")
    parser.add_argument("--out", type=Path, default=hunyuan21.WEIGHTS)
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
