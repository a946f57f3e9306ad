"""The table behind the constants of ``auto``."""

from __future__ import annotations

import pytest

from benchmarks.flows import closed
from benchmarks.studies import auto


def test_every_row_keeps_the_budget_and_the_first_is_the_default():
    found = auto.rows()
    effective = range(closed.gaussian().steps)
    for _, spread, _ in found.values():
        assert len(spread(effective, 9)) == 9
    assert next(iter(found)) == "auto"
    assert len({(rule, spread(effective, 9), corrector) for rule, spread, corrector in found.values()}) == len(found)


def test_what_its_parts_are_worth_on_a_flow_without_scatter():
    """As good as the parabola, which is right there; with the corrector a third less than without."""
    lines = auto.table(closed.gaussian(), range(4), (11,)).splitlines()
    median = {line.split("|")[1].strip(): float(line.split("|")[2].split("/")[0]) for line in lines[4:]}
    assert median["auto"] <= 1.05 * median["candidates: always the parabola"]
    assert median["candidates: always the parabola"] < 0.95 * median["candidates: always the line"]  # controls
    assert median["auto"] < median["no corrector"] / 1.4 < median["Euler with as many steps"] / 4


def test_the_command_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["auto", "--settings", "hunyuan50"])
    with pytest.raises(SystemExit):
        auto.main()
    assert "checkout" in capsys.readouterr().err
