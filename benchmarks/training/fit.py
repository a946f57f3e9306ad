"""What the training scripts share: the optimizer, the average of weights that is shipped, and its file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def fit(
    modules: Mapping[str, nn.Module], loss: Callable[[], torch.Tensor], out: Path, iterations: int, rate: float,
    every: int,
) -> None:  # fmt: skip
    """Minimise ``loss`` (it draws its own batch): AdamW, cosine decay, exponential average of the weights.

    The average is written to ``out`` in float16, as ``<name of the module>.<name of the weight>``, every ``every``
    iterations and at the end. Deterministic for a seed on one machine.
    """
    named = {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}
    average = {k: v.clone().float() for k, v in named.items()}
    size = sum(v.numel() for v in named.values())
    print(f"{size / 1e6:.2f} M parameters, {2 * size / 2**20:.2f} MiB in float16", flush=True)
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    running, start = 0.0, time.time()
    for k in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (k + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * k / iterations)) / 2)
        value = loss()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.999, (1 + k) / (10 + k))
        with torch.no_grad():
            for name, weight in named.items():
                average[name].lerp_(weight.float(), 1 - decay)
        running += value.item()
        if (k + 1) % 100 == 0:
            print(f"{k + 1:6d}  loss {running / 100:.4f}  {time.time() - start:.0f} s", flush=True)
            running = 0.0
        if (k + 1) % every == 0 or k + 1 == iterations:
            partial = out.with_suffix(".partial")
            save_file({k: v.half().contiguous() for k, v in average.items()}, partial, {"iterations": str(k + 1)})
            partial.replace(out)
