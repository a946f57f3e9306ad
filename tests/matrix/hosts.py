"""What the matrix asks of a host: to make a target, to live through something with it, and to run it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from matrix.pairs import Row

STEPS = 12
LIVES = ("fresh", "copy", "deepcopy", "rebuilt", "from_pipe", "pickled")
SETTINGS = ("alone", "threads", "nested", "offloaded", "compiled blocks")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Stop(Exception):
    """What a callback of the user's raises."""


@dataclasses.dataclass
class Outcome:
    """Of one run: what it returned, or raised, and how often the network's own code was called."""

    values: list[torch.Tensor]
    raised: type[BaseException] | None
    calls: int
    runs: int = 1

    def equals(self, other: Outcome, still: int) -> bool:
        """Bit for bit, with as many calls but for those of ``still`` steps of dt = 0 in each run."""
        alike = len(self.values) == len(other.values) and all(map(_equal, self.values, other.values))
        runs = self.runs if self.calls else 0
        return alike and self.raised is other.raised and self.calls == other.calls - still * runs


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


class Host(Protocol):
    """One adapter and what it is attached to."""

    name: str
    tables: int  #: how many tables of rows; more than one where a run costs nothing

    def prepare(self, checkouts: Callable[..., Any]) -> None:
        """Import what the host needs; ``checkouts`` makes a checkout of an upstream, or skips."""

    def factors(self) -> Mapping[str, Sequence[str]]:
        """Values by factor; ``event``, ``life``, ``setting`` and ``dtype`` are known to the tests."""

    def allowed(self, row: Row) -> bool:
        """Whether the host has this combination at all."""

    def still(self, row: Row) -> int:
        """How many steps of a run move nothing, and so cost no call with us."""

    def make(self, row: Row) -> Any:
        """A target, always with the same weights."""

    def relived(self, target: Any, life: str) -> Any:
        """The target after it was copied, made anew from its parts, or sent through a file."""

    def twin(self, target: Any) -> Any:
        """Another target around the same network, with a scheduler of its own."""

    def enable(self, target: Any, row: Row, **settings: Any) -> Any:
        """Attach; returns the handle."""

    def disable(self, target: Any) -> None:
        """Detach."""

    def sample(self, target: Any, row: Row, nested: Callable[[], Any] | None) -> Any:
        """One run with the row's event; ``nested`` is to be called within its second step."""

    def count(self) -> Callable[[], int]:
        """Counts the calls of the network's own code so far."""

    def notes(self, handle: Any) -> list[str]:
        """What the traces say."""


def relived(target: Any, life: str) -> Any:
    """The lives that need nothing of the host."""
    return {
        "fresh": lambda: target,
        "copy": lambda: copy.copy(target),
        "deepcopy": lambda: copy.deepcopy(target),
        "pickled": lambda: pickle.loads(pickle.dumps(target)),
    }[life]()


def outcome(host: Any, target: Any, row: Row, counter: Callable[[], int], nested: Any = None) -> Outcome:
    """One run, with whatever it raises."""
    before, values, raised = counter(), [], None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = host.sample(target, row, nested)
        values = [leaf for leaf in torch.utils._pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
    except Exception as error:
        raised = type(error)
    return Outcome([value.detach().clone() for value in values], raised, counter() - before)


def lived(host: Any, row: Row, settings: Mapping[str, Any] | None) -> tuple[Any, list[Outcome]]:
    """Everything a row asks for; ``settings``: ``None`` is the control, without us. Returns the handle and the runs."""
    target, handle, counter = host.make(row), None, host.count()
    torch.manual_seed(0)  # of schedulers that draw without a generator

    def attach(each: Any) -> Any:
        return None if settings is None else host.enable(each, row, **settings)

    attach(target)  # what is copied is attached already
    target, original = host.relived(target, row["life"]), target
    handle = attach(target)
    if row["setting"] == "threads":
        twin = host.twin(target)
        attach(twin)
        found: dict[int, Outcome] = {}
        both = [
            threading.Thread(target=lambda k=k, each=each: found.update({k: outcome(host, each, row, lambda: 0)}))
            for k, each in enumerate((target, twin))
        ]
        for each in both:
            each.start()
        for each in both:
            each.join()
        return handle, [found[0], found[1]]
    if row["setting"] == "nested":
        twin, inner = host.twin(target), []
        attach(twin)
        plain = row if row["event"] == "controlnet" else {**row, "event": "none"}
        run = outcome(host, target, row, counter, lambda: inner.append(outcome(host, twin, plain, lambda: 0)))
        return handle, [dataclasses.replace(run, runs=2), *inner]
    runs = [outcome(host, target, row, counter)]
    if original is not target:
        runs.append(outcome(host, original, row, counter))
    return handle, runs
