"""Output and errors, the same way for all commands."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text
from typer.core import TyperGroup

from forecache_lab.escape import printable
from forecache_patches import PatchError

#: What a user can cause and mend: one line on stderr, exit status 1. Everything else is a bug and keeps its traceback.
#: An OSError is the disk's, or that of a path which was given: full, read-only, not there, not ours.
EXPECTED_ERRORS: tuple[type[Exception], ...] = (PatchError, OSError)


@contextmanager
def termination_unwinds() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, by an exception: unfinished files are taken away on its way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """A command that is ended, or whose terminal is closed, ends in order; nohup's stays deaf to that."""
    signals = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = [signal.signal(each, signal.default_int_handler) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


class ErrorsAsLines(TyperGroup):
    """A group of commands in which an expected error is one line on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with termination_unwinds():
                return super().invoke(ctx)
        except EXPECTED_ERRORS as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has gone
                raise
            what = str(error)
            if isinstance(error, OSError) and error.strerror:
                what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            complain("error: " + " ".join(what.split()))
            raise typer.Exit(1) from None


def say(text: str, style: str = "") -> None:
    """Print ``text`` as it is: paths and brackets are not markup, lines are not wrapped.

    What the terminal cannot show, such as a byte of a file name that is no character, is escaped.
    """
    encoding = sys.stdout.encoding or "utf-8"
    shown = "\n".join(map(printable, text.split("\n"))).encode(encoding, "backslashreplace").decode(encoding)
    Console(soft_wrap=True, markup=False, highlight=False).print(shown, style=style or None)


def complain(text: str) -> None:
    """Print ``text`` on stderr, as it is."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=True)


class _Words(ProgressColumn):
    """The description of a task, which may be a name: nothing in it is markup."""

    def render(self, task: Task) -> Text:
        """As it is shown."""
        return Text(printable(task.description))


def progress(*columns: ProgressColumn) -> Progress:
    """A bar that begins with the description of its task and is gone at the end."""
    return Progress(_Words(), *columns, transient=True)
