"""Streams, fits, state, time and error of the bases, full and Lite, on a tiny random FLUX."""

import sys
import time
from pathlib import Path


sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]

import forecast_basis  # noqa: E402
import forwards  # noqa: E402
import torch  # noqa: E402
from diffusers import FluxTransformer2DModel  # noqa: E402


torch.set_num_threads(1)
STEPS = 28
torch.manual_seed(0)
model = FluxTransformer2DModel(
    in_channels=64, num_layers=4, num_single_layers=8, attention_head_dim=32, num_attention_heads=8,
    joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=[8, 12, 12],
).eval()
kind, double, single = type(model), type(model.transformer_blocks[0]), type(model.single_transformer_blocks[0])
original = kind.forward
kind.num_steps = STEPS
inputs = {
    "hidden_states": torch.randn(1, 256, 64),
    "encoder_hidden_states": torch.randn(1, 32, 64),
    "pooled_projections": torch.randn(1, 64),
    "img_ids": torch.zeros(256, 3),
    "txt_ids": torch.zeros(32, 3),
}
fits, fit_dmd = [], forecast_basis.fit_dmd
forecast_basis.fit_dmd = lambda *args: fits.append(0) or fit_dmd(*args)


@torch.no_grad()
def denoise():
    kwargs, start = {}, time.process_time()
    found = torch.stack([
        model(**inputs, timestep=torch.full((1,), 1 - i / 400), joint_attention_kwargs=kwargs).sample
        for i in range(STEPS)
    ])
    return found, time.process_time() - start, kwargs.get("cache_dic")


def state(cache_dic):
    """Recorded modules and their MB."""
    entries = [
        entry
        for stream in cache_dic["cache"][-1].values()
        for layer in stream.values()
        for entry in layer.values()
        if isinstance(entry, dict) and entry
    ]
    tensors = [each for entry in entries for each in entry.values() if isinstance(each, torch.Tensor)]
    tensors += [each for entry in entries if "window" in entry for each in entry["window"].snapshots]
    return len(entries), sum(each.numel() * each.element_size() for each in tensors) / 1e6


reference, seconds, _ = denoise()
print(f"Tiny random FLUX (4 + 8 blocks, width 256, 288 tokens), {STEPS} steps, 7 of them full (first_enhance 3, threshold 6),")
print("CPU, 1 thread, seconds of CPU time of one run, relative error over all steps: plumbing and cost, not quality.")
print(f"  {'uncached':24s} {seconds:6.2f} s")
for lite in (False, True):
    for basis in ("taylor", "hermite", "dmd"):
        kind.forecast_basis = basis
        if lite:
            forwards.use_lite_forward(model)
        else:
            kind.forward = forwards.taylorseer_flux_forward
            double.forward = forwards.taylorseer_flux_double_block_forward
            single.forward = forwards.taylorseer_flux_single_block_forward
        fits.clear()
        found, seconds, cache_dic = denoise()
        modules, size = state(cache_dic)
        error = float((found - reference).norm() / reference.norm())
        name = f"{'Lite' if lite else 'full'}, {basis}"
        print(f"  {name:24s} {seconds:6.2f} s  streams {modules:3d}  state {size:6.2f} MB  fits {len(fits):3d}  error {error:.4f}")
kind.forward = original
