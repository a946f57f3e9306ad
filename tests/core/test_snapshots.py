"""The window of snapshots: the only place that touches large tensors."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch

from forecache import snapshots
from forecache.snapshots import Snapshots, bordered, forward_error

SHAPES = [((), None), ((), 0), ((7,), 0), ((3, 5), 0), ((3, 5), 1), ((3, 5), -1), ((3, 5), None), ((2, 3, 4), 1),
          ((2, 3, 4), -1),
          ((2, 3, 4), None), ((1, 4), 0)]  # fmt: skip


def filled(values: list[torch.Tensor], capacity: int = 4, batch_dim: int | None = 0) -> Snapshots:
    window = Snapshots(capacity, batch_dim)
    for t, value in enumerate(values):
        window.push(float(t), value)
    return window


def split(value: torch.Tensor, batch_dim: int | None) -> torch.Tensor:
    """``[items, d]``, by the definition."""
    if batch_dim is None or value.ndim <= 1:
        return value.reshape(1, -1)
    return torch.stack([part.reshape(-1) for part in value.unbind(batch_dim)])


@pytest.mark.parametrize(("shape", "batch_dim"), SHAPES)
def test_incremental_gram_and_ring_order(shape: tuple[int, ...], batch_dim: int | None) -> None:
    values = [torch.randn(shape, dtype=torch.float64) for _ in range(11)]
    window = Snapshots(4, batch_dim)
    for t, value in enumerate(values):
        window.push(float(t), value)
        kept = values[max(0, t - 3) : t + 1]
        flat = torch.stack([split(v, batch_dim) for v in kept], 1)
        assert window.times == [float(s) for s in range(max(0, t - 3), t + 1)]
        assert window.items == flat.shape[0]
        full = (flat @ flat.mT).numpy()
        assert window.gram == pytest.approx(full, rel=1e-12, abs=1e-12)
        if t >= 4:  # control: a ring read in the order of its slots is another matrix
            turned = np.roll(full, 1, axis=(1, 2))
            assert np.abs(window.gram - turned).max() > 1e-3
        for j, v in enumerate(kept):  # unit weights hand each snapshot back, bit for bit
            got = window.combine(np.eye(len(kept))[j])
            assert got.shape == v.shape and torch.equal(got, v)


@pytest.mark.parametrize(("shape", "batch_dim"), SHAPES)
def test_weights_apply_per_item(shape: tuple[int, ...], batch_dim: int | None) -> None:
    values = [torch.randn(shape, dtype=torch.float64) for _ in range(6)]
    window = filled(values, 4, batch_dim)
    w = np.random.default_rng(0).normal(size=(window.items, 4))
    flat = torch.stack([split(v, batch_dim) for v in values[-4:]], 1)
    expected = torch.einsum("bn,bnd->bd", torch.from_numpy(w), flat)
    assert torch.allclose(split(window.combine(w), batch_dim), expected, rtol=1e-12)
    if window.items > 1:  # control: one item's weights for all
        assert not torch.allclose(split(window.combine(w[0]), batch_dim), expected)


@pytest.mark.parametrize("batch_dim", [0, None])
def test_the_forward_error_is_the_tensor_norm(batch_dim: int | None) -> None:
    values = [torch.randn(3, 50, dtype=torch.float64) for _ in range(6)]
    window = filled(values[:5], 4, batch_dim)
    row = window.products(values[5])
    w = np.random.default_rng(0).normal(size=(window.items, 4))
    w /= w.sum(1, keepdims=True)
    expected = split(values[5] - window.combine(w), batch_dim).norm(dim=1).numpy()
    gram = bordered(window.gram, row)
    assert forward_error(w, gram) == pytest.approx(expected, rel=1e-9)
    assert forward_error(w[:, ::-1], gram) != pytest.approx(expected, rel=1e-4)  # control


def test_small_differences_survive() -> None:
    """Float64 products: a change of 1e-3 per snapshot is resolved to 1e-6; float32 entries would be off by half."""
    base, step = torch.randn(2, 200_000)
    values = [base + 1e-3 * j * step for j in range(3)]
    window = filled([v[None] for v in values])
    e = np.array([0, -1.0, 1.0])
    from_gram = float(e @ window.gram[0] @ e)
    truth = float((values[2].double() - values[1].double()).square().sum())
    assert from_gram == pytest.approx(truth, rel=1e-6)
    rough = window.gram[0].astype(np.float32).astype(np.float64)  # control
    assert abs(float(e @ rough @ e) / truth - 1) > 1e-3


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.randn(2, 1000).bfloat16() for _ in range(4)]
    w = [0.5, -1.5, 0.75, 1.25]
    whole = filled(values)
    monkeypatch.setattr(snapshots, "CHUNK", 64)
    parts = filled(values)
    assert parts.gram == pytest.approx(whole.gram, rel=1e-12)
    assert torch.equal(parts.combine(w), whole.combine(w))


def test_streams_read_together_are_each_what_they_are_alone() -> None:
    """Of other sizes, numbers of chunks, items, dtypes and windows."""
    values = [torch.randn(shape).to(dtype) for shape, dtype in (((1, 9), torch.float32), ((2, 70_000), torch.bfloat16))]
    windows = [filled([value * j for j in range(1, n)]) for n, value in zip((5, 3), values, strict=True)]
    together = snapshots.read([window.queued(value) for window, value in zip(windows, values, strict=True)])
    for window, value, row in zip(windows, values, together, strict=True):
        assert np.array_equal(window.products(value, known=row), window.products(value))
    assert together[0].shape == (1, 5) and together[1].shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept_and_weights_are_not_rounded(dtype: torch.dtype) -> None:
    value = (torch.randn(2, 333) + 3).to(dtype)
    window = filled([value] * 4)
    w = np.array([0.123456789, -1.317, 0.9314, 0])
    w[-1] = 1 - w.sum()
    out = window.combine(w)
    assert out.dtype == dtype
    assert torch.allclose(out.double(), value.double(), rtol=1e-6 if dtype == torch.float32 else 1e-12)
    if dtype == torch.bfloat16:  # control: weights in bfloat16 no longer sum to 1
        rounded = sum(x * a for x, a in zip([value] * 4, torch.tensor(w).bfloat16(), strict=True))
        assert not torch.equal(rounded, value)


def test_no_fast_matmul_mode_touches_the_sum() -> None:
    values = [torch.randn(2, 1000) for _ in range(4)]
    window, w = filled(values), np.array([0.3, -1.1, 0.7, 1.1])
    before = torch.get_float32_matmul_precision()
    try:
        exact = window.combine(w)
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(window.combine(w), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    expected = sum(v.double() * a for v, a in zip(values, w, strict=True))
    assert torch.allclose(exact.double(), expected, atol=2e-6)


# --- ownership and modes ----------------------------------------------------------------------------------------------
def test_snapshots_are_copies() -> None:
    source = torch.randn(2, 5)
    window = Snapshots(2)
    window.push(0.0, source)
    kept = source.clone()
    source.mul_(7)
    out = window.combine([1.0])
    assert torch.equal(out, kept) and not torch.equal(out, source)
    out.zero_()  # what is handed out is not the buffer
    assert torch.equal(window.combine([1.0]), kept)


def test_gradients_are_dropped() -> None:
    value = torch.randn(2, 5, requires_grad=True)
    window = filled([value, value * 2])
    out = window.combine([0.5, 0.5])
    assert not out.requires_grad and out.grad_fn is None
    assert window._buffer is not None and not window._buffer.requires_grad  # holds no graph
    assert torch.equal(out, (1.5 * value).detach())


@pytest.mark.parametrize(("inside", "outside"), itertools.permutations([torch.inference_mode, torch.enable_grad]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_mode_may_come_and_go(inside: Any, outside: Any, dtype: torch.dtype) -> None:
    window = Snapshots(2)
    for t, mode in enumerate((inside, outside, inside, outside)):
        with mode():
            window.push(float(t), torch.full((2, 3), float(t), dtype=dtype))
    for mode in (inside, outside):
        with mode():
            assert torch.equal(window.combine([-1.0, 2.0]), torch.full((2, 3), 4.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    values = [torch.randn(2, 500).to(dtype) for _ in range(4)]
    w = [0.123, 0.456, -0.321, 0.742]
    plain = filled(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = filled(values)
        out = mixed.combine(w)
        control = torch.ones(2, 3) @ torch.ones(3, 2)
    assert control.dtype == torch.bfloat16  # autocast was on
    assert np.array_equal(mixed.gram, plain.gram)
    assert out.dtype == dtype and torch.equal(out, plain.combine(w))


# --- refusals ---------------------------------------------------------------------------------------------------------
def state(window: Snapshots) -> tuple[Any, ...]:
    return (
        list(window.times),
        window.gram.copy().tolist(),
        window.combine(np.eye(len(window))[-1]).tolist(),
        window.nbytes,
    )


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (torch.ones(2, 4), ["shape", r"\[2, 3\]", r"\[2, 4\]"]),
        (torch.ones(3, 2), ["shape"]),
        (torch.ones(2, 3, dtype=torch.float64), ["dtype", "float32, now", "float64"]),
        (torch.ones(2, 3, dtype=torch.int64), ["dtype", "int64"]),
        (torch.ones(2, 3, device="meta"), ["device cpu, now meta"]),
        (torch.tensor([[1, 2, 3], [1, float("nan"), 3]]), ["NaN or infinity"]),
        (torch.tensor([[1, 2, 3], [1, -float("inf"), 3]]), ["NaN or infinity"]),
    ],
)
def test_a_refused_value_changes_nothing(value: torch.Tensor, names: list[str]) -> None:
    window = filled([torch.ones(2, 3) * j for j in range(1, 4)], capacity=3)
    before = state(window)
    with pytest.raises(ValueError) as caught:
        window.push(9.0, value)
    for name in names:
        assert re.search(name, str(caught.value))
    assert state(window) == before
    window.push(9.0, torch.ones(2, 3))  # control: a good one does change it
    assert state(window) != before


@pytest.mark.parametrize(
    "bad", [torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 3, dtype=torch.complex64), torch.empty(0, 3)]
)
def test_a_first_value_must_be_a_floating_point_tensor(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        Snapshots(3).push(0.0, bad)


def test_the_first_value_may_be_refused_and_then_come_again() -> None:
    window = Snapshots(3)
    with pytest.raises(ValueError, match="NaN"):
        window.push(0.0, torch.tensor([float("nan")]))
    assert len(window) == 0 and window.nbytes == 0
    window.push(0.0, torch.ones(4))
    assert len(window) == 1


def test_finite_values_whose_squares_overflow_are_accepted() -> None:
    window = filled([torch.full((4,), 1e200, dtype=torch.float64), torch.full((4,), 2e200, dtype=torch.float64)])
    assert torch.equal(window.combine([0.0, 1.0]), torch.full((4,), 2e200, dtype=torch.float64))


@pytest.mark.parametrize("time", [1.0, 0.5, 0.0, float("nan"), float("inf")])
def test_time_moves_on(time: float) -> None:
    window = filled([torch.ones(2, 3), torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=r"time must move on from 1\.0"):
        window.push(time, torch.ones(2, 3))
    falling = Snapshots(3)
    for t in (1.0, 0.5, 0.25):
        falling.push(t, torch.ones(2))
    assert falling.times == [1.0, 0.5, 0.25]


def test_other_arguments() -> None:
    for capacity in (0, 9):
        with pytest.raises(ValueError, match=r"1\.\.8"):
            Snapshots(capacity)
    with pytest.raises(ValueError, match="batch_dim"):
        Snapshots(2, 2).push(0.0, torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="no snapshot"):
        Snapshots(2).combine([1.0])


def test_clear_frees_and_forgets() -> None:
    window = filled([torch.ones(2, 3)] * 2)
    assert window.nbytes == 4 * 6 * 4
    window.clear()
    assert window.nbytes == 0 and len(window) == 0
    window.push(0.0, torch.ones(5, dtype=torch.float64))  # another shape and dtype
    assert window.nbytes == 4 * 5 * 8
