"""What was done: append-only records, one file a worker, and the manifest that is made of them.

A record is a line of JSON, on disk before the next sample begins. A worker that is killed while writing leaves at most
one torn line, the last of its file. What is torn, or damaged since, is named, and the sample it stood for is made
again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from forecache_lab import reading
from forecache_lab.escape import cell

Record = dict[str, Any]


class Sample(TypedDict):
    """What is relied on in the record of a sample; :meth:`forecache_cli.generate.work.Worker.sample` writes more."""

    id: str
    kind: str
    digest: str
    file: str
    bytes: int
    seconds: float
    first_of_worker: bool
    calls: dict[str, int]
    warnings: list[str]


class Comparison(TypedDict):
    """The record of a comparison; a metric that is ``None`` has its reason in ``absent``."""

    id: str
    kind: str
    psnr: float | None
    ssim: float | None
    lpips: float | None
    drift: float | None
    absent: dict[str, str]


class Failed(TypedDict):
    """The record of a job that raised an error."""

    id: str
    kind: str
    error: str


KINDS = {"forecast": Sample, "uncached": Sample, "comparison": Comparison, "failure": Failed}


def parse_record(line: bytes) -> Record:
    """One line of a file of records.

    Raises:
        ValueError: no JSON, a field that is missing or of another kind, or a file outside the run's folder.
    """
    body = reading.parse(line)
    kind = KINDS.get(str(body.get("kind"))) if isinstance(body, dict) else None
    if kind is None:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    record: Record = reading.build(kind, body)
    file = Path(record.get("file", ""))
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"file must lie in the folder of the run, got {reprlib.repr(record['file'])}")
    return record


class Writer:
    """Appends records to one file, of which there is one writer; a torn last line is cut off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab+")
        self.file.seek(0)
        self.file.truncate(self.file.read().rfind(b"\n") + 1)

    def append(self, record: Mapping[str, Any]) -> None:
        """On disk when this returns."""
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """No more records."""
        self.file.close()


class Records:
    """The records of a run; :meth:`refresh` reads what has come since.

    Attributes:
        found: the newest record by (sample's id, kind); kinds are ``forecast``, ``uncached``, ``comparison`` and
            ``failure``.
        damaged: what is none of them, with its file and the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[str, str], Record] = {}
        self.damaged: list[str] = []
        self._read: dict[Path, int] = {}

    def refresh(self) -> None:
        """Read on; a line, other than a torn last one, that is no record stands for nothing."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in filter(bytes.strip, whole.split(b"\n")):
                try:
                    record = parse_record(line)
                    self.found[record["id"], record["kind"]] = record
                except ValueError as error:
                    self.damaged.append(f"{path}: {line[:60]!r} is no record ({error})")

    def torn(self) -> list[Path]:
        """Files whose last line is not whole, so far as they were read."""
        return [path for path, read in sorted(self._read.items()) if path.stat().st_size > read]


def write_text(path: Path, text: str) -> None:
    """Written aside and renamed: whoever reads it finds the old file or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        # a prompt may hold half a character, which UTF-8 has no bytes for
        with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


COLUMNS = (
    "id", "prompt", "seed", "negative_prompt", "image", "class_label", "file", "sha256", "calls", "steps", "seconds",
    "first_of_worker", "peak_memory_bytes", "device", "uncached_file", "uncached_calls", "uncached_seconds", "psnr",
    "ssim", "lpips", "drift", "identical", "failure",
)  # fmt: skip


def row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of ``manifest.csv`` from one entry of ``manifest.json``."""
    forecast, uncached = entry.get("forecast") or {}, entry.get("uncached") or {}
    flat = {**forecast, **(entry.get("comparison") or {}), **entry}
    flat["calls"] = sum(forecast.get("calls", {}).values()) or ""
    flat |= {f"uncached_{name}": uncached.get(name, "") for name in ("file", "seconds")}
    flat["uncached_calls"] = sum(uncached.get("calls", {}).values()) or ""
    return {name: "" if flat.get(name) is None else cell(flat[name]) for name in COLUMNS}


def write_csv(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """A line a sample, for spreadsheets: text that they would take for a formula begins with ``'``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(row(entry) for entry in entries)
    write_text(path, text.getvalue())
