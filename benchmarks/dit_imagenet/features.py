"""What FID and Inception Score see of a picture: an Inception network from a file, or a stub."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .statistics import Array

STUB = "stub"
WANTED = (
    "a TorchScript file that takes uint8 pictures [n, 3, H, W]: NVIDIA's inception-2015-12-05.pt, or a module of your"
    " own that returns (features [n, D], logits [n, C])"
)


@dataclass(frozen=True)
class Features:
    """A feature network.

    Attributes:
        name: for tables. digest: tells two files of one name apart.
        of: pictures ``uint8 [n, 3, H, W]`` to ``(features [n, D], log probabilities [n, C])``, float64.
    """

    name: str
    digest: str
    of: Callable[[torch.Tensor], tuple[Array, Array]]

    def width(self) -> int:
        """D, from a black picture."""
        return int(self.of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape[1])


def load(source: str, device: str) -> Features:
    """The stub, or the network in a file.

    Raises:
        ValueError: no such file, not TorchScript, or another interface.
    """
    if source == STUB:
        return stub()
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"features must be {STUB!r} or {WANTED}; there is no file {source}")
    jit: Any = torch.jit
    try:
        network = jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"features: {source} is not TorchScript (weights alone will not do); wanted: {WANTED}"
        ) from error
    taken = {argument.name for argument in network.forward.schema.arguments}
    of = _two_calls(network) if {"return_features", "no_output_bias"} <= taken else _one_call(network)

    def on_device(pictures: torch.Tensor) -> tuple[Array, Array]:
        with torch.no_grad():
            values, log_probabilities = of(pictures.to(device))
        return _plain(values), _plain(log_probabilities)

    return Features(path.name, hashlib.sha256(path.read_bytes()).hexdigest()[:16], on_device)


def _two_calls(network: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """NVIDIA's file: pool features, and the probabilities without the output layer's bias, as first published."""
    return lambda pictures: (
        network(pictures, return_features=True),
        network(pictures, no_output_bias=True).double().log(),
    )


def _one_call(network: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    def of(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = network(pictures)
        if not (isinstance(found, tuple) and len(found) == 2 and all(each.ndim == 2 for each in found)):
            raise ValueError(f"features: the file's module returns something else; wanted: {WANTED}")
        return found[0], found[1].double().log_softmax(dim=1)

    return of


def stub(width: int = 32, classes: int = 10) -> Features:
    """Two fixed random convolutions, their mean over the picture, and a fixed random linear layer.

    Its numbers say nothing about how pictures look. They show that the harness works.
    """
    draw = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        fan = math.prod(shape[1:])
        drawn: torch.Tensor = torch.randn(shape, generator=draw, dtype=torch.float64) * (2 / fan) ** 0.5
        return drawn

    first, second, last = weights(16, 3, 3, 3), weights(width, 16, 3, 3), 8 * weights(classes, width)

    def of(pictures: torch.Tensor) -> tuple[Array, Array]:
        x = pictures.cpu().double() / 127.5 - 1
        x = functional.relu(functional.conv2d(x, first, stride=2, padding=1))
        x = functional.relu(functional.conv2d(x, second, stride=2, padding=1)).mean(dim=(2, 3))
        return _plain(x), _plain((x @ last.T).log_softmax(dim=1))

    return Features(f"{STUB}: fixed random convolutions, {width} features", "", of)


def _plain(values: torch.Tensor) -> Array:
    return np.asarray(values.detach().cpu().double().numpy())
