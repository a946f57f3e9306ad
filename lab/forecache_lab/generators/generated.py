"""What the measurements ask of a generator: whole objects of pictures, or one stage alone; and what a run leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import trimesh
from PIL import Image

from .. import record
from ..metrics import pose


class GenerationFailed(RuntimeError):
    """The generator ran and made no object of this picture; others may do well."""


@dataclass
class Generated:
    """What one run made: an object, or what one stage returned and its latent decodes to.

    Attributes:
        latents: what each stage's sampler returned, by stage, features only, float32 on the CPU; of a stage that
            returns leaves, the shape's. Where one stage ran alone, all of its leaves by name, that of the shape first.
        calls: at the network, by stage.
        seconds: by stage; ``decode``; the device is synchronised before every reading.
        voxels: coordinates that a later stage ran on, by what made them; they can be given to another run.
        occupancy: what the first stage decodes to; ``None``: the generator has no voxels. mesh, pose: as occupancy.
        trace: steps by stage and branch, where a cache was attached.
    """

    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    voxels: dict[str, torch.Tensor] = field(default_factory=dict)
    occupancy: torch.Tensor | None = None
    mesh: trimesh.Trimesh | None = None
    pose: pose.Pose | None = None
    trace: dict[str, record.Steps] = field(default_factory=dict)

    @property
    def latent(self) -> torch.Tensor:
        """The first one."""
        return next(iter(self.latents.values()))

    @property
    def all_calls(self) -> int:
        """Calls of all stages."""
        return sum(self.calls.values())

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage."""
        synchronise()
        start = time.perf_counter()
        yield
        synchronise()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def timing(self, stage: str) -> Callable[[Any], Any]:
        """Made for :func:`replaced`: the function, its seconds added to those of a stage."""

        def wrap(function: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                with self.timed(stage):
                    return function(*args, **kwargs)

            return run

        return wrap

    def traced(self, handle: Any, alone: str | None = None) -> None:
        """Take the traces of the handle of a generator with stages; ``None``: nothing was attached.

        ``alone``: the only stage that ran; its branches need no prefix.
        """
        for stage, found in ({} if handle is None else handle.traces).items():
            if alone in (None, stage):
                prefix = "" if alone else f"{stage}, "
                self.trace |= {f"{prefix}{name}": record.steps(each) for name, each in found.branches.items()}


class Generator(Protocol):
    """A subject: ``generate`` makes objects of pictures for the bench, ``sample`` runs one stage for the sessions.

    A generator in stages also has ``intervals`` (of the rows), ``fork_last`` (whether its forks compute the last step),
    ``name`` (in the files of plans) and ``sampler(stage)`` (for :func:`forecache_lab.metrics.combined.combined`); one
    with a cache of its own has ``carves`` (by stage, whether computed steps leave tokens out).
    """

    title: str
    conditions: str  #: one line for the table

    @property
    def grids(self) -> Mapping[str, Sequence[int]]:
        """Numbers of steps to measure, by stage."""
        ...

    @property
    def seeds(self) -> Mapping[str, int]:
        """Test conditions by stage, unless the user asks for another number."""
        ...

    def sample(self, stage: str, seed: int, steps: int, settings: Mapping[str, Any] | None = None) -> Generated:
        """Run one stage with the noise and condition of ``seed``; ``settings`` for the adapter, ``None``: uncached."""
        ...

    @property
    def networks(self) -> Mapping[str, Any]:
        """By stage, in the order in which they run."""
        ...

    @property
    def paired(self) -> bool:
        """Whether a later stage runs on voxels of an earlier one, so that :meth:`generate` has a use for ``given``."""
        ...

    def attached(self, settings: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
        """The cache for a block, with its handle; of ``None``, no cache and ``None``.

        Raises:
            ValueError, TypeError: a setting that the generator does not take.
        """
        ...

    def fewer(self, calls: int) -> tuple[Mapping[str, Any] | None, int]:
        """Settings and steps of the plain sampler with so many network calls (a branch) in every stage."""
        ...

    def generate(
        self,
        picture: Image.Image,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        given: Generated | None = None,
    ) -> Generated:
        """Make the object of a picture (RGBA) with the noise of ``seed``.

        Args:
            picture: of one object.
            seed: of the noise, whatever the settings are.
            settings: for the adapter, of every stage; ``None``: uncached.
            steps: of every stage; ``None``: the generator's own number.
            given: another run, whose voxels the later stages use instead of those of this one: one voxel more or less
                would draw other noise for all of them.

        Raises:
            GenerationFailed: no object came of it.
        """
        ...


class InStages:
    """What generators with a structure stage and later ones have in common: calls are counted at their networks, the
    adapter is attached to a pipeline, and the plain sampler makes as many calls as it has steps.

    Attributes:
        first: number of the first test condition.
    """

    adapter: Any
    pipe: Any
    grids: Mapping[str, Sequence[int]]
    first: int
    intervals: Sequence[int] = (2, 3)
    paired = True
    _calls = 0

    def _count(self, *unused: Any) -> None:
        self._calls += 1

    def attached(self, settings: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
        """See :meth:`Generator.attached`."""
        return nullcontext() if settings is None else self.adapter.enabled(self.pipe, **settings)

    def fewer(self, calls: int) -> tuple[Mapping[str, Any] | None, int]:
        """See :meth:`Generator.fewer`."""
        return None, calls

    def sample(self, stage: str, seed: int, steps: int, settings: Mapping[str, Any] | None = None) -> Generated:
        """See :meth:`Generator.sample`."""
        with self.attached(None if settings is None else {"stages": self.alone(stage, settings)}) as handle:
            made = self.run(stage, self.first + seed, steps)
        made.traced(handle, alone=stage)
        return made

    def alone(self, stage: str, settings: Any) -> dict[str, Any]:
        """The adapter's argument ``stages``: settings for one stage, no cache for the others."""
        return {**dict.fromkeys(self.grids), stage: settings}

    def run(self, stage: str, seed: int, steps: int) -> Generated:
        """One stage with whatever is attached; ``seed``: the condition's own number."""
        raise NotImplementedError


def synchronise() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
