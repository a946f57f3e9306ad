"""What is predicted after the module has reused the memory of its output."""

from beside import both


before, after = both("taylorseer_cache")
import torch  # noqa: E402


print("An output of ones is recorded, its memory is set to zero, the next step is asked for. Right: 1.")
for label, module in (("without the change", before), ("with the change", after)):
    for stored in (torch.float32, torch.bfloat16):
        for feature in (torch.float32, torch.bfloat16):
            state, buffer = module.TaylorSeerState(stored, max_order=1), torch.ones(1, 4, dtype=feature)
            state.current_step = 0
            state.update((buffer,))
            buffer.zero_()
            state.current_step = 1
            found = float(state.predict()[0][0, 0])
            print(f"  {label:18s}  features {str(feature):14s} taylor_factors_dtype {str(stored):14s} predicted {found}")
