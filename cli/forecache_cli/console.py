"""Output and errors, the same way for all commands."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from forecache_patches import PatchError

#: What a user can cause and mend: one line on stderr, exit status 1. Everything else is a bug and keeps its traceback.
EXPECTED_ERRORS: tuple[type[Exception], ...] = (PatchError,)


class ErrorsAsLines(TyperGroup):
    """A group of commands in which an expected error is one line on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EXPECTED_ERRORS as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(1) from None


def say(text: str, style: str = "") -> None:
    """Print ``text`` as it is: paths and brackets are not markup, lines are not wrapped."""
    Console(soft_wrap=True, markup=False, highlight=False).print(text, style=style or None)
