"""Whether forecasts stay right where a network's outputs live in buffers that its next call overwrites, and in half
precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from forecache import Forecaster
from forecache.snapshots import DTYPES, Snapshots

from .networks import Plain, Size, random_network

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SMALL = Size(tokens=256, channels=16, width=256, depth=4, heads=4, words=32, word_width=64)
TINY = Size(tokens=16, channels=4, width=32, depth=1, heads=2, words=3, word_width=8)
STEPS, CALLS = 24, 9


def function(device: torch.device, dtype: torch.dtype, size: Size = SMALL) -> tuple[Function, torch.Tensor]:
    """A network ``f(x, t)`` and noise for it."""
    network = random_network(lambda: Plain(size), device, dtype)
    made = torch.Generator().manual_seed(2)
    context = torch.randn(1, size.words, size.word_width, generator=made).to(device, dtype)
    x = torch.randn(1, size.tokens, size.channels, generator=made).to(device, dtype)

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network(x, t, context)
        return out

    return f, x


def static(f: Function, x: torch.Tensor) -> Function:
    """``f`` with one output buffer for all calls, as a captured graph has it: a CPU's stand-in for :func:`graphed`."""
    out = torch.empty_like(f(x, torch.zeros(len(x), device=x.device)))

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return out.copy_(f(x, t))

    return call


def graphed(f: Function, x: torch.Tensor) -> Function:
    """``f`` captured in a CUDA graph: a call copies its arguments into the graph's and replays it."""
    inputs = x.clone(), torch.zeros(len(x), device=x.device)
    side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call, unused-ignore]
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):  # libraries choose and allocate outside of the capture
        for _ in range(3):
            f(*inputs)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = f(*inputs)

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for mine, given in zip(inputs, (x, t), strict=True):
            mine.copy_(given)
        graph.replay()
        return out

    return call


def compiled(f: Function, x: torch.Tensor, mode: str = "reduce-overhead") -> Function:
    """``f`` through ``torch.compile`` with CUDA graphs of its own, warm."""
    quick = torch.compile(f, mode=mode)

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call, unused-ignore]
        return quick(x, t)

    for _ in range(3):
        call(x, torch.zeros(len(x), device=x.device))
    return call


def trajectory(f: Function, x: torch.Tensor, rule: str, owned: bool) -> tuple[list[torch.Tensor], int]:
    """States of a cached run, and how many places its network's outputs lay in, all of them held to its end, so that no
    allocator gives a place out twice. ``owned``: they are copied first, so that nobody can overwrite them.
    """
    cache = Forecaster(rule, steps=STEPS, calls=CALLS)
    states: list[torch.Tensor] = []
    held: list[torch.Tensor] = []
    places: set[int] = set()
    with torch.no_grad(), cache:
        for i in range(STEPS):

            def compute(x: torch.Tensor = x, i: int = i) -> torch.Tensor:
                value = f(x, torch.full((len(x),), i / STEPS, device=x.device))
                places.add(value.data_ptr())
                held.append(value)
                return value.clone() if owned else value

            x = x + cache.step(i, compute) / STEPS
            states.append(x)
    return states, len(places)


def reused(f: Function, x: torch.Tensor, rule: str = "dmd") -> dict[str, Any]:
    """A cached run on outputs that are overwritten against one on copies of them, which it must equal bit by bit.

    ``places``: where the outputs lay; 1, else nothing was overwritten and nothing shown.
    """
    expected, _ = trajectory(f, x, rule, owned=True)
    got, places = trajectory(f, x, rule, owned=False)
    apart = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    return {"places": places, "difference": apart, "ok": places == 1 and apart == 0.0}


def rounding(
    values: torch.Tensor, weights: np.ndarray[Any, np.dtype[np.float64]], got: torch.Tensor, bounds: torch.dtype
) -> float:
    """Largest error of ``got`` against ``sum_j w_j v_j`` in float64, in units of what rounding may do: once to the
    values' dtype, and n times in ``bounds``, that of the weights and sums. At most 1 is right.
    """
    exact = values.double().cpu()
    w = torch.from_numpy(weights)[:, None]
    wanted, size = (w * exact).sum(0), (w.abs() * exact.abs()).sum(0)
    own, inner = torch.finfo(values.dtype), torch.finfo(bounds)
    allowed = own.eps / 2 * wanted.abs() + 2 * len(w) * inner.eps * size + own.smallest_normal * own.eps
    return float(((got.double().cpu() - wanted).abs() / allowed).max())


def exactness(device: torch.device, values: int = 100_000, n: int = 6) -> dict[str, float]:
    """:func:`rounding` of a combination in every dtype, TF32 allowed; and the relative error of the Gram matrix."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    found = {}
    try:
        for dtype in DTYPES:
            made = torch.Generator().manual_seed(3)
            window = (torch.randn(n, values, generator=made) + 3).to(device, dtype)
            weights = np.random.default_rng(0).normal(size=n)
            weights[-1] += 1 - weights.sum()
            snapshots = Snapshots(n, batch_dim=None)
            for j, value in enumerate(window):
                snapshots.push(float(j), value)
            got = snapshots.combine(weights)
            name = str(dtype).removeprefix("torch.")
            found[name] = rounding(window, weights, got, torch.promote_types(dtype, torch.float32))
            exact = window.double().cpu()
            gram = (exact @ exact.T).numpy()
            found[f"gram of {name}"] = float(np.abs(snapshots.gram[0] - gram).max() / np.abs(gram).max())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def checks(device: torch.device) -> dict[str, Any]:
    """All of them on ``device``; without CUDA, a static output buffer in the place of the graph.

    What fails (``torch.compile`` without a compiler or Triton) is an error in what is returned: the rest goes on.
    """
    found: dict[str, Any] = {"rounding": exactness(device)}
    with torch.no_grad():
        if device.type == "cuda":
            f, x = function(device, torch.bfloat16)
            for name, made in (("graph", graphed), ("compile", compiled)):
                try:
                    found[name] = reused(made(f, x), x)
                except Exception as error:  # of many kinds, none of them ours
                    found[name] = {"error": repr(error)[:300], "ok": False}
        else:
            f, x = function(device, torch.float32, TINY)
            found["static buffer"] = reused(static(f, x), x)
    return found
