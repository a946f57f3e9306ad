"""A pretended CUDA device in a CPU's memory that counts what would make the host wait for a real one.

A tensor of it says ``cuda:0`` and hides its values: what reads them has to come by here. Counted: copies to the host,
and what returns a number, a truth value or a shape that depends on values (``reads``); copies from pageable memory, or
of pinned memory without ``non_blocking`` (``uploads``). Reading a value without a copy, ``numpy()``, raises, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

CUDA = torch.device("cuda", 0)
WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.randn, torch.rand)


class Counter:
    """How often the host waited."""

    def __init__(self) -> None:
        self.reads = self.uploads = 0

    @property
    def waits(self) -> int:
        return self.reads + self.uploads


_counter = Counter()


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; ``hidden`` has its values."""

    hidden: torch.Tensor

    @staticmethod
    def __new__(cls, hidden: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            hidden.shape,
            strides=hidden.stride(),
            storage_offset=hidden.storage_offset(),
            dtype=hidden.dtype,
            device="meta",
        )  # fmt: skip  so much for C++, which would look for CUDA's runtime before it indexes
        made.hidden = hidden
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    is_meta, is_cuda = False, True  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        foreign = [leaf for leaf in given if not isinstance(leaf, OnDevice) and leaf.dim()]
        away = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        masked = name.startswith("index") and any(leaf.dtype == torch.bool for leaf in given)
        if name in WAITING or masked or (name == "_to_copy" and away):
            _counter.reads += 1
        elif name == "copy_" and foreign:
            if foreign[0] is args[0]:
                _counter.reads += 1
            else:
                _counter.uploads += 1
        elif foreign:
            raise RuntimeError(f"{func}: expected all tensors on {CUDA}, got one on {foreign[0].device}")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        owners = {id(leaf.hidden): leaf for leaf in given if isinstance(leaf, OnDevice)}
        plain = _pytree.tree_map_only(OnDevice, lambda x: x.hidden, (args, kwargs))
        out = func(*plain[0], **plain[1])
        if away:
            return out
        return _pytree.tree_map_only(torch.Tensor, lambda x: owners[id(x)] if id(x) in owners else OnDevice(x), out)


class _Factories(TorchFunctionMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Makes tensors on the device, and carries them there."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = bool(kwargs.pop("pin_memory", False))
        if func in (*MAKERS, torch.tensor, torch.as_tensor) and _is_here(kwargs.get("device")):
            kwargs["device"] = "cpu"
            if func not in MAKERS:  # from numbers in the host's memory
                _counter.uploads += 1
            return OnDevice(func(*args, **kwargs))
        if func in (torch.Tensor.to, torch.Tensor.cuda) and not isinstance(args[0], OnDevice):
            words = [*args[1:], kwargs.get("device")]
            if func is torch.Tensor.cuda or any(map(_is_here, words)):
                waits = not (kwargs.get("non_blocking") and getattr(args[0], "pinned", False))
                _counter.uploads += waits
                dtypes = [word for word in (*args[1:], kwargs.get("dtype")) if isinstance(word, torch.dtype)]
                return OnDevice(args[0].clone() if not dtypes else args[0].to(dtypes[0], copy=True))
        if func is torch.Tensor.pin_memory:
            pinned, made = True, args[0].clone()
        else:
            made = func(*args, **kwargs)
        if pinned:
            made.pinned = True
        return made


def _is_here(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def put(value: torch.Tensor) -> OnDevice:
    """A copy of ``value`` on the device, not counted."""
    return OnDevice(value.detach().clone())


@contextmanager
def device() -> Iterator[Counter]:
    """The device is there; its counter begins at nothing."""
    _counter.reads = _counter.uploads = 0
    with _Factories():
        yield _counter


@contextmanager
def waits(counter: Counter, into: list[int]) -> Iterator[None]:
    """Append to ``into`` how often the host waited within."""
    before = counter.waits
    yield
    into.append(counter.waits - before)
