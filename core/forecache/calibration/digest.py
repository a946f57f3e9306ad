"""A fingerprint of a network's weights: every bit of every tensor, at about the speed of reading them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

CHUNK = 1 << 16  # words of 8 bytes that share one sum; part of what a fingerprint is
AT_ONCE = {"cpu": 4}  # chunks worked on together: on a CPU what stays in its cache, elsewhere what fills the device
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size)


def fingerprint(network: torch.nn.Module) -> str:
    """A short hash of a network's parameters and saved buffers (its ``state_dict``) for a plan's key: names, dtypes,
    shapes and every bit of the values.

    Two networks that differ in a single number, a name, a shape or a precision differ in their fingerprint; CPU and GPU
    give the same one. Other differences are missed with a chance of about 1 in ``2^32`` at worst. It is no
    cryptographic hash: who wants to can make two networks with one fingerprint. Buffers that a network does not save
    (tables that it makes itself) are no part of it.

    Each 8 bytes are a word ``x_k``. It is mixed, ``y = x_k m_k``, ``z = y ^ (y >> 32)``, and ``sum_k z_k m_{k+1}`` is
    taken over chunks of words, all mod ``2^64``, on the device that holds them; the odd multipliers m depend on the
    position. An odd number has an inverse and so has the fold: a change of one word changes the sum. The fold brings
    down what products leave in the highest bits, where the signs of numbers lie. The host reads all sums at once, one
    for 512 KiB of weights. A tensor that is not contiguous is copied, one at a time.

    Raises:
        ValueError: a tensor whose values are not there (on the meta device, as under sequential offloading, or not yet
            made) or cannot be read as bytes; its name is in the message.
    """
    tables: dict[torch.device, torch.Tensor] = {}
    labels: list[str] = []
    sums: list[torch.Tensor] = []
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        for name, value in sorted(network.state_dict().items()):
            for label, tensor in _leaves(name, value):
                labels.append(f"{label} {tensor.dtype} {tuple(tensor.shape)}" if tensor is not None else label)
                sums.append(_sums(label, tensor, tables) if tensor is not None else torch.empty(0, dtype=torch.int64))
        found = _read(sums)
    digest = hashlib.sha256()
    for label, each in zip(labels, found, strict=True):
        digest.update(f"{len(label)} {label} {len(each)}".encode("utf-8", "surrogatepass"))
        digest.update(each.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor | None]]:
    """The plain tensors that make up an entry of a state dict, each with a label; ``None``: the label says it all."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(f"{name}[{key!r}]", each)
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for k, each in enumerate(value):
            yield from _leaves(f"{name}[{k}]", each)
    elif not isinstance(value, torch.Tensor):  # a module's extra state; other objects have no bytes of their own
        yield f"{name}: {value!r}" if isinstance(value, PLAIN) else f"{name}: {type(value).__name__}", None
    elif torch.nn.parameter.is_lazy(value) or value.is_meta:
        raise ValueError(
            f"fingerprint: the values of {name!r} are not there to be read (on the meta device, as under sequential "
            "offloading, or not yet made)"
        )
    elif hasattr(value, "__tensor_flatten__"):  # a quantised weight of several tensors, a shard
        for part in value.__tensor_flatten__()[0]:
            yield from _leaves(f"{name}.{part} of {type(value).__name__}", getattr(value, part))
    elif value.is_quantized:
        yield f"{name} {value.qscheme()} {value.dtype}", value.int_repr()
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield f"{name}: {value.q_scale()!r} {value.q_zero_point()}", None
        else:
            yield f"{name}.scales {value.q_per_channel_axis()}", value.q_per_channel_scales()
            yield f"{name}.zero_points", value.q_per_channel_zero_points()
    elif value.layout == torch.sparse_coo:
        whole = value.coalesce()
        yield from ((f"{name}.indices", whole.indices()), (f"{name} {tuple(value.shape)}", whole.values()))
    else:
        yield name, value


def _sums(name: str, tensor: torch.Tensor, tables: dict[torch.device, torch.Tensor]) -> torch.Tensor:
    """The sums of a tensor's chunks, int64 on its device."""
    try:
        words, rest = _words(tensor)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"fingerprint: {name!r} ({type(tensor).__name__}, {tensor.dtype}, {tensor.layout}) cannot be read as bytes"
            f": {error}"
        ) from error
    if words.device not in tables:
        tables[words.device] = torch.from_numpy(_multipliers(CHUNK + 1)).to(words.device)
    table, sums = tables[words.device], []
    whole = len(words) // CHUNK * CHUNK
    rows = words[:whole].view(-1, CHUNK)
    blocks = [*torch.split(rows, AT_ONCE.get(words.device.type, 64)), words[None, whole:], rest[None]]
    work = torch.empty((2, max(block.numel() for block in blocks)), dtype=torch.int64, device=words.device)
    for block in blocks:
        if count := block.numel():
            n = block.shape[1]
            mixed, high = (each[:count].view(-1, n) for each in work)
            torch.mul(block, table[:n], out=mixed)
            torch.bitwise_right_shift(mixed, 32, out=high).bitwise_and_(0xFFFFFFFF)  # without the sign
            sums.append(mixed.bitwise_xor_(high).mul_(table[1 : n + 1]).sum(1))
    return torch.cat(sums) if sums else torch.empty(0, dtype=torch.int64)


def _words(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of a tensor in its logical order as int64: whole words, and one of the bytes that are left."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return (torch.empty(0, dtype=torch.int64),) * 2
    raw = flat.view(torch.uint8)
    if raw.storage_offset() % 8:  # a part of a larger tensor that words of 8 bytes do not fit
        raw = raw.clone()
    whole = len(raw) // 8 * 8
    last = torch.zeros(8 if whole < len(raw) else 0, dtype=torch.uint8, device=raw.device)
    last[: len(raw) - whole] = raw[whole:]
    return raw[:whole].view(torch.int64), last.view(torch.int64)


def _multipliers(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Odd numbers of 64 bits that look random, always the same (splitmix64)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)


def _read(sums: list[torch.Tensor]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """All sums on the host: one copy from each device."""
    found: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
    for device in {each.device for each in sums}:
        mine = [k for k, each in enumerate(sums) if each.device == device]
        together = torch.cat([sums[k] for k in mine]).cpu()
        parts = torch.split(together, [len(sums[k]) for k in mine])
        found.update({k: part.numpy() for k, part in zip(mine, parts, strict=True)})
    return [found[k] for k in range(len(sums))]
