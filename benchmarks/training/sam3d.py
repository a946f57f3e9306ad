"""Train the reference network of SAM 3D: ``python -m benchmarks.training.sam3d CHECKOUT``.

The upstream's own loss (``ShortCut.loss`` without self-consistency: the network is sampled with many steps) and its
guidance's own dropping of conditions. Here t is uniform and stratified over a batch: the upstream's logit-normal t
starves both ends, and the last step of a sampler is its longest. What is shipped is the defaults, stopped after the
save at 2200.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from forecache_lab.generators.reference import CALIBRATION_SEED, TRAINING_SEEDS, sam3d, sam3d_latents, sam3d_trained
from forecache_lab.generators.reference.weights import FOLDER, fill

from .fit import fit

HELD_OUT = range(CALIBRATION_SEED, CALIBRATION_SEED + 64)
BINS = 10
POSE_WEIGHT = 0.25  # of each leaf of the pose in the loss; shape has 1


def data(seeds: Iterable[int]) -> dict[str, torch.Tensor]:
    """Leaves ``[S, tokens, channels]`` of posed solids."""
    made = [sam3d_trained.posed(seed) for seed in seeds]
    return {name: torch.cat([each[name] for each in made]) for name in sam3d_latents.LEAVES}


def stratified(size: tuple[int], generator: torch.Generator | None = None) -> torch.Tensor:
    """Uniform times, one in each of ``size`` equal parts of [0, 1]; called as the upstream's time samplers are."""
    (count,) = size
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


def loss_options() -> dict[str, Any]:
    """What the generator's loss needs beside what sampling does."""
    weights = {name: 1.0 if name == "shape" else POSE_WEIGHT for name in sam3d_latents.LEAVES}
    return {"self_consistency_prob": 0.0, "loss_weights": weights, "training_time_sampler_fn": stratified}


@torch.no_grad()
def held_out(generator: Any, conditioner: sam3d_trained.Conditioner, clean: dict[str, torch.Tensor]) -> str:
    """Mean squared error of the velocity, shape and pose apart, by tenths of t, with the condition."""
    torch.manual_seed(1)
    cond, lines = conditioner(sam3d_latents.measure(clean)), []
    for k in range(BINS):
        t = (k + torch.rand(len(cond))) / BINS
        noise = generator._generate_x0(clean)
        x, v = generator._generate_xt(noise, clean, t), generator._generate_target(noise, clean)
        made = generator.reverse_fn.backbone(x, 1000 * t, cond, d=0 * t)
        error = {name: (made[name] - v[name]).square().mean().item() for name in v}
        pose = sum(error[name] for name in sam3d_latents.POSE) / len(sam3d_latents.POSE)
        lines.append(f"{error['shape']:.3f}/{pose:.3f}")
    return " ".join(lines)


def train(
    checkout: Path, out: Path, iterations: int, batch: int, seed: int, rate: float, every: int, resume: bool,
    count: int, unconditional: float,
) -> None:  # fmt: skip
    upstream = sam3d.load(checkout)
    torch.manual_seed(seed)
    random.seed(seed)  # the upstream drops conditions with it
    network, conditioner = sam3d_trained.network(upstream), sam3d_trained.Conditioner()
    generator = sam3d.generator(upstream, network, sam3d.STRUCTURE, **loss_options()).requires_grad_(True)
    generator.reverse_fn.p_unconditional = unconditional
    modules = {"network": network, "conditioner": conditioner}
    if resume:
        fill(out, modules)
    start = time.time()
    source = data(TRAINING_SEEDS[:count])
    print(f"{count} posed solids in {time.time() - start:.0f} s")
    for name in sam3d_latents.LEAVES:
        print(f"{name}: mean {source[name].mean():.2f}, std {source[name].std():.2f}", flush=True)

    def loss() -> torch.Tensor:
        pick = torch.randint(count, (batch,))
        clean = {name: leaf[pick] for name, leaf in source.items()}
        total: torch.Tensor = generator.loss(clean, conditioner(sam3d_latents.measure(clean)))[0]
        return total

    for module in (generator, conditioner):
        module.train()
    fit(modules, loss, out, iterations, rate, every)
    fill(out, modules)  # as shipped: the average, in float16
    print(f"held-out error by tenths of t, shape/pose: {held_out(generator.eval(), conditioner, data(HELD_OUT))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds sam3d_objects")
    parser.add_argument("--out", type=Path, default=FOLDER / "sam3d_structure.safetensors", help="file of weights")
    parser.add_argument("--iterations", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out (default: random)")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--solids", type=int, default=8000)
    parser.add_argument("--unconditional", type=float, default=0.2, help="share of batches without condition")
    a = parser.parse_args()
    train(
        a.checkout, a.out, a.iterations, a.batch, a.seed, a.rate, a.save_every, a.resume, a.solids,
        a.unconditional,
    )  # fmt: skip


if __name__ == "__main__":
    main()
