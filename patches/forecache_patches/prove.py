"""Proof of a draft: what tests and linters say of the hub's files without and with the change."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import gitrepo, wheel
from .check import repeated
from .drafts import Draft, Hub
from .errors import DraftError, PatchError
from .insertion import split_lines
from .submit import applied, build
from .trees import Fetch, Trees, trees

Outcomes = dict[tuple[str, str], str]  # "passed", "failed" or "skipped" by (file, test)


@dataclass
class Proof:
    """``facts``: shown to hold. ``remarks``: not examined, or not ours. ``failures``: what does not hold."""

    facts: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def prove(draft: Draft, base: str, pinned: Path | None = None, fetch: Fetch = wheel.fetch) -> Proof:
    """Apply, then style, the hub's tests and ours, without and with the change.

    Raises:
        CheckoutError, DraftError: see :func:`.trees.trees`.
        PatchError: the package cannot be imported here, or pytest does not run.
    """
    proof = Proof()
    with trees(draft, base, pinned, fetch) as both:
        change, tests = draft.change(both.without), _paths(draft)
        if base == "pin":
            _prove_patch(draft, both, proof)
        proof.facts.append(f"{draft.name} fits {both.base}: {', '.join(change)}")
        if draft.hook is not None:
            proof.facts.append(f"the code is that of {draft.hook.name}, by its blob ids")
        proof.remarks += [f"also a line of {path}: {line!r}" for path, line in _shared_lines(draft, both)]
        if draft.hook is None:
            _prove_import(draft.hub, both)
        python = [path for path in (*change, *tests) if path.endswith(".py")]
        for tool, command in draft.hub.style.items():
            _prove_style(tool, command, python, both, proof)
        before, after = (_run(draft.hub, root, [*draft.own_tests, *tests]) for root in both.both)
        # theirs are all but ours: a test that a class inherits is reported under the file that it is written in
        theirs = _of(before, tests, mine=False), _of(after, tests, mine=False)
        _prove_own(draft.own_tests, *theirs, proof)
        ours = _of(before, tests, mine=True), _of(after, tests, mine=True)
        _prove_ours(draft.must_fail, *ours, proof)
    return proof


def numbers(draft: Draft, base: str, pinned: Path | None = None, fetch: Fetch = wheel.fetch) -> str:
    """Run ``figures.py`` of the draft on the two trees; what it printed, under a line that says on which.

    It is called with the folders that hold the package, without and with the change, and can import what lies beside
    ``hub.toml``.

    Raises:
        CheckoutError, DraftError: see :func:`.trees.trees`; the draft has no ``figures.py``.
        PatchError: it failed.
    """
    script = draft.folder / "figures.py"
    if not script.is_file():
        raise DraftError(f"{draft.name} has no figures.py")
    with trees(draft, base, pinned, fetch) as both:
        roots = [str(root / draft.hub.python_path) for root in both.both]
        result = _python([str(script.absolute()), *roots], both.with_, draft.folder.parent)
        if result.returncode:
            raise PatchError(f"figures.py of {draft.name} failed: {_last(result.stderr)}")
        return f"{draft.name} on {both.base}\n{result.stdout}"


def _paths(draft: Draft) -> list[str]:
    """Our test files, at their paths in the repository."""
    edited = [edit.path for edit in draft.edits("tests")]
    new = [f"tests/{file.relative_to(draft.folder / 'tests').as_posix()}" for file in _test_files(draft)]
    return list(dict.fromkeys([*edited, *new]))


def _test_files(draft: Draft) -> list[Path]:
    return sorted((draft.folder / "tests").rglob("test_*.py"))


def _prove_patch(draft: Draft, both: Trees, proof: Proof) -> None:
    """``git am`` of what is built must give the very files of the tree with the change."""
    for path, content in applied(draft, build(draft, both.checkout), both.checkout).items():
        if (both.with_ / path).read_bytes() != content:
            proof.failures.append(f"git am makes another {path} than the draft")
            return
    proof.facts.append("git am takes what format-patch wrote, and gives the same files")


def _shared_lines(draft: Draft, both: Trees) -> list[tuple[str, str]]:
    """Longer lines of ours that the edited file has already: a draft should hold our lines only."""
    shared = []
    for edit in draft.edits("change"):
        theirs = split_lines((both.without / edit.path).read_bytes())
        shared += [(edit.path, line.decode()) for line in dict.fromkeys(repeated(split_lines(edit.lines), theirs))]
    return shared


def _prove_import(hub: Hub, both: Trees) -> None:
    """The trees, and no installed package, must be what the tests import."""
    for root in both.both:
        result = _python(["-c", f"import {hub.module}; print({hub.module}.__file__)"], root, root / hub.python_path)
        if result.returncode:
            raise PatchError(f"cannot import {hub.module} of {both.base} here: {_last(result.stderr)}")
        if not Path(result.stdout.splitlines()[-1]).is_relative_to(root):
            raise PatchError(f"import {hub.module} found {result.stdout.splitlines()[-1]}, not the files below {root}")


def _prove_style(tool: str, command: Sequence[str], files: Sequence[str], both: Trees, proof: Proof) -> None:
    present = _python(["-m", command[0], "--version"], both.with_)
    if present.returncode:
        proof.remarks.append(f"{tool} was not run: {_last(present.stderr)}")
        return
    old = [path for path in files if (both.without / path).exists()]
    result = _python(["-m", *command, *files], both.with_)
    if result.returncode == 0:
        proof.facts.append(f"{tool}: nothing to say on {both.base}")
    elif _python(["-m", *command, *old], both.without).returncode:
        proof.remarks.append(f"{tool} complains on {both.base} with and without the change: {_last(result.stdout)}")
    else:
        proof.failures.append(f"{tool} on {both.base}: {_text(result)}")


def _prove_own(paths: Sequence[str], without: Outcomes, with_: Outcomes, proof: Proof) -> None:
    if not paths:
        proof.remarks.append("the hub has no tests of this area")
        return
    passed = [test for test, outcome in with_.items() if outcome == "passed"]
    broken = [test for test, outcome in without.items() if outcome == "passed" and test not in passed]
    failing = [test for test, outcome in with_.items() if outcome == "failed" and test not in broken]
    if broken or not passed:
        proof.failures.append(f"the hub's own tests: {_names(broken) or 'none passes'}")
    else:
        proof.facts.append(f"the hub's own tests pass with the change as without: {len(passed)} in {', '.join(paths)}")
    if failing:
        proof.remarks.append(f"tests of the hub that fail here without the change too: {_names(failing)}")


def _prove_ours(must_fail: Sequence[str], without: Outcomes, with_: Outcomes, proof: Proof) -> None:
    bad = [test for test, outcome in with_.items() if outcome != "passed"]
    if bad or not with_:
        proof.failures.append(f"our tests with the change: {_names(bad) or 'none ran'}")
    else:
        proof.facts.append(f"our tests pass with the change: {len(with_)}")
    for wanted in must_fail:
        cases = [test for test in with_ if _function(test) == wanted]
        # a file that cannot even be collected without the change has no outcomes: none of its tests passes
        silent = [test for test in cases if without.get(test, "failed") != "failed"]
        if silent or not cases:
            proof.failures.append(f"must fail without the change, but does not: {_names(silent) or wanted}")
        else:
            proof.facts.append(f"fails without the change: {wanted} ({len(cases)} of {len(cases)} cases)")
    controls = [test for test in with_ if _function(test) not in must_fail]
    broken = [test for test in controls if without.get(test, "failed") != "passed"]
    if broken:
        proof.failures.append(f"fails without the change, but is not named in must_fail: {_names(broken)}")
    elif controls:
        proof.facts.append(f"controls pass without and with the change: {len(controls)}")


def _function(test: tuple[str, str]) -> str:
    return test[1].partition("[")[0]


def _names(tests: Sequence[tuple[str, str]]) -> str:
    return ", ".join("::".join(test) for test in tests)


def _of(outcomes: Outcomes, paths: Sequence[str], mine: bool) -> Outcomes:
    """Those in ``paths``, or all others."""
    return {test: outcome for test, outcome in outcomes.items() if (test[0] in paths) == mine}


def _run(hub: Hub, root: Path, paths: Sequence[str]) -> Outcomes:
    """Run the tests in ``paths`` on one tree."""
    report = root.parent / f"{root.name}.xml"
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-o", "junit_family=xunit1"]
    result = _python(["-m", "pytest", *options, f"--junitxml={report}", *paths], root, root / hub.python_path)
    if result.returncode not in (0, 1, 2) or not report.is_file():
        raise PatchError(f"pytest {' '.join(paths)} does not run in {root.name}: {_text(result)}")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[case.get("file", ""), case.get("name", "")] = outcome
    return outcomes


def _python(
    arguments: Sequence[str], folder: Path, python_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python in ``folder``; nothing but ``python_path`` comes before the installed packages."""
    environment = gitrepo.environment(PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")  # tests of a hub may call git
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path.absolute())
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _text(result: subprocess.CompletedProcess[str]) -> str:
    return " | ".join(line for line in (result.stdout + result.stderr).splitlines()[-12:] if line.strip())
