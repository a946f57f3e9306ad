"""The generators, one row each: a new one is registered by adding a row here.

Sessions of nox, ``forecache bench``, ``forecache_lab.session``, the checks of the pages and the tests read this table.

The noxfile loads this file by its path, with nothing installed: it may import the standard library only.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

BASES = ("dmd", "hermite", "taylor", "auto")


class Row(NamedTuple):
    """One generator.

    Attributes:
        name: of the generator; also of its extra in pyproject.toml and the first part of its sessions' names.
        title: what people call it.
        subject: the class that the measurements make, ``MODULE:CLASS`` within ``forecache_lab.generators``.
        adapter: module within ``forecache_adapters``.
        pins: choice of ``--pin`` -> name in the lock of upstreams; the preferred one first.
        measured: what :mod:`forecache_lab.session` does with it: ``one stage`` (from noise to mesh), ``stages`` (each
            stage with fixed coordinates), ``own cache`` (beside the cache that the upstream carries).
        weights: ``forecache bench --weights`` can load its real weights.
        weights_extra: the extra that these weights need; empty: the upstream's README says what they need.
        wheel: whether a wheel on a package index holds the upstream's files; else only git has them.
        bases: rules with a session of their own.
    """

    name: str
    title: str
    subject: str
    adapter: str
    pins: MappingProxyType[str, str]
    measured: str
    weights: bool = False
    weights_extra: str = ""
    wheel: bool = True
    bases: tuple[str, ...] = BASES

    def make(self, checkout: Path, **options: Any) -> Any:
        """The subject around a patched checkout."""
        module, _, kind = self.subject.partition(":")
        return getattr(importlib.import_module(f"forecache_lab.generators.{module}"), kind)(checkout, **options)


def _pins(**names: str) -> MappingProxyType[str, str]:
    return MappingProxyType(names)


GENERATORS = MappingProxyType({
    row.name: row
    for row in (
        Row(
            "hunyuan21", "Hunyuan3D-2.1", "hunyuan21:Hunyuan21", "hunyuan21", _pins(own="hunyuan21"), "one stage",
            weights=True, weights_extra="hunyuan21-weights",
        ),
        Row(
            "hunyuan2mini", "Hunyuan3D-2 mini", "hunyuan2mini:Hunyuan2Mini", "hunyuan2",
            _pins(newest="hunyuan2", released="hunyuan2-released"), "one stage",
            weights=True, weights_extra="hunyuan2mini-weights",
        ),
        Row("trellis", "TRELLIS", "trellis:Trellis", "trellis", _pins(own="trellis"), "stages", weights=True),
        Row("trellis2", "TRELLIS.2", "trellis2:Trellis2", "trellis2", _pins(own="trellis2"), "stages", weights=True),
        Row("sam3d", "SAM 3D Objects", "sam3d:Sam3D", "sam3d", _pins(own="sam3d"), "stages"),
        Row(
            "fastsam3d", "Fast-SAM3D", "fastsam3d:FastSam3D", "fastsam3d", _pins(own="fastsam3d"), "own cache",
            wheel=False,
        ),
    )
})  # fmt: skip
