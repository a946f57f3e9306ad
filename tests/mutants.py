"""Faults that the tests must see: ``python tests/mutants.py [NAME ...]``.

Each mutant changes one line of a copy of the checkout and runs the tests that guard it. A mutant that no test notices
is printed as missed, and the exit status says how many there were. Tests are folded or made faster only if the same
mutants are caught before and after. A mutant is found by its text, so it survives a line that moves to another module;
a text that is gone, or stands twice, is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "adapters", "patches", "lab", "cli")

# name: (text, what takes its place, tests)
MUTANTS = {
    "a forecast in place of the first value": (
        "return not self.history.streams or (i in self._wanted", "return (i in self._wanted",
        "core/test_forecaster.py"),
    "a history goes on with another kind of call": (
        "if other := [name for name, what in kind.items() if self._kind.get(name, what) != what]:",
        "if other := []:", "core/test_kinds_of_calls.py"),
    "a structure that changed is the same": (
        "return len(before) == len(now) and tree.same(before[0], now[0])", "return True", "core/test_forecaster.py"),
    "a plan serves beyond the guard": (
        "if not size <= limit * (1 + ROUNDING):", "if False:", "core/test_planned.py"),
    "weights beyond the guard are served": (
        "elif size <= limit * (1 + ROUNDING) or", "elif True or", "core/test_rules.py"),
    "errors are added up without their signs": (
        "return signed / len(places)", "return np.abs(signed) / len(places)", "core/test_rules.py"),
    "alternating bends are trusted": (
        "return bool(older @ gram[-4:, -4:] @ newer < 0)", "return False", "core/test_rules.py"),
    "the corrector answers with the wrong sign": (
        "kept = -STIFF * (p[k + 1] - p[k])", "kept = STIFF * (p[k + 1] - p[k])", "core/test_corrector.py"),
    "the corrector reaches across an edge": (
        "gap = [(i, served) for i, served in gap if i >= since]", "gap = list(gap)", "core/test_corrector.py"),
    "guidance never fades the corrector": (
        "return min(max((none - self.strength", "return 1.0 + 0 * min(max((none - self.strength",
        "core/test_corrector.py"),
    "the oldest snapshot stays": (
        "self.gram, row = self.gram[:, 1:, 1:], row[:, 1:]", "self.gram, row = self.gram[:, :-1, :-1], row[:, 1:]",
        "core/test_snapshots.py"),
    "NaN is a snapshot": (
        "if not np.isfinite(row).all() and not bool(torch.isfinite(value.detach()).all()):", "if False:",
        "fuzz/test_runs.py"),
    "half precision overflows": (
        "if not size * self.snapshots.largest > torch.finfo(value.dtype).max:", "if True:",
        "core/test_forecaster.py"),
    "a leaf outside of its group": (
        "return self._group_of.get(tree.key(leaf), \"\")", "return \"\"", "core/test_groups.py"),
    "the last step that moves is forecast": (
        "or i >= self._last_effective", "or False", "core/test_guidance.py"),
    "guidance is never called again": (
        "or i - newest >= self.refresh", "or False", "core/test_guidance.py"),
    "a file is written in place": (
        "partial = target.with_name(", "partial = target if target else target.with_name(", "fuzz/test_files.py"),
}  # fmt: skip


def mutated(text: str, instead: str, copy: Path) -> None:
    """Change ``text``, which must stand in one place of the copy."""
    found = [path for room in ROOMS for path in (copy / room).rglob("*.py") if text in path.read_text()]
    if len(found) != 1 or found[0].read_text().count(text) != 1:
        raise LookupError(f"{text!r} must stand once, found in {[str(path.relative_to(copy)) for path in found]}")
    found[0].write_text(found[0].read_text().replace(text, instead))


def caught(text: str, instead: str, tests: str) -> bool:
    """Whether the tests fail on a copy with the mutant."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".nox", "out", "__pycache__"))
        mutated(text, instead, copy)
        paths = os.pathsep.join([str(copy), *(str(copy / room) for room in ROOMS)])
        command = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}")
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 1


def main(names: list[str]) -> int:
    """Number of mutants that were missed."""
    if unknown := set(names) - MUTANTS.keys():
        raise SystemExit(f"no mutant of the name {', '.join(sorted(unknown))}; there are: {'; '.join(MUTANTS)}")
    missed = 0
    for name in names or MUTANTS:
        seen = caught(*MUTANTS[name])
        missed += not seen
        print(f"{'caught' if seen else 'MISSED'}: {name}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
