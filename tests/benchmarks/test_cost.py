"""The command of the cost, without its long measurements."""

from __future__ import annotations

import re

import pytest

from benchmarks.cost import __main__ as cost


def test_the_choice_of_auto_has_its_row(monkeypatch, capsys):
    monkeypatch.setattr(cost, "measure", lambda *size: cost.Row("made up", 9.0, 0.1, 9.0, 1.0, 1.0, 6.0, 1))
    monkeypatch.setattr(cost, "serving", lambda values, repeats: (1.0, 1.0, 1.0))
    asked = []
    monkeypatch.setattr(cost.Auto, "chosen", lambda rule, times, gram: asked.append((len(times), gram.shape)))
    cost.main(["--quick"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| auto's choice, ms"))
    figures = [tuple(map(float, pair)) for pair in re.findall(r"(\d+\.\d+) / (\d+\.\d+)", row)]
    assert len(figures) == 3 and all(0 <= median <= p95 for median, p95 in figures)
    assert len(asked) == 20 * (1 + 16 + 256) and set(asked) == {(6, (6, 6))}


@pytest.mark.parametrize(("slow", "word"), [(0.0, "met"), (0.21, "missed")])
def test_the_target_of_the_choice_is_said(monkeypatch, slow, word):
    monkeypatch.setattr(cost, "choosing", lambda items, steps: (slow, 1.0))
    assert cost.choices(1).endswith(f"at most 0.2 ms: {word}")
