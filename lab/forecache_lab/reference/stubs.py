"""Importing an upstream without the packages that its shape path never calls."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types


class _Stub(types.ModuleType):
    """A module whose attributes resolve, so that annotations and base classes in the upstream's files do."""

    def __getattr__(self, attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})


def stub(*names: str) -> None:
    """Register stand-ins for ``names`` (a package, then its submodules) unless the package is installed.

    ``__spec__`` is set because ``importlib.util.find_spec`` raises on a module without one.
    """
    if names[0] in sys.modules or importlib.util.find_spec(names[0]) is not None:
        return
    for name in names:
        module = _Stub(name)
        module.__path__ = []  # a package: its submodules can be imported
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def is_stub(name: str) -> bool:
    """Whether :func:`stub` stands in for a package."""
    return isinstance(sys.modules.get(name), _Stub)
