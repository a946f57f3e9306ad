"""The conditioning entries of a run: which history a part of a batch belongs to.

ComfyUI hands a sampler's step to the network as a list of entries for each condition (positive, negative): several
prompts, areas, masks. It puts as many of them into one batch as fit into memory now, so where an entry stands in a
batch says nothing. Their ``uuid`` says little more: an area of the positive condition that the negative one lacks is
copied to it, ``uuid`` and all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """What stays the same of an entry from step to step.

    Attributes:
        call: 0, or how many times the step had asked for conditions before (perturbed attention asks once more).
        condition: its place in the guidance: 0 positive, 1 negative. uuid: ComfyUI's.
        copy: how many entries of this ``uuid`` stand before it in the condition.
        controls: which of its ControlNets are at work: where one begins or ends, the network's output jumps.
    """

    call: int
    condition: int
    uuid: Hashable
    copy: int
    controls: tuple[bool, ...] = ()


def labelled(call: int, conds: Sequence[Any], sigma: float) -> list[Any]:
    """The conditions with an :class:`Entry` in the place of each ``uuid``, which ComfyUI hands on with the batch."""
    out: list[Any] = []
    for condition, entries in enumerate(conds):
        seen: Counter[Hashable] = Counter()
        if entries is None:
            out.append(None)
            continue
        out.append([])
        for each in entries:
            uuid = each["uuid"]
            controls = tuple(at_work(each.get("control"), sigma))
            out[-1].append({**each, "uuid": Entry(call, condition, uuid, seen[uuid], controls)})
            seen[uuid] += 1
    return out


def at_work(control: Any, sigma: float) -> Iterator[bool]:
    """Of a ControlNet, and of those that it is applied on top of: whether sigma is in its range."""
    while control is not None:
        span = getattr(control, "timestep_range", None)
        yield span is None or float(span[1]) <= sigma <= float(span[0])
        control = getattr(control, "previous_controlnet", None)


def of_batch(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any] | None:
    """The entries of a batch, in its order, from the arguments of the model's call; ``None``: they are not known."""
    for each in (*arguments, *keywords.values()):
        if isinstance(each, Mapping) and "cond_or_uncond" in each:
            entries = list(each.get("uuids", ()))
            return entries if entries and all(isinstance(entry, Entry) for entry in entries) else None
    return None


class Names:
    """Names of the histories. An entry that was away for a step (the edge of an interval) gets another.

    Attributes:
        all: the names given so far.
    """

    def __init__(self) -> None:
        self.known: dict[Entry, str] = {}
        self.last: dict[Entry, int] = {}
        self.count: Counter[str] = Counter()
        self.all: list[str] = []

    def at(self, entry: Entry, i: int) -> str:
        """The history of an entry at step ``i``."""
        if entry not in self.known or i - self.last[entry] > 1:
            base = {0: "cond", 1: "uncond"}.get(entry.condition, f"cond {entry.condition}")
            base += f" of call {entry.call + 1}" if entry.call else ""
            self.count[base] += 1
            self.known[entry] = base if self.count[base] == 1 else f"{base} #{self.count[base]}"
            self.all.append(self.known[entry])
        self.last[entry] = i
        return self.known[entry]
