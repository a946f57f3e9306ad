"""What a module with two outputs is predicted as when one of them changes shape."""

from beside import both


before, after = both("taylorseer_cache")
import torch  # noqa: E402


def predicted(module, changed):
    state, lengths = module.TaylorSeerState(torch.float32, max_order=1), [4, 4]
    for step, value in ((0, 1.0), (1, 2.0)):
        state.current_step = step
        state.update(tuple(torch.full((1, n), value) for n in lengths))
        lengths[changed] = 6
        if step == 0:
            continue
    state.current_step = 3
    return [float(output[0, 0]) for output in state.predict()]


print("Two outputs that follow 1, 2 on steps 0 and 1; one of them has another shape on step 1. Asked for step 3.")
print("Right: 4 (the line) for the one that kept its shape, 2 (its newest value) for the other.")
for label, module in (("without the change", before), ("with the change", after)):
    for changed in (0, 1):
        try:
            found = predicted(module, changed)
        except (KeyError, RuntimeError) as error:
            found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(f"  {label:18s}  output {changed} changed: {found}")
