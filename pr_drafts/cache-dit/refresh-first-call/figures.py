"""Four generations from the same noise in transformer-only mode, without and with the change, each in its own process."""

import subprocess
import sys

STEPS, WARMUP, DIM, GENERATIONS = 28, 8, 16, 4


def generations(separate_cfg):
    import cache_dit
    import torch
    from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(DIM, DIM)

        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states + torch.tanh(self.linear(hidden_states))

    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer_blocks = torch.nn.ModuleList([Block() for _ in range(4)])

        def forward(self, hidden_states):
            for block in self.transformer_blocks:
                hidden_states = block(hidden_states)
            return hidden_states

    torch.manual_seed(0)
    transformer = Transformer()
    cache_dit.enable_cache(
        BlockAdapter(
            transformer=transformer, blocks=transformer.transformer_blocks, forward_pattern=ForwardPattern.Pattern_3
        ),
        cache_config=DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            num_inference_steps=STEPS,
            max_warmup_steps=WARMUP,
            enable_separate_cfg=separate_cfg,
            steps_computation_mask=[1] * WARMUP + [0, 1] * ((STEPS - WARMUP) // 2),
            steps_computation_policy="static",
        ),
        calibrator_config=TaylorSeerCalibratorConfig(),
    )
    first = None
    for n in range(GENERATIONS):
        x = torch.randn(1, 8, DIM, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for _ in range(STEPS):
                v = transformer(x)
                if separate_cfg:
                    uncond = transformer(x + 1.0)
                    v = uncond + 2.0 * (v - uncond)
                x = x - 0.05 * v
        first = x if first is None else first
        calls = transformer._context_manager.current_context.transformer_executed_steps
        stats = cache_dit.summary(transformer, logging=False)[-1]
        off = float((x - first).norm() / first.norm())
        print(
            f"    generation {n}: relative distance to generation 0 {off:.1e}, calls counted {calls},"
            f" cached steps {len(stats.cached_steps)} + {len(stats.cfg_cached_steps)}"
        )


if sys.argv[1] == "one":
    sys.path.insert(0, sys.argv[2])
    generations(sys.argv[3] == "separate")
else:
    print(f"A transformer of 4 blocks, width {DIM}, {STEPS} steps, random weights, float32, CPU.")
    for label, tree in zip(("without the change", "with the change"), sys.argv[1:3]):
        for cfg in ("one call", "separate"):
            print(f"  {label}, {'separate CFG' if cfg == 'separate' else 'one call a step'}", flush=True)
            command = [sys.executable, __file__, "one", tree, cfg]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print("\n".join(line for line in out.splitlines() if line.startswith("    generation")))
