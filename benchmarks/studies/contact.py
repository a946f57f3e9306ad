"""The contact sheet of a reference network: ``python -m benchmarks.studies.contact hunyuan21 CHECKOUT OUT.png``.

Per family two test solids: the picture that the network sees, its uncached mesh, and a cached one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import trimesh

from forecache_lab import render
from forecache_lab.generators.reference import TEST_SEED, hunyuan21, solids
from forecache_lab.generators.reference.pictures import PICTURE


def main(checkout: Path, out: Path) -> None:
    from forecache_adapters import hunyuan21 as adapter

    torch.set_num_threads(1)
    pipe = hunyuan21.build(hunyuan21.load(checkout))

    def sample(seed: int, image: torch.Tensor) -> trimesh.Trimesh:
        meshes: list[trimesh.Trimesh] = pipe(
            image=[image], guidance_scale=hunyuan21.GUIDANCE, octree_resolution=64, enable_pbar=False,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return meshes[0]

    rows: list[list[Any]] = []
    for pair in range(2):
        pictures, uncached, cached = [], [], []
        for family in solids.FAMILIES:
            seed = TEST_SEED + pair
            image = solids.picture(solids.solid(seed, family)[1], PICTURE)[None]
            pictures.append(image[0, 0].numpy())
            uncached.append(sample(pair, image))
            with adapter.enabled(pipe, basis="dmd", interval=5, warmup=4):
                cached.append(sample(pair, image))
        rows += [pictures, uncached, cached]
    render.sheet(out, rows, solids.FAMILIES, ["condition", "uncached, 50 calls", "dmd, 13 calls"] * 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream", choices=["hunyuan21"])
    parser.add_argument("checkout", type=Path, help="patched checkout of the upstream")
    parser.add_argument("out", type=Path, help="the picture to write")
    given = parser.parse_args()
    try:
        main(given.checkout, given.out)
    except (FileNotFoundError, RuntimeError) as error:
        parser.exit(1, f"error: {error}\n")
