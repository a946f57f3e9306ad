"""What was done: append-only records, one file a worker, and the manifest that is made of them.

A record is a line of JSON, on disk before the next sample begins. A worker that is killed while writing leaves at most
one torn line, the last of its file; the sample it stood for is made again.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import LaunchError

Record = dict[str, Any]


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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[str, str], Record] = {}
        self._read: dict[Path, int] = {}

    def refresh(self) -> None:
        """Raises ``LaunchError`` for a line, other than a torn last one, that is no record."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                try:
                    record = json.loads(line)
                    self.found[record["id"], record["kind"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    raise LaunchError(f"{path}: {line[:80]!r} is no record ({error}); remove the line") from None

    def torn(self) -> list[Path]:
        """Files whose last line is not whole, so far as they were read."""
        return [path for path, read in sorted(self._read.items()) if path.stat().st_size > read]


def write_text(path: Path, text: str) -> None:
    """Written aside and renamed: whoever reads it finds the old file or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


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
    return {name: "" if flat.get(name) is None else flat[name] for name in COLUMNS}


def write_csv(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """A line a sample, for spreadsheets."""
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(row(entry) for entry in entries)
    write_text(path, text.getvalue())
