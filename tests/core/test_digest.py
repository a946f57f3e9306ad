"""A fingerprint of weights: no number, name, shape or precision may change unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import device_standin
from device_standin import put
from forecache import fingerprint
from forecache.calibration import digest

DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.uint8,
    torch.int64, torch.bool, torch.complex64,
]  # fmt: skip


class Holding(torch.nn.Module):
    """A network whose state dict is given."""

    def __init__(self, **entries: Any) -> None:
        super().__init__()
        self.entries = entries

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.entries


def of(**entries: Any) -> str:
    return fingerprint(Holding(**entries))


def raw(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits, as ``size`` numbers of ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, (size,), generator=generator).bool()
    width = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (size * width,), generator=generator, dtype=torch.uint8).view(dtype)


def test_weights_apart_have_fingerprints_apart() -> None:
    a, b = torch.nn.Linear(300, 7), torch.nn.Linear(300, 7)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b) and len(fingerprint(a)) == 16
    with torch.no_grad():
        b.bias[3] += 1e-3
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(torch.nn.Linear(7, 300)) != fingerprint(a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 1003])
def test_every_bit_of_every_number_counts(dtype: torch.dtype, size: int) -> None:
    weights = raw(size, dtype)
    width = weights.element_size()
    known = {of(w=weights)}
    places = range(size) if size < 100 else (0, 1, 7, 8, 500, size - 3, size - 1)
    bits = range(8 * width) if dtype != torch.bool else range(1)
    for k in places:
        for bit in bits:
            changed = weights.clone()
            changed.view(torch.uint8)[k * width + bit // 8] ^= 1 << bit % 8
            known.add(of(w=changed))
    assert len(known) == 1 + len(places) * len(bits)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(3, 40), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_signs_swaps_and_shifts_of_many_numbers_count(seed: int, size: int, dtype: torch.dtype) -> None:
    """Changes that a plain sum of words cannot see: the signs of two numbers at the ends of words, an exchange."""
    weights = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    turned = [weights.clone() for _ in range(4)]
    turned[0][[0, -1]] *= -1
    turned[1] = -weights
    turned[2] = weights.roll(1)
    turned[3] = weights.flip(0)
    assert len({of(w=each) for each in (weights, *turned)}) == 5


def test_signs_at_the_ends_of_words() -> None:
    """Each lies in the highest bit of a word, where a product mod 2^64 keeps nothing but its parity."""
    weights = torch.ones(8)
    known = {of(w=weights)}
    for i, j in [(1, 3), (1, 5), (3, 7), (5, 7)]:
        changed = weights.clone()
        changed[[i, j]] *= -1
        known.add(of(w=changed))
    known |= {of(w=-weights), of(w=-torch.ones(4, dtype=torch.float64)), of(w=torch.ones(4, dtype=torch.float64))}
    assert len(known) == 8  # guard: the fold


def test_large_tensors_are_read_to_the_end_whatever_is_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    size = digest.CHUNK * 8 * 3 + 13  # three chunks of words, one word and a part of one
    weights = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = of(w=weights)
    for k in (0, digest.CHUNK * 8 - 1, digest.CHUNK * 8, digest.CHUNK * 24 - 1, digest.CHUNK * 24, size - 1):
        changed = weights.clone()
        changed[k] ^= 128
        assert of(w=changed) != expected
    chunks = weights[: digest.CHUNK * 24].view(3, -1)
    assert of(w=chunks.reshape(-1)) != of(w=chunks.roll(1, 0).reshape(-1)), "chunks have an order"
    for at_once in (1, 2, 64):  # as a GPU works on more
        monkeypatch.setitem(digest.AT_ONCE, "cpu", at_once)
        assert of(w=weights) == expected


def test_names_shapes_precision_and_buffers_count() -> None:
    one = torch.arange(12.0)
    different = [
        {"w": one}, {"v": one}, {"w": one.view(3, 4)}, {"w": one.view(4, 3)}, {"w": one.bfloat16()},
        {"w": one.bfloat16().float().double()}, {"w": one[:6], "x": one[6:]}, {"w": one[:5], "x": one[5:]}, {},
        {"w": one.view(torch.int32)},
    ]  # fmt: skip
    assert len({of(**each) for each in different}) == len(different)
    norm = torch.nn.BatchNorm1d(4)
    before = fingerprint(norm)
    norm.train()(torch.randn(8, 4))
    assert fingerprint(norm) != before, "running statistics are a saved buffer"
    norm.register_buffer("table", torch.ones(3), persistent=False)
    before = fingerprint(norm)
    norm.register_buffer("table", torch.ones(9), persistent=False)
    assert fingerprint(norm) == before, "a table that the network makes itself may grow in use"


def test_the_same_numbers_have_one_fingerprint_however_they_lie_in_memory() -> None:
    weights = torch.randn(6, 10)
    other = torch.empty(3 + 60)[3:].view(6, 10).copy_(weights)  # words of 8 bytes do not fit its beginning
    assert of(w=weights) == of(w=weights.t().contiguous().t()) == of(w=other) == of(w=torch.nn.Parameter(weights))
    image = torch.randn(2, 3, 4, 5)
    assert of(w=image) == of(w=image.to(memory_format=torch.channels_last))
    assert of(w=torch.ones(4, 1).expand(4, 3)) == of(w=torch.ones(4, 3))
    assert of(w=weights.t()) != of(w=weights.t().reshape(6, 10)), "control"
    assert of(w=torch.tensor([1 + 2j]).conj()) == of(w=torch.tensor([1 - 2j]))


def test_a_device_is_read_once() -> None:
    weights = {f"w{k}": torch.randn(5 + k, generator=torch.Generator().manual_seed(k)) for k in range(9)}
    with device_standin.device() as counter:
        there = of(**{name: put(each) for name, each in weights.items()})
        assert counter.reads == 1
    assert there == of(**weights), "and gives what a CPU gives"


@pytest.mark.parametrize("lazy", [False, True])
def test_weights_that_are_not_there_are_refused_by_name(lazy: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LazyLinear(3) if lazy else torch.nn.Linear(3, 3))
    if not lazy:
        network[1].to("meta")
    with pytest.raises(ValueError, match=r"fingerprint: the values of '1\.\w+' are not there to be read"):
        fingerprint(network)


class Tagged(torch.Tensor):
    """A parameter that says of itself what its numbers mean, as quantised checkpoints do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: its values mean something else")


