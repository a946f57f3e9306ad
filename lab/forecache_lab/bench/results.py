"""What one run leaves in its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from forecache import files

from .. import reading, record
from ..errors import UserError


@dataclass(frozen=True)
class Result:
    """One picture with one seed under one method.

    Attributes:
        picture: its name. digest: of its content. method: key.
        calls, seconds: by stage; ``rest``: what belongs to no stage, such as the encoding of the picture.
        values: columns, against the uncached run; of that one, the noise floors of its mesh.
        trace: steps by branch, of the pictures that the page shows. mesh: its file, likewise.
        peak: largest memory on the CUDA device, bytes. failed: why there is no object.
        retry: it failed by an error, such as a device that is full, and the same command tries it again.
        repeated: of an uncached run, its drift to itself run once more, where that was measured.
        place: how many measured runs of this picture and seed came before it, in the same process.
    """

    picture: str
    digest: str
    seed: int
    method: str
    calls: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    trace: Mapping[str, record.Steps] = field(default_factory=dict)
    mesh: str | None = None
    peak: int | None = None
    repeated: float | None = None
    failed: str | None = None
    retry: bool = False
    place: int = 0


def path_of(out: Path, digest: str, seed: int, method: str) -> Path:
    """File of one result: by content of the picture, so that pictures may be renamed and moved."""
    return out / "results" / digest[:16] / f"seed{seed}" / f"{method}.json"


def save(out: Path, result: Result) -> None:
    """Write the file; a process that is killed meanwhile leaves none."""
    path = path_of(out, result.digest, result.seed, result.method)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(asdict(result), separators=(",", ":"))
    files.replace(path, lambda partial: partial.write_text(body, encoding="utf-8"))


def load(path: Path) -> Result:
    """Read a file that :func:`save` wrote.

    Raises:
        UserError: somebody else changed it.
    """
    try:
        found: Result = reading.build(Result, reading.parse(reading.content(path)))
    except ValueError as error:
        raise UserError(f"{path} is torn or no result ({error}): the same command makes it again") from None
    return found


def is_final(path: Path) -> bool:
    """Whether the file holds a result that need not be made again."""
    try:
        return path.exists() and not load(path).retry
    except UserError:
        return False


def remove_unfinished(out: Path) -> None:
    """Remove the partial files that a killed process left."""
    for file in (*out.glob("*.partial"), *(out / "results").rglob("*.partial"), *(out / "meshes").glob("*.partial")):
        file.unlink()
