"""ControlNets run where the network does: a condition holds what asks one, and asks when the network is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


class Once:
    """Computes when it is wanted, and once."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute
        self.outputs: list[Any] = []

    def now(self) -> Any:
        """The output."""
        if not self.outputs:
            self.outputs.append(self.compute())
        return self.outputs[0]


class Deferred:
    """In the place of a ControlNet: the same, but for its output."""

    def __init__(self, control: Any) -> None:
        self.control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control, name)

    def get_control(self, x: Any, t: Any, cond: Mapping[str, Any], *args: Any, **kwargs: Any) -> Once:
        """ComfyUI's; ``cond`` is copied, since the output is going to stand in it."""
        return Once(partial(self.control.get_control, x, t, dict(cond), *args, **kwargs))


class Controls:
    """The ControlNets of a run. ComfyUI puts entries into one batch where they have the same object."""

    def __init__(self) -> None:
        self.deferred: dict[int, Deferred] = {}

    def within(self, conds: Sequence[Any]) -> list[Any]:
        """The conditions with each ControlNet deferred."""
        return [entries and [self._entry(each) for each in entries] for entries in conds]

    def _entry(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        control = entry.get("control")
        if control is None:
            return entry
        return {**entry, "control": self.deferred.setdefault(id(control), Deferred(control))}


def asked(value: Any) -> Any:
    """An argument of the network as it is: a ControlNet's output, if the argument stands for one."""
    return value.now() if isinstance(value, Once) else value
