"""One command: what is missing in the run's folder is made, and the manifest says what there is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forecache_lab import reading
from forecache_lab.errors import UserError

from . import manifest, output
from .jobs import Job
from .manifest import Records
from .orders import SAMPLES, Orders, Task
from .settings import Settings, differences

SETTINGS = "settings.json"
Engine = Callable[[Path], Iterator[None]]


@dataclass
class Summary:
    """What there is in the folder after a command.

    Attributes:
        entries: those of ``manifest.json``. missing: ids of jobs that are not finished.
        failures: reasons by id. remarks: what was found and mended. stopped: why the command ended before its work.
    """

    entries: list[dict[str, Any]]
    missing: list[str]
    failures: dict[str, str]
    remarks: list[str] = field(default_factory=list)
    stopped: str | None = None


def generate(
    settings: Settings,
    jobs: Sequence[Job],
    out: Path,
    engine: Engine,
    *,
    baseline: bool = False,
    offload: str = "none",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Make the samples of ``jobs`` that ``out`` lacks.

    Args:
        settings: of all samples.
        jobs: what is to be there in the end.
        out: the run's folder.
        engine: does the orders in the folder that it is given, yields meanwhile, and stops where it is closed.
        baseline: make the uncached samples too, and compare.
        offload: see :func:`forecache_cli.generate.pipeline.load`.
        progress: called with samples done and in all.

    Raises:
        UserError: ``out`` is no run's folder, or one with other settings or prompts; another command is at work
            there; it cannot be written to.
    """
    out = out.resolve()
    _check(out, settings)
    with _locked(out):
        _check(out, settings)
        records = Records(out / "records")
        records.refresh()
        torn = records.torn()
        tasks = [task for job in jobs if (task := missing(job, out, records, baseline)).kinds]
        # what failed before comes last: a worker gives up after three in a row, and must not always do so at the first
        tasks.sort(key=lambda task: (task.job.id, "failure") in records.found)
        output.remove_unfinished(out)
        manifest.write_text(out / SETTINGS, json.dumps({"forecache_run": 1, **settings.to_dict()}, indent=1))
        remarks = [f"{path}: its last line is torn; that sample is made again" for path in torn]
        remarks += [f"{what}; what it stood for is made again" for what in records.damaged]
        stopped = None
        if tasks:
            Orders(settings, offload, tuple(tasks)).save(out)
            stopped = _work(engine(out), records, len(jobs) * (2 if baseline else 1), tasks, progress)
            output.remove_unfinished(out)
        records.refresh()
        return _finish(jobs, out, records, settings, baseline, remarks, stopped)


def _work(
    work: Iterator[None], records: Records, total: int, tasks: Sequence[Task], progress: Callable[[int, int], None]
) -> str | None:
    """Go through an engine; returns why it ended early, if it did."""
    ordered = {(task.job.id, kind) for task in tasks for kind in task.kinds if kind in SAMPLES}
    before = {key: id(records.found.get(key)) for key in ordered}
    try:
        for _ in work:
            records.refresh()
            made = sum(id(records.found.get(key)) != before[key] for key in ordered)
            progress(total - len(ordered) + made, total)
    except KeyboardInterrupt:
        return "interrupted"
    except UserError as error:
        return str(error)
    finally:
        work.close()  # type: ignore[attr-defined]
    return None


def _check(out: Path, settings: Settings) -> None:
    """Whether a run with these settings may live in ``out``."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is not a folder")
    file = out / SETTINGS
    if not file.exists():
        if out.exists() and any(path.name != ".lock" and not output.unfinished(path) for path in out.iterdir()):
            raise UserError(f"--out {out}: has files, but no {SETTINGS} of a run; give a new or empty folder")
        return
    try:
        found = reading.build(dict[str, Any], reading.parse(reading.content(file)))
    except ValueError as error:
        raise UserError(f"{file}: is not a run's settings: {error}") from None
    version = found.pop("forecache_run", None)
    if version != 1:
        raise UserError(f"{file}: version {version!r}, this release reads 1; give another --out")
    changed = differences(found, settings.to_dict())
    records = Records(out / "records")
    records.refresh()
    if changed and any(kind in SAMPLES for _, kind in records.found):  # else there is nothing to mix them with
        raise UserError(
            f"--out {out}: its samples were made with other settings: {'; '.join(changed)}. Give another "
            "folder, or the same settings"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One command at a time in a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out {out}: another command, or workers that one left behind, are at work there"
            ) from None
        os.set_inheritable(
            file.fileno(), True
        )  # worker processes hold it too: they may outlive a command that is killed
        try:
            yield
        except OSError as error:  # the disk is full, or gone
            raise UserError(f"--out {out}: {error.strerror or error}; the same command goes on") from error


def missing(job: Job, out: Path, records: Records, baseline: bool) -> Task:
    """What is to be done for a job: records that are not there, or whose files are not.

    Raises:
        UserError: there is a sample of this id from another prompt.
    """
    kinds = []
    for kind in ("uncached", "forecast") if baseline else ("forecast",):
        record = records.found.get((job.id, kind))
        if record is not None and record["digest"] != job.digest:
            raise UserError(
                f"--prompts: the id {job.id} was another prompt, seed, image or label in an earlier run in {out}; "
                "give another id or another --out"
            )
        if record is None or not _complete(out / record["file"], record["bytes"]):
            kinds.append(kind)
    if baseline and (kinds or (job.id, "comparison") not in records.found):
        kinds.append("comparison")
    return Task(job, tuple(kinds))


def _complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _finish(
    jobs: Sequence[Job], out: Path, records: Records, settings: Settings, baseline: bool, remarks: list[str],
    stopped: str | None,
) -> Summary:  # fmt: skip
    """Write ``manifest.json`` and ``manifest.csv``."""
    entries: list[dict[str, Any]] = []
    absent: list[str] = []
    failures: dict[str, str] = {}
    for job in jobs:
        entry = {**asdict(job), "digest": job.digest}
        for kind in ("forecast", "uncached", "comparison"):
            record = records.found.get((job.id, kind))
            if record is not None:
                entry[kind] = {k: v for k, v in record.items() if k not in ("kind", "id", "digest")}
        if missing(job, out, records, baseline).kinds:
            absent.append(job.id)
            failure = records.found.get((job.id, "failure"))
            if failure is not None:
                entry["failure"] = failures[job.id] = failure["error"]
        entries.append(entry)
    body = {"forecache_manifest": 1, "settings": settings.to_dict(), "missing": absent, "samples": entries}
    manifest.write_text(out / "manifest.json", json.dumps(body, indent=1))
    manifest.write_csv(out / "manifest.csv", entries)
    return Summary(entries, absent, failures, remarks, stopped)
