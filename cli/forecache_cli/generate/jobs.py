"""From a file of prompts and a list of seeds to jobs with stable names."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from forecache_lab import reading
from forecache_lab.errors import UserError

FIELDS = {
    "prompt": str, "id": str, "seed": int, "negative_prompt": str, "image": str, "class_label": int,
}  # fmt: skip
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
LARGEST_SEED = 2**63 - 1
MOST_SEEDS = 1_000_000


@dataclass(frozen=True)
class Job:
    """One sample.

    Attributes:
        id: its name in file names and records. seed: of the noise.
        image: a file, for models that edit. image_sha256: of its content.
        class_label: for class-conditional models.
    """

    id: str
    prompt: str
    seed: int
    negative_prompt: str | None = None
    image: str | None = None
    image_sha256: str | None = None
    class_label: int | None = None

    @property
    def digest(self) -> str:
        """Of all that the sample depends on beside the settings; where the picture lies is no part of it."""
        return _sha256({**asdict(self), "id": "", "image": ""})


def _sha256(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_seeds(text: str) -> list[int]:
    """``"0,3,5-7"``: seeds 0, 3, 5, 6, 7.

    Raises:
        UserError: anything else, or a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= LARGEST_SEED:
            raise UserError(f"--seeds must be like 0,1,2 or 0-3, below 2^63, got {reprlib.repr(text)}")
        if last - first >= MOST_SEEDS - len(found):
            raise UserError(f"--seeds must be at most {MOST_SEEDS:,}, got {reprlib.repr(text)}")
        found.extend(range(first, last + 1))
    if len(set(found)) < len(found):
        raise UserError(f"--seeds names a seed twice: {reprlib.repr(text)}")
    return found


def read_jobs(path: Path, seeds: Sequence[int]) -> list[Job]:
    """Every prompt of a file with every seed, in the order of the file.

    ``.txt``: a prompt a line. ``.jsonl``: an object a line, with ``prompt`` or ``class_label``, and optionally ``id``,
    ``seed`` (instead of ``seeds``), ``negative_prompt``, ``image`` (relative to the file's folder). Empty lines are
    passed over.

    A job's name comes from what it asks for, not from its line: lines may be added and moved, and what is finished
    stays so. The same prompt again gets a number.

    Raises:
        UserError: no such file, nothing in it, or a line that is not as above.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--prompts must be a file .txt or .jsonl, got {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"--prompts {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {path}: must be UTF-8 text: {error}") from None
    jobs: list[Job] = []
    seen: Counter[tuple[str, int]] = Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--prompts {path}, line {number}"
        given: dict[str, Any] = {"prompt": line.strip()} if path.suffix == ".txt" else _object(line, where)
        job = _job(given, path.parent, where)
        for seed in [given["seed"]] if "seed" in given else seeds:
            name = job.id or _slug(job.prompt) + job.digest[:8]
            seen[name, seed] += 0 if job.id else 1
            again = f"-{seen[name, seed]}" if seen[name, seed] > 1 else ""
            jobs.append(replace(job, id=f"{name}{again}-s{seed}", seed=seed))
    if not jobs:
        raise UserError(f"--prompts {path}: there is no prompt in it")
    # file systems that do not tell upper from lower case would take two such names for one file
    twice = [name for name, n in Counter(job.id.lower() for job in jobs).items() if n > 1]
    if twice:
        raise UserError(f"--prompts {path}: ids must differ, but these come twice: {', '.join(twice[:5])}")
    return jobs


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        given = reading.parse(line)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not isinstance(given, dict):
        raise UserError(f"{where}: must be an object, got {line.strip()[:60]}")
    for key, value in given.items():
        kind = FIELDS.get(key)
        if kind is None:
            raise UserError(f"{where}: unknown field {reprlib.repr(key)}, allowed are {', '.join(FIELDS)}")
        if type(value) is not kind:
            raise UserError(f"{where}: {key} must be {kind.__name__}, got {reprlib.repr(value)}")
    return given


def _job(given: dict[str, Any], folder: Path, where: str) -> Job:
    if not given.get("prompt", "").strip() and "class_label" not in given:
        raise UserError(f"{where}: needs a prompt (or a class_label)")
    if "id" in given and not ID.fullmatch(given["id"]):
        raise UserError(
            f"{where}: id must be letters, digits, '.', '_' and '-', at most 151, got {reprlib.repr(given['id'])}"
        )
    for key in ("seed", "class_label"):
        if not 0 <= given.get(key, 0) <= LARGEST_SEED:
            raise UserError(f"{where}: {key} must be >= 0 and below 2^63, got {given[key]}")
    image, content = None, None
    if "image" in given:
        try:
            image = str((folder / given["image"]).resolve())
            content = hashlib.sha256(reading.content(Path(image))).hexdigest()
        except (ValueError, OSError) as error:
            raise UserError(f"{where}: image {given['image']}: {error}") from None
    return Job(
        id=given.get("id", ""), prompt=given.get("prompt", ""), seed=0, negative_prompt=given.get("negative_prompt"),
        image=image, image_sha256=content, class_label=given.get("class_label"),
    )  # fmt: skip


def _slug(prompt: str) -> str:
    """The first words of a prompt, for people who look at file names; ``""`` where none is left."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    slug = ""
    for word in words:
        if len(slug) + len(word) > 40:
            break
        slug += word + "-"
    return slug
