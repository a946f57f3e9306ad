"""``forecache calibrate``: plans for several budgets of network calls, and what each costs in drift."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from forecache_lab.errors import UserError

from ..console import progress, say

SOURCE_HELP = (
    "MODULE:FUNCTION or FILE.py:FUNCTION. The function returns a mapping with `run` (run(seed, cache) -> sample), "
    "`times` and, if needed, other keywords of forecache.Calibration (guidance_scale, edges, made_for, ...)."
)


def seeds_of(text: str) -> range:
    """``"16"``: seeds 0..15; ``"100:116"``: seeds 100..115.

    Raises:
        typer.BadParameter: anything else.
    """
    first, colon, last = text.partition(":")
    try:
        found = range(int(first), int(last)) if colon else range(int(first))
    except ValueError:
        raise typer.BadParameter(f"seeds must be N or FIRST:END, got {text!r}") from None
    if not found:
        raise typer.BadParameter(f"seeds must name at least one run, got {text!r}")
    return found


def load(source: str) -> Mapping[str, Any]:
    """What the function named by ``source`` returns.

    Raises:
        typer.BadParameter: no such module, file or function, or a result without ``run`` and ``times``.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise typer.BadParameter(f"SOURCE must be MODULE:FUNCTION or FILE.py:FUNCTION, got {source!r}")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise typer.BadParameter(f"SOURCE: there is no file {place}")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise typer.BadParameter(f"SOURCE: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise typer.BadParameter(f"SOURCE: {place} has no function {name}")
    made = function()
    if not isinstance(made, Mapping) or not {"run", "times"} <= set(made):
        raise typer.BadParameter(
            f"SOURCE: {source} must return a mapping with run and times, got {type(made).__name__}"
        )
    return made


def calibrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    calls: Annotated[list[int], typer.Option("--calls", help="Network calls of a plan; give it once per budget.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for plan-CALLS.json and the recordings.")],
    seeds: Annotated[str, typer.Option(help="Calibration conditions: N or FIRST:END.")] = "16",
    test: Annotated[str, typer.Option(help="Conditions to measure drift on, disjoint from those.")] = "100000:100016",
    refine: Annotated[
        int | None, typer.Option(help="Rounds of refinement; pays with 32 seeds (default: SOURCE's, else 0).")
    ] = None,
) -> None:
    """Make plans and print drift against calls. Interrupted, the same command goes on where it was."""
    from forecache import Calibration
    from forecache.calibration.ladder import ladder, table

    options = dict(load(source)) | ({} if refine is None else {"refine": refine})
    with progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        tasks: dict[str, Any] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        try:
            made = Calibration(seeds=seeds_of(seeds), folder=out / "recordings", progress=step, **options)
            rungs = ladder(made, sorted(set(calls)), seeds_of(test))
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(str(error)) from None
    for rung in rungs:
        rung.plan.save(out / f"plan-{len(rung.plan.computed)}.json")
    say(f"x 1000, median / p95, n = {len(seeds_of(test))} test conditions, {len(made.seeds)} for calibration\n")
    say(table(rungs))
    say(f"\nwrote {', '.join(f'plan-{len(rung.plan.computed)}.json' for rung in rungs)} to {out}")
