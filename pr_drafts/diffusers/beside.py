"""One module of diffusers' hooks from both trees, in one process."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


PACKAGE = "diffusers.hooks"


def both(name: str) -> tuple[ModuleType, ModuleType]:
    """`diffusers.hooks.<name>` without and with the change; diffusers itself is the tree with the change."""
    without, changed = map(Path, sys.argv[1:3])
    sys.path.insert(0, str(changed))
    after = importlib.import_module(f"{PACKAGE}.{name}")
    assert Path(after.__file__).is_relative_to(changed), after.__file__
    # a name inside the package, so that its relative imports work
    file = without.joinpath(*PACKAGE.split("."), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{name}_without", file)
    before = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(before)
    return before, after
