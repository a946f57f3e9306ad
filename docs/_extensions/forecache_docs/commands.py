"""The directive ``commands``: the command line, read from the application itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

Row = tuple[str, str]


@dataclass(frozen=True)
class Command:
    """One command: its words, such as ``("patch", "apply")``, its help, and name and help of its parameters."""

    words: tuple[str, ...]
    help: str
    usage: str
    arguments: tuple[Row, ...]
    options: tuple[Row, ...]
    flags: frozenset[str]  #: every spelling of every option


def commands() -> dict[tuple[str, ...], Command]:
    """Every command of ``forecache`` by its words."""
    from forecache_cli.main import app

    return {command.words: command for command in _walk(get_command(app), ())}


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[Command]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _walk(child, (*words, name))
        return
    name = " ".join(("forecache", *words))
    context = command.make_context(name, [], resilient_parsing=True)
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    yield Command(
        words,
        " ".join((command.help or "").split()),
        re.sub(r"[{}]", "", f"{name} {' '.join(command.collect_usage_pieces(context))}"),
        tuple(_row(each, context) for each in arguments),
        tuple(_row(each, context) for each in options),
        frozenset(flag for each in options for flag in (*each.opts, *each.secondary_opts)) | {"--help"},
    )


def _row(parameter: Any, context: Any) -> Row:
    name, about = parameter.get_help_record(context)
    return name, re.sub(r"\s*\[default: /[^\]]*\]", "", " ".join(about.split()))  # a path of the machine that builds


def section(command: Command) -> list[str]:
    """Markdown about one command."""
    lines = [f"## forecache {' '.join(command.words)}", "", _plain(command.help), "", f"    {command.usage}", ""]
    rows = [f"| `{_cell(name)}` | {_cell(_plain(about))} |" for name, about in (*command.arguments, *command.options)]
    return [*lines, "| argument or option | meaning |", "|---|---|", *rows, ""] if rows else lines


def _plain(text: str) -> str:
    return re.sub(r"([\\<>*_\[\]])", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


class Commands(SphinxDirective):
    """A section a command."""

    def run(self) -> list[nodes.Node]:
        """The sections' nodes."""
        text = "\n".join(line for command in commands().values() for line in section(command))
        found: list[nodes.Node] = self.parse_text_to_nodes(text, allow_section_headings=True)
        return found
