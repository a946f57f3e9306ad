"""Put a cache on an object and take it off again: the one way in which every adapter does it.

An adapter gives :func:`functions` one function, which makes a handle of a target and settings, and gets ``enable``,
``enabled`` and ``disable``. The handle's pieces say what each object of the target is to wear.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any, ParamSpec, TypeVar

from .handle import Handle, Piece

H = TypeVar("H", bound=Handle)
P = ParamSpec("P")
Around = Callable[..., Any]  #: called with the former bound method, then with the arguments of the call


class Worn(Piece):
    """A class of its own for one object.

    Args:
        target: the object. handle: what :func:`attached` returns for it.
        methods: functions around those of the object, by name; ``__call__`` may be one.
        attributes: values that the object shows while it wears this.
        private: attributes that somebody else's cache sets in the object, and that its copies do not get.
    """

    def __init__(
        self,
        target: Any,
        handle: Any,
        methods: Mapping[str, Around],
        attributes: Mapping[str, Any] | None = None,
        private: Collection[str] = (),
    ) -> None:
        self.handle, self.methods, self.attributes = handle, methods, attributes or {}
        self.private = frozenset(private)
        self.in_use = False
        self.set_aside: dict[str, Any] = {}
        self.former: Any = None
        self.kind: Any = None
        self._target = weakref.ref(target)

    @property
    def target(self) -> Any:
        """The object; ``None`` when it is gone."""
        return self._target()

    def attach(self) -> None:
        """See :class:`Piece`.

        Raises:
            TypeError: an object whose class cannot be exchanged.
        """
        target = self.target
        derived = any(kind is self.kind for kind in type(target).__mro__)  # somebody's class, from ours of before
        if target is None or self.in_use or derived:
            return
        self.former = type(target)
        self.kind = self._derived()
        # an instance attribute, such as accelerate's `forward`, would hide the method of the class
        self.set_aside = {name: vars(target).pop(name) for name in self.methods if name in vars(target)}
        try:
            target.__class__ = self.kind
        except TypeError as error:
            vars(target).update(self.set_aside)
            raise TypeError(f"{self.former.__name__} cannot wear a cache: {error}") from error
        self.in_use = True

    def _derived(self) -> Any:
        body: dict[str, Any] = {
            **{name: getattr(self.former, name) for name in ("__module__", "__qualname__", "__doc__")},
            "__reduce_ex__": self._reduce(),
            "_forecache_worn": self,
        }
        body |= {name: self._method(name, around) for name, around in self.methods.items()}
        body |= {name: self._attribute(name, value) for name, value in self.attributes.items()}
        # equal to the former class: diffusers' `from_pipe` looks for the class of a part among those that it takes
        same = {
            "__eq__": lambda kind, other: other is kind or (kind is self.kind and other == self.former),
            "__hash__": lambda kind: hash(self.former) if kind is self.kind else type.__hash__(kind),
        }
        meta = type(self.former.__name__, (type(self.former),), {"__call__": self._maker(), **same})
        return meta(self.former.__name__, (self.former,), body)

    def detach(self) -> None:
        """See :class:`Piece`; where another class was derived from this one, when that is taken off."""
        self.in_use = False
        target = self.target
        here: Worn | None = vars(type(target)).get("_forecache_worn")
        while here is not None and not here.in_use:
            target.__class__ = here.former
            for name, value in here.set_aside.items():
                vars(target).setdefault(name, value)
            here = vars(here.former).get("_forecache_worn")

    def current(self) -> Worn | None:
        """See :class:`Piece`."""
        return worn(self.target)

    def serves(self, instance: Any) -> bool:
        """Whether ``instance`` is the object that wears this, and still does."""
        return self.in_use and self.target is instance

    def _maker(self) -> Any:
        def made(kind: Any, *args: Any, **kwargs: Any) -> Any:
            """``type(x)(...)`` makes an object of the former class."""
            if kind is not self.kind:
                return type(self.former).__call__(kind, *args, **kwargs)
            return self.former(*map(self._plain, args), **{name: self._plain(each) for name, each in kwargs.items()})

        return made

    def _inside(self, instance: Any, name: str) -> Callable[..., Any]:
        if name in self.set_aside and self.target is instance:
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
            if rest and isinstance(rest[0], dict) and self.target is instance:
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


def put_on(handle: H) -> H:
    """Attach every piece of a handle, each in place of what its object wears; all of them, or none."""
    for piece in handle.pieces:
        if (before := piece.current()) is not None:
            before.detach()
    try:
        for piece in handle.pieces:
            piece.attach()
    except BaseException:
        for piece in handle.pieces:
            piece.detach()
        raise
    return handle


def _worn_by(target: Any) -> Iterable[Piece]:
    found = worn(target)
    return () if found is None else (found,)


def functions(
    make: Callable[P, H], on: Callable[[Any], Iterable[Piece]] = _worn_by
) -> tuple[Callable[P, H], Callable[P, AbstractContextManager[H]], Callable[[Any], None]]:
    """``enable``, ``enabled`` and ``disable`` of an adapter.

    Args:
        make: checks the arguments of ``enable``, the target first, and returns a handle; it attaches nothing.
        on: the pieces that ``disable`` takes off a target.
    """

    @functools.wraps(make)
    def enable(*args: P.args, **kwargs: P.kwargs) -> H:
        return put_on(make(*args, **kwargs))

    @functools.wraps(make)
    @contextmanager
    def enabled(*args: P.args, **kwargs: P.kwargs) -> Iterator[H]:
        handle = make(*args, **kwargs)
        below = [piece.current() for piece in handle.pieces]
        put_on(handle)
        for piece, before in zip(handle.pieces, below, strict=True):
            piece.below = before
        try:
            yield handle
        finally:
            for piece in handle.pieces:
                piece.end()

    def disable(target: Any) -> None:
        """Detach the cache; nothing happens if there is none."""
        for piece in on(target):
            piece.detach()

    enable.__name__, enabled.__name__ = "enable", "enabled"
    enabled.__doc__ = (
        "Attach the cache for a ``with`` block, with the arguments of :func:`enable`. What was attached before is"
        " attached again afterwards; blocks may end in any order."
    )
    return enable, enabled, disable
