"""What the tests of real upstream code share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forecache import Forecaster, Trace
from forecache.rules import DMD
from forecache_lab.generators.reference import TEST_SEED, solids


def import_as(name: str, source: Path) -> ModuleType:
    """Import the file ``source`` as module ``name``; its relative imports are those of the package in ``name``."""
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def check_objects_of_pictures(subject: Any, steps: int = 3, settings: Mapping[str, Any] | None = None) -> None:
    """What the folder bench needs: the picture is what the network sees, noise is the seed's alone, and the later
    stages of a run may have the voxels of another one.
    """
    one, two = (grey(seed) for seed in range(2))
    made, noise = (subject.generate(one, seed, steps=steps) for seed in (0, 1))
    other = subject.generate(two, 0, steps=steps, given=made)
    first = next(iter(made.latents))
    assert relative(other.latents[first], made.latents[first]) > 0.01, "another picture is another condition"
    assert relative(noise.latents[first], made.latents[first]) > 0.01, "another seed is another noise"
    assert set(made.latents) <= set(made.calls) and set(made.latents) <= set(made.seconds)
    given = {"basis": "reuse", "interval": 2, "warmup": 1, "few_steps": True} if settings is None else settings
    cached = subject.generate(one, 0, given, steps, made)
    assert all(cached.calls[stage] < made.calls[stage] for stage in made.latents) and cached.trace
    assert all(relative(cached.latents[stage], made.latents[stage]) > 0 for stage in made.latents)
    again = subject.generate(one, 0, steps=steps)
    assert all(torch.equal(made.latents[stage], again.latents[stage]) for stage in made.latents), "nothing is left on"
    assert subject.paired == bool(made.voxels)
    for name, voxels in made.voxels.items():  # those of its own, which it did not run on
        assert other.voxels[name].shape != voxels.shape
        assert all(other.latents[stage].shape == made.latents[stage].shape for stage in made.latents)


def grey(seed: int) -> Image.Image:
    """A picture of a solid, as a user has it: RGBA."""
    level = (solids.picture(solids.solid(TEST_SEED + seed)[1])[0].numpy() + 1) / 2 * 255
    made = Image.fromarray(level.round().astype(np.uint8)).convert("RGBA")
    made.putalpha(Image.fromarray(np.where(level > 0, 255, 0).astype(np.uint8)))
    return made.resize((96, 96))


def check_batch_items(
    adapter: Any, pipe: Any, run: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of two equals two single runs, ``run(pipe, seeds)``, as nearly as uncached; a fit over the flattened
    batch, the control, couples them.
    """

    def coupling(**settings: Any) -> float:
        with adapter.enabled(pipe, **settings):
            return relative(run(pipe, (0, 1)), torch.cat([run(pipe, (seed,)) for seed in (0, 1)]))

    floor = coupling(interval=1)
    for basis in ("hermite", "dmd", "auto"):
        assert coupling(basis=basis, interval=3, warmup=4) <= 1e-6 + 3 * floor, basis
    whole = {"interval": 3, "warmup": 4, "batch_dim": None}
    monkeypatch.setattr(
        "forecache_adapters.settings.Settings._forecaster",
        lambda self, times, *rest: Forecaster(DMD(), times=times, **whole),
    )
    assert coupling() > 1e-5


def check_corrector(
    enabled: Callable[..., Any],
    run: Callable[[], Any],
    traces: Callable[[Any], Sequence[Trace]],
    possible: bool = True,
    **half: Any,
) -> None:
    """Every trace with "auto" and ``half`` the calls has corrected steps, where it is ``possible``, and all of them are
    computed ones right behind skipped ones. None with another rule or ``corrector=False``. Asked for, it is on with
    another rule too, or a note says why not.
    """
    asked = {"basis": "linear", "corrector": True}
    for settings, on in (({}, True), ({"corrector": False}, False), ({"basis": "linear"}, False), (asked, True)):
        with enabled(**half, **settings) as handle:
            run()
        found = traces(handle)
        assert found
        for trace in found:
            corrected = {step.index for step in trace.steps if step.corrected}
            kinds = [(step.index, before.kind, step.kind) for before, step in pairwise(trace.steps)]
            behind = {index for index, *each in kinds if each == ["forecast", "computed"]}
            assert behind and corrected <= behind
            assert bool(corrected) == (on and possible), (settings, corrected)
            why = [note for note in trace.notes if note.startswith("no corrector: this sampler does not just add")]
            assert bool(why) == (settings is asked and not possible), trace.notes
