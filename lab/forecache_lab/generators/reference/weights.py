"""Where the weights of the small reference networks lie: in a checkout of this repository, not in the wheel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from ...errors import UserError

FOLDER = Path("benchmarks", "weights")


def find(name: str) -> Path:
    """The file of ``name``: in the folder that ``FORECACHE_WEIGHTS`` names, else in ``benchmarks/weights`` of the
    checkout that the working directory or this file belongs to.

    Raises:
        UserError: says where it was looked for, and where it is.
    """
    given = os.environ.get("FORECACHE_WEIGHTS")
    roots = [*Path.cwd().resolve().joinpath("-").parents, *Path(__file__).resolve().parents]
    folders = [Path(given)] if given else [root / FOLDER for root in roots]
    for folder in folders:
        if (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
    where = f"FORECACHE_WEIGHTS={given}" if given else f"{FOLDER} of {Path.cwd()} and the folders above it"
    raise UserError(
        f"weights of the reference network {name!r}: no {name}.safetensors in {where}. They are part of a checkout of "
        "forecache and of no wheel: run from the checkout, or set FORECACHE_WEIGHTS to its benchmarks/weights"
    )


def fill(weights: str | Path, modules: Mapping[str, nn.Module]) -> None:
    """Load weights, a file or a name for :func:`find`, into the modules of the same names."""
    path = weights if isinstance(weights, Path) else find(weights)
    state = {name: value.float() for name, value in load_file(path).items()}
    for prefix, module in modules.items():
        own = {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
        module.load_state_dict(own)
