"""The conditioning entries of a run: which history a part of a batch belongs to.

ComfyUI hands a sampler's step to the network as a list of entries for each condition (positive, negative): several
prompts, areas, masks. It puts as many of them into one batch as fit into memory now, so where an entry stands in a
batch says nothing. Their ``uuid`` alone says little more: an area of the positive condition that the negative one lacks
is copied to it, ``uuid`` and all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[int, Hashable]  # an entry's condition and its uuid there


@dataclass(frozen=True)
class Entry:
    """What stays the same of an entry from step to step.

    Attributes:
        call: 0, or how many times the step had asked for conditions before (perturbed attention asks once more).
        condition: its place in the guidance: 0 positive, 1 negative. uuid: ComfyUI's.
        part: 0, or how many times the step had called the network for the entry before (tiles).
    """

    call: int
    condition: int
    uuid: Hashable
    part: int = 0

    @property
    def name(self) -> str:
        """In traces."""
        name = {0: "cond", 1: "uncond"}.get(self.condition, f"cond {self.condition}")
        name += f" of call {self.call + 1}" if self.call else ""
        return name + (f" part {self.part + 1}" if self.part else "")


def told_apart(conds: Sequence[Any]) -> list[Any]:
    """The conditions, in each of which a second entry of one ``uuid`` gets another."""
    out: list[Any] = []
    for entries in conds:
        seen: Counter[Hashable] = Counter()
        out.append(None if entries is None else [])
        for each in entries or ():
            uuid = each.get("uuid")
            out[-1].append({**each, "uuid": f"{uuid} #{seen[uuid] + 1}"} if seen[uuid] else each)
            seen[uuid] += 1
    return out


def by_place(conds: Sequence[Any]) -> dict[Place, Mapping[str, Any]]:
    """The entries of the conditions."""
    return {(k, each.get("uuid")): each for k, entries in enumerate(conds) for each in entries or ()}


def options_of(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ComfyUI says about a batch (``transformer_options``), among the arguments of the model's call."""
    for each in (*arguments, *keywords.values()):
        if isinstance(each, Mapping) and "cond_or_uncond" in each:
            return each
    return {}


def places(options: Mapping[str, Any]) -> list[Place]:
    """Of the entries of a batch, in its order."""
    return list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))


@dataclass
class Named:
    """The history that an entry has now: its name, the kind of its calls, the step of the last one."""

    name: str
    kind: Mapping[str, Any]
    last: int


class Names:
    """Names of the histories. An entry that was away for a step (the edge of an interval), or that is called in another
    way than at the step before, gets another.

    Attributes:
        all: the names given so far.
    """

    def __init__(self) -> None:
        self.known: dict[Entry, Named] = {}
        self.count: Counter[str] = Counter()
        self.all: list[str] = []

    def at(self, entry: Entry, i: int, kind: Mapping[str, Any]) -> tuple[str, str, list[str]]:
        """The history of an entry at step ``i``, the one that ends by that ("": none), and in what its kind differs."""
        known, other, ended = self.known.get(entry), list[str](), ""
        if known is not None and i - known.last <= 1:
            other = [name for name in (*known.kind, *kind) if known.kind.get(name) != kind.get(name)]
        if known is None or i - known.last > 1 or other:
            ended = known.name if known else ""
            self.count[entry.name] += 1
            count = self.count[entry.name]
            known = self.known[entry] = Named(entry.name if count == 1 else f"{entry.name} #{count}", kind, i)
            self.all.append(known.name)
        known.kind, known.last = kind, i
        return known.name, ended, list(dict.fromkeys(other))
