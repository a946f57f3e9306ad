"""Output and errors, the same way for all commands."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text
from typer.core import TyperGroup

from forecache_lab.errors import UserError
from forecache_lab.escape import printable
from forecache_patches import PatchError

#: What a user can cause and mend: one line on stderr, exit status 1. Everything else is a bug and keeps its traceback.
#: An OSError is the disk's, or that of a path which was given: full, read-only, not there, not ours.
EXPECTED_ERRORS: tuple[type[Exception], ...] = (UserError, PatchError, OSError)


def leave(number: int, frame: Any) -> None:
    """A handler that ends the program by an exception: unfinished files are taken away on its way out."""
    raise SystemExit(128 + number)


@contextmanager
def handled(handler: Callable[[int, Any], None], *signals: int) -> Iterator[None]:
    """Signals call ``handler`` for a block; one that is ignored, as nohup does with SIGHUP, stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [each for each in signals if signal.getsignal(each) != signal.SIG_IGN]
        before = {each: signal.signal(each, handler) for each in heard}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old if old is not None else signal.SIG_DFL)


def ended_as_by_ctrl_c() -> AbstractContextManager[None]:
    """A command that is ended, or whose terminal is closed, ends in order, by a KeyboardInterrupt."""
    return handled(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def extra(name: str, need: str) -> Iterator[None]:
    """For imports of the packages of an extra; ``need`` begins the message, such as ``the demo needs``.

    Raises:
        UserError: names the package that is missing and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{need} {error.name}: pip install '.[{name}]' in forecache's checkout") from None


class ErrorsAsLines(TyperGroup):
    """A group of commands in which an expected error is one line on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with handled(leave, signal.SIGTERM):
                return super().invoke(ctx)
        except EXPECTED_ERRORS as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has gone
                raise
            what = str(error)
            if isinstance(error, OSError) and error.strerror:
                what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            complain("error: " + (what if isinstance(error, UserError) else " ".join(what.split())))
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
