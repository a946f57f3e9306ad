"""What the tests of the nodes for ComfyUI share, on the stand-in and on a checkout of ComfyUI."""

from __future__ import annotations

import importlib
import json
import os
import re
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import comfyui_standin
from forecache.rules import Linear
from forecache.snapshots import Snapshots

CHECKOUT = os.environ.get("FORECACHE_COMFYUI")
NO_CHECKOUT = "needs ComfyUI's code: FORECACHE_COMFYUI names a checkout, as `nox -s comfyui` makes one"


class OfSigma(Linear):
    """A line of the sampler's time, sigma; those of the package are lines of the step index."""

    clock = "time"


LINEAR = {"basis": OfSigma(1), "interval": 2}  # serves what is affine in sigma without an error
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
DOCS = Path(__file__).parents[1] / "docs"
WORKFLOW = json.loads((DOCS / "comfyui_workflow.json").read_text())
PAGE = (DOCS / "comfyui.md").read_text()
INSTALLED = re.findall(r"^ *(from forecache_adapters\.comfyui import .*)$", PAGE, re.MULTILINE)


def entry(*values: float, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """A conditioning entry: what the network multiplies in each channel."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 4), options


POSITIVE, NEGATIVE = [entry(1.0, -2.0, 0.5, 3.0)], [entry(-4.0, 1.0, 2.0, -0.5)]


def go(comfy: ModuleType, model: Any, **options: Any) -> torch.Tensor:
    """One run."""
    positive, negative = options.pop("positive", POSITIVE), options.pop("negative", NEGATIVE)
    return comfy.sample(model, options.pop("noise", NOISE), positive, negative, **options)  # type: ignore[no-any-return]


@pytest.fixture(params=["standin", "real"] if CHECKOUT else ["standin"])
def comfy(request: pytest.FixtureRequest) -> ModuleType:
    """The stand-in, and ComfyUI itself where there is a checkout of it."""
    torch.set_num_threads(1)
    backend = comfyui_standin if request.param == "standin" else importlib.import_module("comfyui_real")
    backend.together[:] = [lambda: True]
    return backend


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many histories are held."""
    held = weakref.WeakSet[Snapshots]()
    made = Snapshots.__init__

    def noted(self: Snapshots, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        held.add(self)

    monkeypatch.setattr(Snapshots, "__init__", noted)
    return lambda: len(held)
