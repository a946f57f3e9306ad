"""Put a cache on an object and take it off again: the one way in which every adapter does it.

An object that wears a cache has a class of its own, derived from its former class and of the same name. Nothing is
stored in the object itself, so that

- taking the cache off gives the former class back, and whatever was set meanwhile stays;
- a copy is plain, whether by ``copy``, ``deepcopy``, ``pickle``, ``torch.save``, ``type(x)(...)`` or diffusers'
  ``from_pipe``: it is of the former class, and has no cache until it gets one;
- the parts of a copy are plain too, where they wear the same handle as what is copied (a pipeline's samplers);
- several wearers, and a wearer within another's call, have nothing in common;
- the handle holds its object weakly, and what holds a handle does not keep a model.

A class that somebody else derived from ours meanwhile (FSDP does) cannot be taken off; the cache is then out of use.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

Handle = TypeVar("Handle")
Around = Callable[..., Any]  #: called with the former bound method, then with the arguments of the call


class Worn:
    """What one object wears.

    Args:
        target: the object. handle: what :func:`attached` returns for it.
        methods: functions around those of the object, by name; ``__call__`` may be one.
        attributes: values that the object shows while it wears this.
        private: attributes that somebody else's cache sets in the object, and that its copies do not get.

    Raises:
        TypeError: an object whose class cannot be exchanged.
    """

    def __init__(
        self,
        target: Any,
        handle: Any,
        methods: Mapping[str, Around],
        attributes: Mapping[str, Any] | None = None,
        private: Collection[str] = (),
    ) -> None:
        self.handle, self.former, self.names = handle, type(target), tuple(methods)
        self.private = frozenset(private)
        self.in_use = False
        self.set_aside: dict[str, Any] = {}
        self.below: Worn | None = None  # what a `with` block put this over, and whether the block is over
        self.over = False
        self._owner = weakref.ref(target)
        body: dict[str, Any] = {
            **{name: getattr(self.former, name) for name in ("__module__", "__qualname__", "__doc__")},
            "__reduce_ex__": self._reduce(),
            "_forecache_worn": self,
        }
        body |= {name: self._method(name, around) for name, around in methods.items()}
        body |= {name: self._attribute(name, value) for name, value in (attributes or {}).items()}
        # equal to the former class: diffusers' `from_pipe` looks for the class of a part among those that it takes
        same = {
            "__eq__": lambda kind, other: other is kind or (kind is self.kind and other == self.former),
            "__hash__": lambda kind: hash(self.former) if kind is self.kind else type.__hash__(kind),
        }
        self.kind: Any = None
        meta = type(self.former.__name__, (type(self.former),), {"__call__": self._maker(), **same})
        self.kind = meta(self.former.__name__, (self.former,), body)
        self.put_on(target)

    def put_on(self, target: Any) -> None:
        """Give the class of this back to the object that wore it, and wears nothing now."""
        # an instance attribute, such as accelerate's `forward`, would hide the method of the class
        self.set_aside = {name: vars(target).pop(name) for name in self.names if name in vars(target)}
        try:
            target.__class__ = self.kind
        except TypeError as error:
            vars(target).update(self.set_aside)
            raise TypeError(f"{self.former.__name__} cannot wear a cache: {error}") from error
        self.in_use = True

    def serves(self, instance: Any) -> bool:
        """Whether ``instance`` is the object that wears this, and still does."""
        return self.in_use and self._owner() is instance

    def take_off(self, target: Any) -> None:
        """Give the former class back; where another wears around this one, when that is taken off."""
        self.in_use = False
        here: Worn | None = vars(type(target)).get("_forecache_worn")
        while here is not None and not here.in_use:
            target.__class__ = here.former
            for name, value in here.set_aside.items():
                vars(target).setdefault(name, value)
            here = vars(here.former).get("_forecache_worn")

    def _maker(self) -> Any:
        def made(kind: Any, *args: Any, **kwargs: Any) -> Any:
            """``type(x)(...)`` makes an object of the former class."""
            if kind is not self.kind:
                return type(self.former).__call__(kind, *args, **kwargs)
            return self.former(*map(self._plain, args), **{name: self._plain(each) for name, each in kwargs.items()})

        return made

    def _inside(self, instance: Any, name: str) -> Callable[..., Any]:
        if name in self.set_aside and self._owner() is instance:
            found: Callable[..., Any] = self.set_aside[name]
            return found
        return MethodType(getattr(self.former, name), instance)

    def _method(self, name: str, around: Around) -> Any:
        worn = self

        @functools.wraps(getattr(self.former, name))
        def method(instance: Any, *args: Any, **kwargs: Any) -> Any:
            inside = worn._inside(instance, name)
            return around(inside, *args, **kwargs) if worn.serves(instance) else inside(*args, **kwargs)

        return method

    def _attribute(self, name: str, value: Any) -> Any:
        def read(instance: Any) -> Any:
            if self.serves(instance):
                return value
            if name in vars(instance):
                return vars(instance)[name]
            return getattr(super(self.kind, instance), name)

        def write(instance: Any, given: Any) -> None:
            vars(instance)[name] = given

        return property(read, write)

    def _reduce(self) -> Any:
        def reduce(instance: Any, protocol: Any) -> Any:
            made = super(self.kind, instance).__reduce_ex__(protocol)
            if isinstance(made, str):
                return made
            function, arguments, *rest = made
            function, *arguments = (self.former if each is self.kind else each for each in (function, *arguments))
            if getattr(function, "__name__", "") in ("__newobj__", "__newobj_ex__"):  # pickle insists on our class
                function, arguments = _newly(function, arguments)
            if rest and isinstance(rest[0], dict) and self._owner() is instance:
                state = {**rest[0], **self.set_aside}
                rest[0] = {name: self._plain(each) for name, each in state.items() if name not in self.private}
            return function, tuple(arguments), *rest

        return reduce

    def _plain(self, part: Any) -> Any:
        """A copy of what wears the same handle, anything else as it is."""
        return copy.copy(part) if self.in_use and attached(part) is self.handle else part


def _newly(function: Any, arguments: list[Any]) -> tuple[Any, list[Any]]:
    """Instead of ``copyreg.__newobj__``: ``kind.__new__(kind, ...)`` by means of the standard library alone."""
    kind, *given = arguments
    if not given and kind.__new__ is object.__new__:
        return copyreg._reconstructor, [kind, object, None]  # type: ignore[attr-defined]
    given, named = given if function.__name__ == "__newobj_ex__" else (given, {})
    return functools.partial(kind.__new__, kind, *given, **named), []


def worn(target: Any) -> Worn | None:
    """What an object wears; ``None``: nothing."""
    for kind in type(target).__mro__:
        found = vars(kind).get("_forecache_worn")
        if found is not None and found.serves(target):
            return found  # type: ignore[no-any-return]
    return None


def attached(target: Any) -> Any:
    """The handle of what an object wears; ``None``: nothing."""
    found = worn(target)
    return None if found is None else found.handle


def take_off(target: Any) -> Any:
    """Take off what an object wears, if anything; returns its handle."""
    found = worn(target)
    if found is None:
        return None
    found.take_off(target)
    return found.handle


@contextmanager
def meanwhile(targets: Sequence[Any], enable: Callable[[], Handle]) -> Iterator[Handle]:
    """What ``enable`` puts on ``targets``, for a ``with`` block; then each of them wears again what it wore before.

    Blocks may end in any order: what another block put on over this one stays, and what is over does not come back.
    """
    before = [worn(target) for target in targets]
    handle = enable()
    mine = [worn(target) for target in targets]
    for now, below in zip(mine, before, strict=True):
        if now is not None:
            now.below = below
    try:
        yield handle
    finally:
        for target, now, below in zip(targets, mine, before, strict=True):
            if now is not None:
                now.over = True
            if worn(target) not in (now, None):
                continue
            take_off(target)
            while below is not None and below.over:
                below = below.below
            if below is not None and type(target) is below.former:
                below.put_on(target)
