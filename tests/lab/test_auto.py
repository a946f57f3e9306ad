"""The table behind the constants of ``auto``."""

from __future__ import annotations

import pytest

from forecache.schedule import effective_steps
from forecache_lab import auto
from forecache_lab.frontier import flows


def test_every_row_keeps_the_budget_and_the_first_is_the_default():
    found = auto.rows()
    effective = effective_steps(flows.gaussian().times)
    for _, spread, _ in found.values():
        assert len(spread(effective, 9)) == 9
    assert next(iter(found)) == "auto"
    assert len({(rule, spread(effective, 9), on) for rule, spread, on in found.values()}) >= len(found) - 1


def test_what_the_evidence_is_worth_on_a_flow_without_scatter():
    """The default is as good as always a parabola there, and twice as good as always a line (the control)."""
    lines = auto.table(flows.gaussian(), range(4), (11,)).splitlines()
    median = {line.split("|")[1].strip(): float(line.split("|")[2].split("/")[0]) for line in lines[4:]}
    assert median["auto"] <= 1.1 * median["rule: always a parabola"]
    assert median["auto"] < median["rule: always a line"] / 2 < median["Euler with as many steps"] / 2


def test_the_command_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["auto", "--settings", "hunyuan50"])
    with pytest.raises(SystemExit):
        auto.main()
    assert "checkout" in capsys.readouterr().err
