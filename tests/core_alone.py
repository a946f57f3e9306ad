"""Run in an environment with torch and numpy only: the core must import and work there."""

import importlib.util
import sys

import torch

from forecache import Forecaster, hicache
from forecache.hicache import tree as hicache_tree

for absent in ("scipy", "trimesh", "typer", "rich", "git", "diffusers", "hicache_pp"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed: this environment proves nothing"
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"forecache_adapters", "forecache_patches", "forecache_lab", "forecache_cli"}, loaded
with Forecaster("dmd", steps=20, interval=3) as cache:
    for i in range(20):
        cache.step(i, lambda i=i: torch.full((2, 8), float(i)))
    assert cache.trace.computed < 20
assert callable(hicache.hicache_init) and callable(hicache_tree.hicache_init)
print("core alone: ok")
