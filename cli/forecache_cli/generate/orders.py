"""What the workers of one command are to do: a file in the run's folder, written before they start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forecache_lab import reading

from .jobs import Job
from .manifest import write_text
from .settings import Settings

FILE = "orders.json"
SAMPLES = ("forecast", "uncached")


@dataclass(frozen=True)
class Task:
    """What is missing of one job; ``kinds`` are among ``uncached``, ``forecast`` and ``comparison``, in this order."""

    job: Job
    kinds: tuple[str, ...]

    @property
    def samples(self) -> int:
        """How many the pipeline is called for."""
        return sum(kind in SAMPLES for kind in self.kinds)


@dataclass(frozen=True)
class Orders:
    """The settings of the run, how the pipeline is held in memory, and all tasks of all workers."""

    settings: Settings
    offload: str
    tasks: tuple[Task, ...]

    def save(self, folder: Path) -> None:
        """Write them into the run's folder."""
        write_text(folder / FILE, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Orders:
        """Read them from the run's folder."""
        body: dict[str, Any] = reading.parse(reading.content(folder / FILE))
        tasks = tuple(Task(Job(**task["job"]), tuple(task["kinds"])) for task in body["tasks"])
        return cls(Settings(**body["settings"]), body["offload"], tasks)
