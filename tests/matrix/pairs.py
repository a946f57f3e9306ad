"""Rows in which every two values of two factors stand together at least once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairwise(factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """A small table of rows over ``factors``, the same at every call.

    Args:
        factors: values by name.
        allowed: whether a row, of which some factors may be missing, can be had. Pairs that no row can have are left
            out.
    """
    names = list(factors)
    open_pairs: dict[Pair, None] = {
        frozenset({(a, v), (b, w)}): None
        for a, b in itertools.combinations(names, 2)
        for v in factors[a]
        for w in factors[b]
        if allowed({a: v, b: w})
    }
    rows: list[Row] = []
    while open_pairs:
        first = next(iter(open_pairs))
        row = _filled(dict(first), names, factors, allowed, open_pairs)
        if row is None:
            del open_pairs[first]
            continue
        for pair in _pairs(row):
            open_pairs.pop(pair, None)
        rows.append({name: row[name] for name in names})
    return rows


def turned(factors: Mapping[str, Sequence[str]], by: int) -> dict[str, list[str]]:
    """The same factors with their values in another order, for a table of other rows."""
    return {
        name: [values[(k + by * place) % len(values)] for k in range(len(values))]
        for place, (name, values) in enumerate(factors.items(), 1)
    }


def _pairs(row: Row) -> list[Pair]:
    return [frozenset(pair) for pair in itertools.combinations(row.items(), 2)]


def _filled(
    row: Row, names: Sequence[str], factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool],
    wanted: Mapping[Pair, None],
) -> Row | None:  # fmt: skip
    """``row`` with a value for every factor, those first that meet most pairs that are wanted."""
    missing = [name for name in names if name not in row]
    if not missing:
        return row if allowed(row) else None
    name = missing[0]

    def met(value: str) -> int:
        return sum(frozenset({(name, value), each}) in wanted for each in row.items())

    for value in sorted(factors[name], key=met, reverse=True):
        grown = {**row, name: value}
        if allowed(grown) and (found := _filled(grown, names, factors, allowed, wanted)) is not None:
            return found
    return None
