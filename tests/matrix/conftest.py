"""How many combinations the matrix tried."""

from __future__ import annotations

from typing import Any

TESTS = {
    "test_interval_1_is_bit_identical": "with interval=1 bit for bit as without us",
    "test_half_the_calls_are_right_or_noted": "with half the calls right, or a note says why not",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Printed once, also where several processes share the tests."""
    for name, what in TESTS.items():
        found = {
            state: sum(f"::{name}[" in each.nodeid for each in terminalreporter.stats.get(state, ()))
            for state in ("passed", "failed", "skipped")
        }
        if any(found.values()):
            terminalreporter.write_line(
                f"matrix: {found['passed']} combinations {what}; {found['failed']} failed, {found['skipped']} skipped"
            )
