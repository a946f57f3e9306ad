"""What TaylorSeerState serves for outputs of different histories, and after its source is overwritten; both trees."""

import subprocess
import sys


def show():
    import torch
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    def serve(*steps):
        state = TaylorSeerState(taylor_factors_dtype=torch.float32)
        try:
            for outputs in steps:
                state.current_step += 1
                state.update(tuple(torch.full((1, n, 8), value) for n, value in outputs))
            state.current_step += 1
            return [f"{tuple(y.shape)} of {y.mean().item():g}" for y in state.predict()]
        except (KeyError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"

    def after_zeroing(dtype):
        state, y = TaylorSeerState(taylor_factors_dtype=dtype), torch.ones(3, dtype=dtype)
        state.current_step += 1
        state.update((y,))
        y.zero_()
        state.current_step += 1
        return state.predict()[0].tolist()

    print("    two steady outputs:        ", serve([(4, 1.0), (20, 1.0)], [(4, 2.0), (20, 3.0)]))
    print("    the second appears later:  ", serve([(4, 1.0)], [(4, 2.0), (20, 5.0)]))
    print("    the second changes shape:  ", serve([(4, 1.0), (20, 1.0)], [(4, 2.0), (12, 5.0)]))
    for dtype in (torch.float32, torch.bfloat16):
        print(f"    ones, source zeroed, {dtype}: {after_zeroing(dtype)}")


if sys.argv[1] == "one":
    sys.path.insert(0, sys.argv[2])
    show()
else:
    for label, tree in zip(("without the change", "with the change"), sys.argv[1:3]):
        print(f"  {label}", flush=True)
        command = [sys.executable, __file__, "one", tree]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip())
