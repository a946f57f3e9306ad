"""Calibrators of both trees in one process: cache_dit of the tree without the change, and one module of the other."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "cache_dit.caching.cache_contexts.calibrators"


def both(name: str) -> tuple[ModuleType, ModuleType]:
    """The calibrator module `name` without and with the change."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
    without, changed = map(Path, sys.argv[1:3])
    sys.path.insert(0, str(without))
    before = importlib.import_module(f"{PACKAGE}.{name}")
    assert Path(before.__file__).is_relative_to(without), before.__file__
    file = changed.joinpath(*PACKAGE.split("."), f"{name}.py")
    sys.modules[PACKAGE].__path__.append(str(file.parent))  # for modules that are new
    # a name inside the package, so that its relative imports work
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{name}_changed", file)
    after = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(after)
    return before, after
