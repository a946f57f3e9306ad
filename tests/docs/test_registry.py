"""One table names the generators; all that belongs to one of them is there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import document_checks as checks
import pytest

from forecache_lab.generators.registry import GENERATORS
from forecache_lab.session.main import MEASUREMENTS
from forecache_patches import load_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LARGEST = 100_000  # bytes of one file in the wheel


@pytest.mark.parametrize("row", GENERATORS.values(), ids=lambda row: row.name)
def test_what_a_row_names_is_there(row):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert row.name in extras and (not row.weights_extra or row.weights_extra in extras)
    assert {f"{row.name}_{basis}" for basis in row.bases} <= checks.sessions()
    lock = load_lock()
    assert set(row.pins.values()) <= set(lock)
    assert row.wheel == any(lock[name].wheel is not None for name in row.pins.values())
    assert callable(importlib.import_module(f"forecache_adapters.{row.adapter}").enable)
    module, _, kind = row.subject.partition(":")
    assert isinstance(getattr(importlib.import_module(f"forecache_lab.generators.{module}"), kind), type)
    assert row.measured in MEASUREMENTS


def test_the_table_needs_nothing_installed():
    """As nox reads it: by its path, in an interpreter that finds no package."""
    file = str(ROOT / "lab" / "forecache_lab" / "generators" / "registry.py")
    script = f"import runpy; print(*runpy.run_path({file!r})['GENERATORS'])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(GENERATORS)


def test_the_wheel_stays_small():
    """Weights, recordings and pictures lie outside of the packages."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = packages["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    files = [file for file in files if not re.search(r"__pycache__", str(file))]
    assert len(files) > 200
    assert [str(file) for file in files if file.stat().st_size > LARGEST] == []
    assert sum(file.stat().st_size for file in files) < 2_000_000  # a wheel compresses them to a third
