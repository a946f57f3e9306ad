"""The directive ``api``: docstrings of a module and of every name in its ``__all__``, under the module's own name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def directive(module: str, name: str, value: object) -> list[str]:
    """The lines that document ``value``; autodoc would give a constant the docstring of its type."""
    if inspect.isclass(value):
        return [f".. {'autoexception' if issubclass(value, BaseException) else 'autoclass'}:: {module}.{name}"]
    if callable(value):
        return [f".. autofunction:: {module}.{name}"]
    return [f".. py:data:: {name}", f"   :module: {module}", ""]


def readable(
    app: object, kind: str, name: str, value: object, options: object, arguments: str | None, result: str
) -> Any:
    """Called by Sphinx: ``<factory>``, a default that a dataclass makes, is no expression and breaks a signature."""
    return None if arguments is None else (arguments.replace("<factory>", "..."), result)


class Api(SphinxDirective):
    """Takes the name of a module, and which names come ``first``. Sphinx's own ``:members:`` would say
    ``forecache.forecaster.Forecaster``.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"first": str.split}

    def run(self) -> list[nodes.Node]:
        """The nodes of its docstrings."""
        module = self.arguments[0]
        public = importlib.import_module(module)
        known: dict[int, str] = self.env.current_document.setdefault("forecache_api", {})
        lines = [f".. automodule:: {module}", "   :no-members:", ""]
        first = self.options.get("first", [])
        for name in [*first, *(name for name in public.__all__ if name not in first)]:
            value, title = getattr(public, name), f"{module}.{name}"
            if inspect.ismodule(value):
                continue  # has a section of its own
            if inspect.isclass(value) and (elsewhere := known.setdefault(id(value), title)) != title:
                lines += ["", f"``{name}`` is :class:`{elsewhere}`.", ""]
            else:
                lines += directive(module, name, value)
        found: list[nodes.Node] = self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))
        return found
