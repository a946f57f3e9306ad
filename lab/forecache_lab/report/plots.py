"""The plots, as plotly figures; the page gives them their colours for light and dark."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .. import reading
from ..escape import plotly
from ..record import UNCACHED, Table
from . import statistics

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
OPEN = ("circle-open", "diamond-open", "triangle-up-open", "hexagon-open", "star-open")  # of forecast rules
TIMELINES = 24  # objects with a timeline, the worst


def labelled(table: Table) -> Table:
    """``table`` with every word, names of columns too, as plotly is to show it; the plots are made of it."""

    def shown(body: Any) -> Any:
        if isinstance(body, dict):
            return {plotly(key): shown(value) for key, value in body.items()}
        if isinstance(body, (list, tuple)):
            return [shown(value) for value in body]
        return plotly(body) if isinstance(body, str) else body

    found: Table = reading.build(Table, shown(asdict(table)))
    return found


def _colours(table: Table) -> dict[str, str]:
    families = dict.fromkeys(map(statistics.family, statistics.methods(table)))
    return {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(families)}


def _figure(traces: list[Any], height: int, **layout: Any) -> dict[str, Any]:
    bottom = {"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0, "traceorder": "normal"}
    figure = go.Figure(traces)
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 10, "r": 10, "t": 12, "b": 10},
        legend=bottom,
        **layout,
    )
    body: dict[str, Any] = figure.to_plotly_json()
    return body


def drift_against_calls(table: Table, column: str) -> dict[str, Any]:
    """Median and bootstrap interval of ``column`` against network calls, a line a family; zeros have no place on the
    logarithmic axis and are left out.
    """
    colours, traces = _colours(table), []
    higher = column in table.higher
    everything: list[float] = []
    grouped: dict[str, list[tuple[float, str, statistics.Summary]]] = {}
    for method, runs in statistics.methods(table).items():
        values = [run.values[column] for run in runs if column in run.values]
        if values:
            point = (statistics.calls(runs), method, statistics.summarise(values, higher))
            grouped.setdefault(statistics.family(method), []).append(point)
            everything.append(point[2].median)
    log = not higher and column != "scale ratio"
    for name, points in grouped.items():
        points = sorted((p for p in points if p[2].median > 0 or not log), key=lambda point: point[0])
        if not points:
            continue
        control = name.startswith("control")
        medians = [s.median for _, _, s in points]
        traces.append(
            go.Scatter(
                x=[k for k, _, _ in points], y=medians, name=name, mode="lines+markers",
                line={"color": colours[name], "dash": "dot" if control else "solid", "width": 1.5 if control else 2.5},
                marker={"size": 9, "symbol": "x" if control else "diamond" if name == "Euler" else "circle"},
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                    "array": [0 if s.high is None else s.high - s.median for _, _, s in points],
                    "arrayminus": [0 if s.low is None else s.median - s.low for _, _, s in points],
                },
                customdata=[[method, s.tail, s.n] for _, method, s in points],
                hovertemplate="%{customdata[0]}<br>%{x:.0f} calls: median %{y:.3g}, bad tail %{customdata[1]:.3g}, "
                "n = %{customdata[2]}<extra></extra>",
            )
        )  # fmt: skip
    spread = [math.log10(value) for value in everything if value > 0] or [0.0]
    ticks = 1 if max(spread) - min(spread) > 2 else "D2"
    shapes = []
    if column in table.floor and table.floor[column] > 0:
        floor = {"xref": "paper", "x0": 0, "x1": 1, "y0": table.floor[column], "y1": table.floor[column]}
        shapes.append({"type": "line", "line": {"dash": "dash", "width": 1, "color": "#888888"}, **floor})
    return _figure(
        traces, 420, shapes=shapes, hovermode="closest",
        xaxis={"title": {"text": "network calls"}, "automargin": True},
        yaxis={"title": {"text": column}, "type": "log" if log else "linear", "automargin": True,
               **({"tickformat": "~g", "dtick": ticks} if log else {})},
    )  # fmt: skip


def timeline(table: Table, item: str) -> dict[str, Any]:
    """Every step of every traced method on one object, and the forward error on its computed steps below."""
    traces: list[Any] = []
    lanes: dict[str, str] = {}
    kinds: dict[str, list[tuple[int, str, str]]] = {"computed": []}
    for run in table.runs:
        if run.item != item or run.method == UNCACHED:
            continue
        for branch, steps in run.trace.items():
            lane = run.method if len(run.trace) == 1 else f"{run.method} · {branch}"
            colour = lanes[lane] = PALETTE[len(lanes) % len(PALETTE)]
            for step in steps:
                kind = step["rule"] or "its rule" if step["kind"] == "forecast" else step["kind"]
                what = f"forecast by {kind}" if step["kind"] == "forecast" else kind
                error = "" if step["error"] is None else f", forward error {step['error']:.3g}"
                fallback = f"<br>fell back: {step['fallback']}" if step.get("fallback") else ""
                text = f"{lane}<br>step {step['index']}, t = {step['time']:.4g}<br>{what}{error}{fallback}"
                kinds.setdefault(kind, []).append((step["index"], lane, text))
            errors = [(step["index"], step["error"]) for step in steps if step["error"]]
            traces.append(
                go.Scatter(
                    x=[k for k, _ in errors], y=[e for _, e in errors], name=lane, mode="lines+markers",
                    xaxis="x", yaxis="y2", showlegend=False, marker={"size": 5, "color": colour},
                    line={"width": 1.5, "color": colour},
                    hovertemplate=f"{lane}<br>step %{{x}}: forward error %{{y:.3g}}<extra></extra>",
                )
            )  # fmt: skip
    for k, (kind, points) in enumerate(kinds.items()):
        computed, still = kind == "computed", kind == "still"
        symbol = "square" if computed else "x-thin-open" if still else OPEN[k % len(OPEN)]
        traces.append(
            go.Scatter(
                x=[p[0] for p in points], y=[p[1] for p in points], text=[p[2] for p in points], mode="markers",
                name="computed" if computed else "dt = 0" if still else f"forecast: {kind}",
                marker={"symbol": symbol, "size": 8 if computed else 7, "line": {"width": 1.2},
                        "color": [lanes[p[1]] for p in points] if computed else "#8a94a0"},
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    if not lanes:
        return {}
    rows, below = 24 * len(lanes), 150
    split = below / (rows + below)
    return _figure(
        traces, rows + below + 130, hovermode="closest",
        xaxis={"title": {"text": "step"}, "automargin": True, "anchor": "y2"},
        yaxis={"domain": [split + 0.08, 1], "categoryarray": [*lanes][::-1], "categoryorder": "array",
               "automargin": True},
        yaxis2={"domain": [0, split], "type": "log", "title": {"text": "forward error"}, "tickformat": "~g",
                "automargin": True},
    )  # fmt: skip


def stages(table: Table) -> dict[str, Any]:
    """Median seconds of each stage, a bar a method, the uncached run first; empty if nothing was timed."""
    every: dict[str, list[Any]] = {}
    for run in table.runs:
        every.setdefault(run.method, []).append(run)
    names = list(dict.fromkeys(name for run in table.runs for name in run.seconds))
    if not names:
        return {}
    order = [method for method in (UNCACHED, *every) if method in every]
    order = list(dict.fromkeys(order))
    traces = []
    for k, name in enumerate(names):
        seconds = [float(np.median([run.seconds.get(name, 0.0) for run in every[method]])) for method in order]
        calls = [float(np.median([run.calls.get(name, 0) for run in every[method]])) for method in order]
        traces.append(
            go.Bar(
                y=order, x=seconds, name=name, orientation="h", marker={"color": PALETTE[k % len(PALETTE)]},
                customdata=calls,
                hovertemplate="%{y}<br>" + name + ": %{x:.3g} s, %{customdata:.0f} calls<extra></extra>",
            )
        )  # fmt: skip
    return _figure(
        traces, 26 * len(order) + 140, barmode="stack",
        xaxis={"title": {"text": "seconds, median"}, "automargin": True},
        yaxis={"categoryorder": "array", "categoryarray": order[::-1], "automargin": True},
    )  # fmt: skip
