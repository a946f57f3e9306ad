"""The plans that come with the reference networks name the weights that come with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forecache import Plan, fingerprint
from forecache_lab.errors import UserError
from forecache_lab.generators import reference
from forecache_lab.generators.reference import weights

PLANS = sorted(reference.PLANS.glob("*.json"))
WEIGHTS = {("hunyuan21", "shape"): "hunyuan21", ("trellis", "sparse_structure"): "trellis_sparse_structure",
           ("trellis", "slat"): "trellis_slat", ("sam3d", "ss"): "sam3d_structure"}  # fmt: skip


class Network(torch.nn.Module):
    """The weights of a network without its class; they are kept in half precision and used in float32."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        prefix = "network."
        kept = load_file(file).items()
        self.weights = {name[len(prefix) :]: value.float() for name, value in kept if name.startswith(prefix)}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return self.weights


@pytest.mark.parametrize("file", [file for file in PLANS if not file.name.startswith("demo")], ids=lambda f: f.stem)
def test_a_plan_names_the_weights_that_it_was_made_for(file: Path) -> None:
    made_for = Plan.load(file).made_for
    name = WEIGHTS[made_for["generator"], made_for["stage"]]
    assert made_for["weights"] == fingerprint(Network(weights.find(name)))


def test_weights_that_are_not_there_are_an_error_that_says_where_they_are(tmp_path: Path, monkeypatch: Any) -> None:
    """As where only the wheel is installed; a command shows such an error as one line."""
    monkeypatch.setenv("FORECACHE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"FORECACHE_WEIGHTS=.* part of a checkout of forecache and of no wheel"):
        weights.find("hunyuan21")