class Two(torch.Tensor):
    """A weight of two tensors."""

    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def __new__(cls, low: torch.Tensor, high: torch.Tensor) -> Two:
        made = torch.Tensor._make_wrapper_subclass(cls, low.shape, dtype=torch.float32)
        made.low, made.high = low, high
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["low", "high"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: it has no storage of its own")


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_other_tensors_are_read_by_their_parts() -> None:
    x = torch.tensor([[0.5, -1.0], [2.0, 0.25]])

    def each(x: torch.Tensor, scale: float) -> list[dict[str, Any]]:
        scales, zeros = torch.tensor([scale, 0.1], dtype=torch.float64), torch.tensor([0, 0])
        return [
            {"w": torch.quantize_per_tensor(x * scale, scale, 0, torch.qint8)},
            {"w": torch.quantize_per_channel(x, scales, zeros, 0, torch.qint8)},
            {"w": (torch.quantize_per_tensor(x, scale, 0, torch.quint8), None)},
            {"w": (x * scale).to_sparse()},
            {"w": Two(x, x * scale)},
            {"w": (x * scale).as_subclass(Tagged)},
            {"w": x, "_extra_state": {"scale": scale, "kept": b"1", "other": object()}},
        ]

    first, again, scaled = ([of(**entry) for entry in each(x, s)] for s in (0.1, 0.1, 0.2))
    assert first == again and len({*first, *scaled}) == 14


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"fingerprint: 'w' .*cannot be read as bytes"):
        of(w=torch.eye(3).to_sparse_csr())
