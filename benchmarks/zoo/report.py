"""One table and one picture of a half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from .. import tables
from .measure import Row
from .methods import EDGED, OURS, STEER
from .results import Cell
from .steering import Compared, above_euler, accurate, best, compared, interval, median, p95, ratio

mpl.use("Agg")
from matplotlib import pyplot as plt

PARTS_OF_KEY = ("flow", "grid", "steps", "form", "guidance")
COLOURS = {50: "#0072B2", 25: "#E69F00", 12: "#CC79A7"}
HEAD = (
    "cell", "Euler-K", "best published rule", "", "served", STEER, "served", "ratio", "interval", "ratio of p95",
    "error: uncached", "best solver", "", STEER,
)  # fmt: skip


def steering(cells: Sequence[Cell]) -> str:
    """The numbers to steer by, for the default, and for information for the others: no peer is the best everywhere."""
    edged = [cell for cell in cells if EDGED in cell.rows]
    named: list[tuple[str, str, Sequence[Cell]]] = [(ours, ours, cells) for ours in OURS]
    if edged:
        where = "where guidance switches"
        named += [(f"{STEER}, {where}", STEER, edged), (f"{EDGED} computed, {where}", EDGED, edged)]
    peers = [name for name, row in cells[0].rows.items() if row.kind != "ours" and all(name in c.rows for c in cells)]
    rows = []
    for title, ours, some in [*named, *((name, name, cells) for name in peers)]:
        both = [compared(some, statistic, ours) for statistic in (median, p95)]
        above = len(above_euler(some, ours))
        rows.append([title, *(word for each in both for word in _compared(each)), f"{above} of {len(some)}"])
    head = [f"over {len(cells)} cells", "geometric mean", "worst cell", "share lost"]
    lines = [tables.markdown([*head, f"p95: {head[1]}", *head[2:], "above Euler-K"], rows)]
    lines += ["", "Error to the fine solution not above the best solver's with as many calls, where K >= N/4:", ""]
    for steps, found in accurate(cells).items():
        reached = [name for name in found.missed if name not in found.beyond]
        lines.append(
            f"- N = {steps}: {found.share:.0%} of {found.cells} cells; {len(found.beyond)} of those missed are out of "
            f"reach, since the solver is below all N steps there too; the others: {', '.join(reached) or 'none'}"
        )
    above_names = above_euler(cells)
    lines += ["", f"Above Euler-K: {', '.join(above_names) or 'no cell'}"]
    return "\n".join(lines)


def _compared(each: Compared, where: bool = True) -> list[str]:
    return [f"{each.mean:.3f}", f"{each.worst:.2f}" + (f" ({each.where})" if where else ""), f"{each.loses:.0%}"]


def by_part(cells: Sequence[Cell]) -> str:
    """The ratios over the cells that share a part of their key."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    for at, part in enumerate(PARTS_OF_KEY[1:], 1):
        for cell in sorted(cells, key=lambda each: _order(each.problem.split("-")[at])):
            groups.setdefault(f"{part} {cell.problem.split('-')[at]}", []).append(cell)
    for cell in sorted(cells, key=lambda each: each.calls / each.steps):
        share = cell.calls / cell.steps
        name = "K / N below .25" if share < 0.25 else "K / N .25 to .4" if share <= 0.4 else "K / N above .4"
        groups.setdefault(name, []).append(cell)
    rows = []
    for name, some in groups.items():
        both = [_compared(compared(some, statistic), where=False) for statistic in (median, p95)]
        rows.append([name, str(len(some)), *both[0], *both[1]])
    head = ["geometric mean", "worst", "share lost"]
    return tables.markdown(["", "cells", *head, f"p95: {head[0]}", *head[1:]], rows)


def _order(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdecimal() else (0, word)


def table(cells: Sequence[Cell]) -> str:
    """A line for each cell, the worst ratio first."""
    lines = []
    for cell in sorted(cells, key=ratio, reverse=True):
        peer, solver, ours = best(cell, "published"), best(cell, "solver", "error"), cell.rows[STEER]
        low, high = interval(cell)
        words = [
            cell.name, _drift(cell.rows["Euler-K"]), f"{peer.name}, {peer.setting}", _drift(peer), _share(peer),
            _drift(ours), _share(ours), f"{ratio(cell):.2f}", f"{low:.2f}-{high:.2f}", f"{ratio(cell, p95):.2f}",
            _thousandths(median(cell.uncached)), solver.name, _thousandths(median(solver.error)),
            _thousandths(median(ours.error)),
        ]  # fmt: skip
        lines.append(words)
    return tables.markdown(HEAD, lines)


def _thousandths(value: float) -> str:
    return f"{1e3 * value:.3g}"


def _drift(row: Row) -> str:
    return f"{_thousandths(median(row.drift))} / {_thousandths(p95(row.drift))}"


def _share(row: Row) -> str:
    return "" if row.served is None else f"{row.served:.0%}"


def page(half: str, cells: Sequence[Cell], seeds: int, left_out: Mapping[str, str]) -> str:
    """The whole report as Markdown."""
    lines = [f"# Zoo, half: {half}", ""]
    lines += [
        f"{seeds} seeds a cell, half as many of a reference network. Drift to the uncached run and "
        "error to a fine solution of the flow, relative, x 1000; "
        "drift as median / p95. A cell is named flow-grid-steps-form-guidance / calls. *Served*: share of the skipped "
        "steps that the rule named in the row served itself. *Ratio*: our median over the best published rule's, the "
        "settings of which were chosen on other seeds; its interval by bootstrap.",
        "",
    ]
    if not cells:
        lines.append("No cell is complete.")
    else:
        lines += [steering(cells), "", by_part(cells), "", table(cells)]
    lines += ["", *(f"- left out: {name}: {reason}" for name, reason in left_out.items())]
    return "\n".join(lines).rstrip() + "\n"


def plot(path: Path, half: str, cells: Sequence[Cell]) -> None:
    """Ratios of all cells in order, and our error against the best solver's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    ranked = sorted(cells, key=ratio)
    for name, statistic, marker, colour in (("median", median, "o", "#0072B2"), ("p95", p95, "x", "#D55E00")):
        left.plot([ratio(cell, statistic) for cell in ranked], marker, color=colour, markersize=4, label=name)
    euler = [median(c.rows["Euler-K"].drift) / median(best(c, "published").drift) for c in ranked]
    left.plot(euler, "-", color="#999999", linewidth=1, label="Euler-K, median")
    left.axhline(1, color="black", linewidth=0.8)
    left.set(yscale="log", xlabel="cells, ordered by the ratio of medians", title=f"{STEER}, {half} half")
    left.set_ylabel("drift / that of the best published rule")
    left.legend()
    for steps in sorted({cell.steps for cell in cells}):
        some = [cell for cell in cells if cell.steps == steps]
        points = np.array([[median(best(c, "solver", "error").error), median(c.rows[STEER].error)] for c in some])
        right.plot(*points.T, "o", markersize=4, color=COLOURS.get(steps, "#009E73"), label=f"N = {steps}")
    right.set(xscale="log", yscale="log", title="error to the fine solution")
    ends = (
        max(a, b) if k else min(a, b) for k, (a, b) in enumerate(zip(right.get_xlim(), right.get_ylim(), strict=True))
    )
    right.plot(*[[*ends]] * 2, "-", color="black", linewidth=0.8, scalex=False, scaley=False)
    right.set(xlabel="best solver with as many calls", ylabel=STEER)
    right.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
