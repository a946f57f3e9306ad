"""Markdown tables and the cells in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row."""
    first, *lines = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    return "\n".join([first.replace("|  |", "| |", not head[0]), "|---" * len(head) + "|", *lines])


def thousandths(values: Sequence[float], tail: str = ".1f") -> str:
    """``median / p95``, x 1000."""
    return f"{1e3 * np.median(values):.1f} / {1e3 * np.percentile(values, 95):{tail}}"
