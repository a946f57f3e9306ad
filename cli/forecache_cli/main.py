"""The application: a group of commands per module.

To add commands, write a module with ``app = typer.Typer(...)`` and add one line below; a single command is registered
with ``app.command("name")(function)``. Heavy packages are imported inside the commands that need them.
"""

from __future__ import annotations

import typer

from .commands import bench, calibrate, demo, generate, patch, pr, report, upstream
from .console import ErrorsAsLines

app = typer.Typer(
    cls=ErrorsAsLines,
    help="Skip network calls in diffusion and flow samplers by forecasting them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(upstream.app, name="upstream")
app.add_typer(patch.app, name="patch")
app.add_typer(pr.app, name="pr")
app.command("bench")(bench.bench)
app.command("calibrate")(calibrate.calibrate)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("report")(report.report)
