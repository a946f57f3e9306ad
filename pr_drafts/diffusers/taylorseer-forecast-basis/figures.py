"""Errors, number of fits, memory and time of the three bases, on synthetic trajectories and on a tiny random model."""

import statistics
import time

from beside import both


_, after = both("taylorseer_cache")
import torch  # noqa: E402

from diffusers import FluxTransformer2DModel, TaylorSeerCacheConfig  # noqa: E402
from diffusers.hooks import snapshot_forecast  # noqa: E402


torch.set_num_threads(1)
STEPS = 50
fits = []
fit_dmd = snapshot_forecast.fit_dmd
snapshot_forecast.fit_dmd = lambda *args: fits.append(0) or fit_dmd(*args)


def computed(interval, before):
    return [i for i in range(STEPS) if i < before or (i - before - 1) % interval == 0]


def states(dtype):
    return {
        "taylor, order 1": after.TaylorSeerState(dtype, max_order=1),
        "taylor, order 2": after.TaylorSeerState(dtype, max_order=2),
        "hermite, order 1": after.TaylorSeerState(dtype, max_order=1, hermite_sigma=0.5),
        "hermite, order 2": after.TaylorSeerState(dtype, max_order=2, hermite_sigma=0.5),
        "dmd": after.DMDState(dtype),
    }


def trajectory(seed):
    """A constant, a decay and a damped oscillation, 4096 numbers; the field's smooth case, exact for no basis above."""
    g = torch.Generator().manual_seed(seed)
    a, b, c, d = (torch.randn(1, 4096, generator=g) for _ in range(4))
    angle = 0.15 + 0.1 * float(torch.rand(1, generator=g))

    def at(t):
        wave = torch.tensor(angle * t)
        return a + b * 0.96**t + 0.5 * 0.97**t * (c * torch.cos(wave) + d * torch.sin(wave))

    return at


print(f"1. Synthetic trajectories of 4096 numbers, {STEPS} steps, 3 full steps first; relative error of the skipped steps")
print("   from step 10 on, over 16 trajectories: median / p95. CPU, 1 thread, tiny data: no image quality.")
for dtype in (torch.float32, torch.bfloat16):
    for interval in (3, 5):
        rows = {name: [] for name in states(dtype)}
        for seed in range(16):
            at = trajectory(seed)
            for name, state in states(dtype).items():
                for step in range(STEPS):
                    state.current_step = step
                    if step in computed(interval, 3):
                        state.update((at(step).to(dtype),))
                    elif step >= 10:
                        rows[name].append(float((state.predict()[0].float() - at(step)).norm() / at(step).norm()))
        print(f"   {str(dtype):14s} interval {interval}:", end="")
        for name, errors in rows.items():
            print(f"  {name} {statistics.median(errors):.4f} / {statistics.quantiles(errors, n=20)[18]:.4f};", end="")
        print()

print("2. Cost on CPU, 1 thread, float32, window of 6: median of 9, ms, and state in MB")
for shape in ((1, 4096, 64), (1, 4096, 3072)):
    outputs = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    for name, state in states(torch.float32).items():
        update, predict = [], []
        for i in range(15):
            state.current_step = 3 * i
            start = time.perf_counter()
            state.update((outputs[i % 8],))
            update.append(time.perf_counter() - start)
            state.current_step += 1
            start = time.perf_counter()
            state.predict()
            predict.append(time.perf_counter() - start)
        kept = [each for window in getattr(state, "windows", []) for each in window.snapshots]
        kept += [factor for factors in state.taylor_factors.values() for factor in factors.values()]
        size = sum(each.numel() * each.element_size() for each in kept) / 1e6
        ms = [1000 * statistics.median(each[6:]) for each in (update, predict)]
        print(f"   {list(shape)} {name:17s} record {ms[0]:8.2f}  fit and forecast {ms[1]:8.2f}  state {size:7.1f}")

print("3. Tiny random FLUX (1 + 1 blocks), lite mode, batch of 2, 28 steps, interval 3 after 4: plumbing only")
torch.manual_seed(0)
model = FluxTransformer2DModel(
    in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
).eval()
inputs = {
    "hidden_states": torch.randn(2, 16, 4),
    "encoder_hidden_states": torch.randn(2, 8, 32),
    "pooled_projections": torch.randn(2, 32),
    "img_ids": torch.zeros(16, 3),
    "txt_ids": torch.zeros(8, 3),
}


@torch.no_grad()
def run():
    with model.cache_context("cond"):
        return torch.stack([model(**inputs, timestep=torch.full((2,), 1 - i / 400)).sample for i in range(28)])


for basis in ("taylor", "hermite", "dmd"):
    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=4, basis=basis, use_lite_mode=True,
            taylor_factors_dtype=torch.float32,
        )
    )
    fits.clear()
    found = run()
    model._reset_stateful_cache()
    model.disable_cache()
    if basis == "taylor":
        with model.cache_context("cond"):
            reference = run()
    error = float((found - reference).norm() / reference.norm())
    print(f"   {basis:8s} relative error {error:.4f}  fits {len(fits)} (2 items, 6 windows that are asked)")
