"""Importing an upstream without the packages that its shape path never calls."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


class _Stub(types.ModuleType):
    """A module whose attributes resolve, so that annotations and base classes in the upstream's files do."""

    def __getattr__(self, attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})


def stub(*names: str) -> None:
    """Register stand-ins for ``names`` (a package, then its submodules) unless the package is installed.

    ``__spec__`` is set because ``importlib.util.find_spec`` raises on a module without one.
    """
    if names[0] in sys.modules or importlib.util.find_spec(names[0]) is not None:
        return
    _let_transformers_look(names[0])
    for name in names:
        module = _Stub(name)
        module.__path__ = []  # a package: its submodules can be imported
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def _let_transformers_look(name: str) -> None:
    """Have transformers ask for ``name`` now: it remembers the answer, and would take a stand-in for the package."""
    if importlib.util.find_spec("transformers") is None or is_stub("transformers"):
        return
    from transformers import utils

    for question in (f"is_{name}_available", f"is_{name}_v2_available"):
        getattr(utils, question, bool)()


def is_stub(name: str) -> bool:
    """Whether :func:`stub` stands in for a package."""
    return isinstance(sys.modules.get(name), _Stub)


def require_origin(module: Any, file: Path, checkout: Path | str) -> None:
    """A process holds one checkout of a package.

    Raises:
        RuntimeError: ``module`` was imported from elsewhere before.
    """
    if Path(str(module.__file__)).resolve() != file:
        raise RuntimeError(f"checkout: {module.__file__} is already imported; start a new process for {checkout}")


def import_shape_path(checkout: Path | str, folder: str, *names: str) -> list[Any]:
    """Import the modules ``names`` of a Hunyuan3D checkout whose package lies in ``folder``.

    Raises:
        FileNotFoundError: ``checkout`` does not hold the first of them.
        RuntimeError: another checkout's package is already imported (a process holds one).
    """
    root = Path(checkout).resolve() / folder
    file = root.joinpath(*names[0].split(".")).with_suffix(".py")
    if not file.is_file():
        raise FileNotFoundError(f"checkout: {checkout} holds no {file.relative_to(Path(checkout).resolve())}")
    import diffusers.models.attention  # noqa: F401  before any stub: diffusers probes for optional packages

    stub("pymeshlab")
    stub("cv2")
    stub("torchvision", "torchvision.transforms")
    stub("transformers")
    stub("omegaconf")
    stub("timm", "timm.models", "timm.models.vision_transformer")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    modules = [importlib.import_module(name) for name in names]
    require_origin(modules[0], file, checkout)
    return modules
