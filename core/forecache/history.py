"""The history of a run: the snapshots of a structured value, stream by stream.

A value (a tensor, a dictionary of tensors, the two branches of the guidance) is taken apart into streams. A stream is
one leaf of it, or a group of leaves; each has its own snapshots and its own rule. Everything that forecasts holds one
history: :class:`forecache.Forecaster`, :class:`forecache.AdaptiveGuidance` and the calibrator for cache-dit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import tree
from .corrector import Corrector
from .groups import Groups
from .snapshots import Array, read
from .streams import Audit, Stream
from .trace import Step
from .tree import Guided

Asked = tuple[torch.Tensor, Callable[[Array], None]]  #: numbers ``[n, 1]`` on a device, and who is told them, ``[n]``


class Packed(NamedTuple):
    """A value taken apart: one tensor for each stream, and what is needed to put it together again."""

    values: Mapping[str, torch.Tensor]
    structure: tree.Structure
    shapes: Mapping[str, torch.Size]  #: of the leaves


def as_stream(name: str, tensor: torch.Tensor) -> Packed:
    """A tensor that is one stream, which is called ``name``."""
    return Packed({name: tensor}, tree.flatten(tensor)[1], {name: tensor.shape})


class History:
    """Snapshots of a structured value.

    Args:
        make: makes the stream of a name, when its first value arrives.
        groups: leaves that share a stream.

    Attributes:
        streams: by name; empty as long as there is nothing to forecast from.
    """

    def __init__(self, make: Callable[[str], Stream], groups: Groups | None = None) -> None:
        self._make, self.groups = make, groups or Groups({}, None)
        self.clear()

    def clear(self) -> None:
        """Free every snapshot; the next value may have any form."""
        self.streams: dict[str, Stream] = {}
        self._structure: tree.Structure | None = None
        self._shapes: Mapping[str, torch.Size] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of snapshots held now."""
        return sum(stream.snapshots.nbytes for stream in self.streams.values())

    @property
    def step(self) -> int | None:
        """The newest computed step; ``None``: no snapshot."""
        return next((int(stream.steps[-1]) for stream in self.streams.values()), None)

    @property
    def time(self) -> float | None:
        """The time of the newest computed step; ``None``: no snapshot."""
        return next((stream.snapshots.times[-1] for stream in self.streams.values()), None)

    # --- form ---------------------------------------------------------------------------------------------------------
    def pack(self, value: Any) -> Packed:
        """``value`` taken apart; nothing of it is kept.

        Raises:
            TypeError: no tensor among its leaves.
            ValueError: branches of a :class:`Guided` that differ in structure; groups that do not fit.
        """
        leaves, structure = tree.flatten(value)
        if isinstance(value, Guided) and value.uncond is not None and not tree.same(*tree.branches(structure)):
            raise ValueError("value: the branches of Guided must have one structure")
        return Packed(self.groups.pack(leaves), structure, {name: leaf.shape for name, leaf in leaves.items()})

    def unpack(self, values: Mapping[str, torch.Tensor]) -> Any:
        """One tensor for each stream, put together to a value of the structure that was observed last."""
        assert self._structure is not None
        return tree.unflatten(self.groups.unpack(values, self._shapes), self._structure)

    def same_structure(self, packed: Packed) -> bool:
        """Whether a value has the structure of those before; the second of two branches may come or go."""
        if self._structure is None:
            return False
        before, now = tree.branches(self._structure), tree.branches(packed.structure)
        return len(before) == len(now) and tree.same(before[0], now[0])

    def differs(self, packed: Packed) -> str:
        """In what the form of a value differs from that of the snapshots, in words; "": in nothing."""
        if self._structure is not None and not self.same_structure(packed):
            return f"{tree.describe(self._structure)} before, {tree.describe(packed.structure)} now"
        known = {name: stream.snapshots for name, stream in self.streams.items()}
        found = (known[name].differs(value, name) for name, value in packed.values.items() if name in known)
        return "; ".join(filter(None, found))

    # --- values -------------------------------------------------------------------------------------------------------
    def observe(
        self, step: int, time: float, packed: Packed, *, score: bool = True, asked: Sequence[Asked] = ()
    ) -> dict[str, Audit]:
        """Take a computed value as the newest snapshot of its streams. A stream that it does not have ends.

        Nothing changes where the value is refused before it is stored. If storing fails, the history is cleared: one
        stream may have come further than another.

        Args:
            step: its index.
            time: the sampler's time there.
            packed: the value.
            score: compare the value with the forecast that would have been made of it.
            asked: what else is to be read from the device, since the host waits for it here.

        Returns:
            By stream, how far off the forecast would have been; nothing for a stream without snapshots.

        Raises:
            Unforecastable: a value that cannot be a snapshot.
        """
        streams = {name: self.streams.get(name) or self._make(name) for name in packed.values}
        rows = _products(streams, packed.values, asked)
        audits = {name: each.audit(step, time, rows[name]) for name, each in streams.items() if score}
        try:
            for name, value in packed.values.items():
                streams[name].push(step, time, value, rows[name])
        except BaseException:
            self.clear()
            raise
        self.streams, self._structure, self._shapes = streams, packed.structure, packed.shapes
        return {name: audit for name, audit in audits.items() if audit is not None}

    def forecast(self, step: int, time: float, entry: Step | None = None) -> dict[str, torch.Tensor]:
        """The forecast of every stream by its rule; ``entry`` of the trace is told how each was made."""
        values = {}
        for name, stream in self.streams.items():
            values[name], served = stream.forecast(step, time)
            if entry is not None:
                entry.tell(name, served)
        return values

    def corrected(self, corrector: Corrector, entry: Step) -> dict[str, torch.Tensor] | None:
        """The newest snapshots with the gap before them integrated again; ``None``: nothing is added to any. ``entry``
        of the trace is told how much.
        """
        found = {name: stream.corrected(corrector) for name, stream in self.streams.items()}
        if all(each is None for each in found.values()):
            return None
        entry.corrected.update({name: each[1] for name, each in found.items() if each is not None})
        return {n: self.streams[n].reuse() if each is None else each[0] for n, each in found.items()}

    def newest(self) -> dict[str, torch.Tensor]:
        """The newest snapshot of every stream, exactly."""
        return {name: stream.reuse() for name, stream in self.streams.items()}


def _products(
    streams: Mapping[str, Stream], values: Mapping[str, torch.Tensor], asked: Sequence[Asked]
) -> dict[str, Array]:
    """Dot products of each value with the snapshots of its stream; the host waits for the device once, for all of them
    and for what else is ``asked``.
    """
    queued = [streams[name].snapshots.queued(value, name) for name, value in values.items()]
    known = read([*queued, *(numbers for numbers, _ in asked)])
    for (_, tell), numbers in zip(asked, known[len(queued) :], strict=True):
        tell(numbers)
    return {
        name: streams[name].snapshots.products(value, name, row)
        for (name, value), row in zip(values.items(), known[: len(queued)], strict=True)
    }
