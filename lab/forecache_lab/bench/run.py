"""The loop over pictures, seeds and methods, which makes the results that the run folder lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forecache import fingerprint

from .. import record
from ..errors import UserError
from ..generators.generated import Generated, Generator, synchronise
from ..run_folder import open_folder
from . import results, scores
from .failures import Failure, attempt
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
    made: Generated | Failure
    peak: int | None = None


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
                raise UserError(f"--method {method.label}: {why}") from None

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

    def run(self, progress: Progress) -> int:
        """Make what is missing; returns how many results an error kept from being there. The methods of a picture take
        turns in coming first, so that none profits from its place; where later stages need the voxels of the uncached
        run, that one always does.

        Raises:
            UserError: the folder has other settings; two uncached runs with one noise differ; the generator refuses a
                method.
        """
        try:
            open_folder(self.out, self.settings())
        except ValueError as error:
            raise UserError(str(error)) from None
        results.remove_unfinished(self.out)
        total, done, warm, lost = len(self.folder.pictures) * len(self.seeds) * len(self.rows), 0, set[str](), 0
        for k, (picture, seed) in enumerate((p, s) for p in self.folder.pictures for s in self.seeds):
            missing = [
                row
                for row in self.rows
                if not results.is_final(results.path_of(self.out, picture.digest, seed, row.key))
            ]
            done += len(self.rows) - len(missing)
            progress(done, total, picture.name)
            if not missing:
                continue
            order = self._order(k, [UNCACHED, *(row for row in missing if row is not UNCACHED)])
            made, repeated = self._made(order, picture, seed, warm, partial(progress, done, total))
            for row in (row for row in self.rows if row in missing):
                found = self._result(picture, seed, made[row.key], made[UNCACHED.key], repeated)
                results.save(self.out, found)
                done, lost = done + 1, lost + found.retry
            progress(done, total, picture.name)
        return lost

    def _made(
        self, order: list[Method], picture: Picture, seed: int, warm: set[str], progress: Callable[[str], None]
    ) -> tuple[dict[str, _Run], float | None]:
        """The runs of one picture and seed by method, and the drift of the uncached one to itself."""
        image = attempt(picture.load, picture.name, self.out)
        if isinstance(image, Failure):
            return {row.key: _Run(row, 0, image) for row in order}, None
        cold = [row for row in order if row.key not in warm]
        repeated, failed = self._warm_up(cold, picture, image, seed)
        warm.update(row.key for row in cold if row.key not in failed and UNCACHED.key not in failed)
        made: dict[str, _Run] = {}
        for place, row in enumerate(order):
            progress(f"{picture.name}, {row.label}")
            failure = failed.get(UNCACHED.key) or failed.get(row.key)
            uncached = made.get(UNCACHED.key)
            made[row.key] = (
                _Run(row, place, failure) if failure else self._measured(row, picture, image, seed, place, uncached)
            )
        return made, repeated

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

    def _warm_up(
        self, cold: Sequence[Method], picture: Picture, image: Any, seed: int
    ) -> tuple[float | None, dict[str, Failure]]:
        """Run every method that was not run yet once, unmeasured, because first calls take longer.

        Returns the drift of the uncached run to itself, if it was run (the same noise must give the same object), and
        the methods that failed, which are warmed up with the next picture.
        """
        first: Generated | None = None
        repeated = None
        failed: dict[str, Failure] = {}
        for row in sorted(cold, key=lambda row: row is not UNCACHED):
            made = self._tried(row, picture, image, seed, first)
            if row is UNCACHED and isinstance(made, Generated):
                first, made = made, self._tried(row, picture, image, seed, None)
                if isinstance(made, Generated):
                    repeated = max(scores.drifts(made, first).values(), default=float("inf"))
            if isinstance(made, Generated):
                continue
            failed[row.key] = made
            if row is UNCACHED:
                break  # nothing can be compared with it
            if made.refusal is not None and self._refused(row, picture, seed):
                raise UserError(f"--method {row.label}: {made.refusal}")
        if repeated is not None and repeated > REPEATED:
            raise UserError(f"two uncached runs with one noise differ by {repeated:.2g} of the latent: not comparable")
        return repeated, failed

    def _refused(self, row: Method, failed: Picture, seed: int) -> bool:
        """Whether a ValueError of a method's first run is about the method, as of a plan for another grid, and not
        about the picture: then another picture has it too.
        """
        for other in (picture for picture in self.folder.pictures if picture is not failed):
            made = self._tried(row, other, None, seed, None)
            if not isinstance(made, Failure) or made.refusal is not None:
                return isinstance(made, Failure)
        return True

    def _tried(
        self, row: Method, picture: Picture, image: Any | None, seed: int, given: Generated | None
    ) -> Generated | Failure:
        """One run of the generator; ``image``: the picture, where it is loaded."""

        def work() -> Generated:
            settings, steps = row.settings, self.steps
            if row.calls is not None:
                settings, steps = self.generator.fewer(row.calls)
            seen = picture.load() if image is None else image
            synchronise()
            start = time.perf_counter()
            made = self.generator.generate(seen, seed, settings, steps, given if self._given else None)
            synchronise()
            made.seconds["rest"] = max(time.perf_counter() - start - sum(made.seconds.values()), 0.0)
            scores.check(made)
            return made

        return attempt(work, f"{picture.name}, seed {seed}, {row.key}", self.out)

    def _measured(
        self, row: Method, picture: Picture, image: Any, seed: int, place: int, uncached: _Run | None
    ) -> _Run:
        given = None if uncached is None else uncached.made
        if isinstance(given, Failure):
            return _Run(row, place, given)
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        made = self._tried(row, picture, image, seed, given)
        return _Run(row, place, made, torch.cuda.max_memory_allocated() if cuda else None)

    def _result(self, picture: Picture, seed: int, run: _Run, uncached: _Run, repeated: float | None) -> Result:
        found = Result(picture.name, picture.digest, seed, run.method.key, place=run.place)
        made, reference = run.made, uncached.made
        failure = made if isinstance(made, Failure) else None
        if isinstance(reference, Failure) and run is not uncached:
            failure = replace(reference, reason=f"its uncached run failed: {reference.reason}")
        if failure is not None:
            return replace(found, failed=failure.reason, retry=failure.retry)
        assert isinstance(made, Generated) and isinstance(reference, Generated)
        score = partial(scores.floor, made) if run is uncached else partial(scores.score, made, reference)
        values = attempt(score, f"{picture.name}, seed {seed}, {run.method.key}, its score", self.out)
        if isinstance(values, Failure):
            return replace(found, failed=values.reason, retry=values.retry)
        show, mesh = self.shows(picture, seed), None
        if show and made.mesh is not None:
            mesh = record.save_mesh(self.out, f"{picture.digest[:16]}-seed{seed}-{run.method.key}", made.mesh)
        return replace(
            found, calls=made.calls, seconds=made.seconds, values=values, trace=made.trace if show else {}, mesh=mesh,
            peak=run.peak, repeated=repeated if run is uncached else None,
        )  # fmt: skip

    def results_by_object(self) -> Iterator[tuple[Picture, int, Mapping[str, Result]]]:
        """Results by method for every picture and seed; one without any is left out."""
        for picture in self.folder.pictures:
            for seed in self.seeds:
                paths = {row.key: results.path_of(self.out, picture.digest, seed, row.key) for row in self.rows}
                there = {key: results.load(path) for key, path in paths.items() if path.exists()}
                if there:
                    yield picture, seed, there
