"""The loop: picture by picture, seed by seed, every method; a result that is there is not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from forecache import fingerprint

from .. import record
from ..run_folder import open_folder
from ..subjects.generated import Generated, GenerationFailed, Generator, synchronise
from . import results, scores
from .errors import BenchError
from .methods import OWN, UNCACHED, Method
from .pictures import Folder, Picture
from .results import Result

REPEATED = 1e-2  # latent drift of an uncached run to itself, above which nothing is paired
SHOWN = 12  # pictures whose meshes and steps are kept for the page

Progress = Callable[[int, int, str], None]  #: results that are there, of how many, what was made last


@dataclass(frozen=True)
class _Run:
    """One measured run, held until all of its picture are made and can be compared."""

    method: Method
    place: int
    made: Generated | None = None
    peak: int | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        generator: from its subject. methods: beside the uncached run, which is always made.
        folder: of the pictures. seeds: of the noise, for every picture. out: the run folder.
        steps: of every stage; ``None``: the generator's own number.
        end_to_end: later stages run on the voxels of their own run, and not on those of the uncached one.
        shown: how many pictures have meshes and steps, of the first seed, on the page.
    """

    generator: Generator
    methods: Sequence[Method]
    folder: Folder
    seeds: Sequence[int]
    out: Path
    steps: int | None = None
    end_to_end: bool = False
    shown: int = SHOWN

    def __post_init__(self) -> None:
        for method in self.methods:
            try:
                with self.generator.attached(method.settings):
                    pass
            except (ValueError, TypeError) as error:
                why = "this generator has no rule of its own" if OWN in (method.settings or {}) else str(error)
                raise BenchError(f"--method {method.label}: {why}") from None

    @property
    def rows(self) -> list[Method]:
        """The uncached run and the methods."""
        return [UNCACHED, *self.methods]

    def settings(self) -> dict[str, Any]:
        """What all results of the folder have in common."""
        return {
            "generator": self.generator.title, "conditions": self.generator.conditions,
            "networks": {stage: fingerprint(network) for stage, network in self.generator.networks.items()},
            "steps": self.steps, "end_to_end": self.end_to_end, "torch": torch.__version__,
        }  # fmt: skip

    def run(self, progress: Progress) -> None:
        """Make what is missing. The methods of a picture take turns in coming first, so that none profits from its
        place; where later stages need the voxels of the uncached run, that one always does.

        Raises:
            BenchError: the folder has other settings; two uncached runs with one noise differ; the generator refuses a
                method.
        """
        try:
            open_folder(self.out, self.settings())
        except ValueError as error:
            raise BenchError(str(error)) from None
        results.sweep(self.out)
        total, done, warm = len(self.folder.pictures) * len(self.seeds) * len(self.rows), 0, set[str]()
        for k, (picture, seed) in enumerate((p, s) for p in self.folder.pictures for s in self.seeds):
            missing = [
                row for row in self.rows if not results.path_of(self.out, picture.digest, seed, row.key).exists()
            ]
            done += len(self.rows) - len(missing)
            progress(done, total, picture.name)
            if not missing:
                continue
            image = picture.load()
            order = self._order(k, [UNCACHED, *(row for row in missing if row is not UNCACHED)])
            repeated = self._warm_up(order, warm, image, seed)
            made: dict[str, _Run] = {}
            for place, row in enumerate(order):
                made[row.key] = self._measured(row, image, seed, place, made.get(UNCACHED.key))
                progress(done, total, f"{picture.name}, {row.label}")
            show = self.shows(picture, seed)
            for row in (row for row in self.rows if row in missing):
                results.save(self.out, self._result(picture, seed, made[row.key], made[UNCACHED.key], show, repeated))
                done += 1
            progress(done, total, picture.name)

    def shows(self, picture: Picture, seed: int) -> bool:
        """Whether this object is on the page with its meshes and steps."""
        return seed == self.seeds[0] and picture in self.folder.pictures[: self.shown]

    def _order(self, k: int, rows: list[Method]) -> list[Method]:
        first, rest = (rows[:1], rows[1:]) if self._given else ([], rows)
        turn = k % len(rest) if rest else 0
        return [*first, *rest[turn:], *rest[:turn]]

    @property
    def _given(self) -> bool:
        """Whether runs get the voxels of the uncached one."""
        return self.generator.paired and not self.end_to_end

    def _warm_up(self, rows: Sequence[Method], warm: set[str], image: Any, seed: int) -> float | None:
        """Run what is not ``warm`` yet: what only first calls cost belongs to no row. One noise must give one object:
        returns the drift of the uncached run to itself, if it was run.
        """
        first: Generated | None = None
        repeated = None
        cold = [row for row in rows if row.key not in warm]
        try:
            for row in sorted(cold, key=lambda row: row is not UNCACHED):
                made = self._generate(row, image, seed, first)
                if row is UNCACHED:
                    first = made
                    again = self._generate(row, image, seed, None)
                    repeated = max(scores.drifts(again, first).values(), default=float("inf"))
                warm.add(row.key)
        except GenerationFailed:  # the measured run says so, and the next picture warms up
            return repeated
        except ValueError as error:  # what only a run finds out, such as a plan for another grid
            raise BenchError(f"--method {row.label}: {error}") from error
        if repeated is not None and repeated > REPEATED:
            raise BenchError(f"two uncached runs with one noise differ by {repeated:.2g} of the latent: not comparable")
        return repeated

    def _generate(self, row: Method, image: Any, seed: int, given: Generated | None) -> Generated:
        settings, steps = row.settings, self.steps
        if row.calls is not None:
            settings, steps = self.generator.fewer(row.calls)
        return self.generator.generate(image, seed, settings, steps, given if self._given else None)

    def _measured(self, row: Method, image: Any, seed: int, place: int, uncached: _Run | None) -> _Run:
        given = None if uncached is None else uncached.made
        cuda = torch.cuda.is_available()
        synchronise()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            made = self._generate(row, image, seed, given)
        except GenerationFailed as error:
            return _Run(row, place, failed=str(error))
        synchronise()
        made.seconds["rest"] = max(time.perf_counter() - start - sum(made.seconds.values()), 0.0)
        return _Run(row, place, made, torch.cuda.max_memory_allocated() if cuda else None)

    def _result(
        self, picture: Picture, seed: int, run: _Run, uncached: _Run, show: bool, repeated: float | None
    ) -> Result:
        found = Result(picture.name, picture.digest, seed, run.method.key, failed=run.failed, place=run.place)
        if run.made is None:
            return found
        made, values = run.made, {}
        if run.method is UNCACHED:
            values = scores.floor(made)
        elif uncached.made is not None:
            values = scores.score(made, uncached.made)
        mesh = None
        if show and made.mesh is not None:
            mesh = record.save_mesh(self.out, f"{picture.digest[:16]}-seed{seed}-{run.method.key}", made.mesh)
        return replace(
            found, calls=made.calls, seconds=made.seconds, values=values, trace=made.trace if show else {}, mesh=mesh,
            peak=run.peak, repeated=repeated if run.method is UNCACHED else None,
        )  # fmt: skip

    def found(self) -> Iterator[tuple[Picture, int, Mapping[str, Result]]]:
        """Results by method for every picture and seed; one without any is left out."""
        for picture in self.folder.pictures:
            for seed in self.seeds:
                paths = {row.key: results.path_of(self.out, picture.digest, seed, row.key) for row in self.rows}
                there = {key: results.load(path) for key, path in paths.items() if path.exists()}
                if there:
                    yield picture, seed, there
