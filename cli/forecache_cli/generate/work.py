"""One worker: it has the pipeline on one device and makes one sample after the other."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

import forecache
from forecache_adapters.diffusers import Handle, enabled
from forecache_adapters.handle import StageTrace
from forecache_adapters.settings import Settings as CacheSettings
from forecache_lab.errors import UserError

from .compare import compare
from .jobs import Job
from .manifest import Writer
from .orders import Orders, Task
from .output import SUFFIXES, write
from .pipeline import load

IN_A_ROW = 3  # failures after which a worker gives up: what they have in common is not the prompt


class Uncached(CacheSettings):
    """The cache is off, and the calls of the transformer are counted."""

    def off(self, times: Sequence[float]) -> str | None:
        """Always."""
        return "uncached"


class Worker:
    """Samples of the run in ``folder``.

    Args:
        name: of its file of records, which no other worker writes to meanwhile. device: ``cpu``, ``cuda:0``, ...

    Raises:
        UserError: a pipeline that cannot be loaded, or that the cache cannot be attached to.
    """

    def __init__(self, folder: Path, name: str, device: str) -> None:
        orders = Orders.load(folder)
        self.folder, self.name, self.device = folder, name, torch.device(device)
        self.settings = orders.settings
        torch.set_num_threads(self.settings.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            self.model = load(self.settings, device, orders.offload)
            with self.attached(self.settings.cache()):
                pass
        except UserError:
            raise
        except Exception as error:  # damaged files fail anywhere in their readers
            self._log(self.settings.model)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--model {self.settings.model} on {device}: {reason}") from error
        self.records = Writer(folder / "records" / f"{name}.jsonl")
        self.fresh, self.failed = True, 0

    def do(self, task: Task) -> None:
        """Make what is missing of a job; an error is recorded, and the next job may go well.

        Raises:
            UserError: it was the third error in a row.
        """
        try:
            for kind in task.kinds:
                made = self.compared(task.job) if kind == "comparison" else self.sample(task.job, kind)
                self.record(task.job, kind, made)
            self.failed = 0
        except Exception as error:
            self.failed += 1
            log = self._log(task.job.id)
            reason = f"{type(error).__name__}: {error}"
            self.record(task.job, "failure", {"error": reason})
            if self.failed == IN_A_ROW:
                raise UserError(f"{IN_A_ROW} jobs in a row failed, the last: {reason} ({log})") from error
        if self.failed and self.device.type == "cuda":
            torch.cuda.empty_cache()  # the traceback, which held what filled the device, is gone

    def _log(self, what: str) -> Path:
        """Write the traceback of the error that is handled under ``what``; returns the file."""
        log = self.folder / "logs" / f"{self.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{what}\n{traceback.format_exc()}\n")
        return log

    @contextmanager
    def attached(self, cache: Mapping[str, Any]) -> Iterator[Handle]:
        """The cache on the pipeline; what its settings may be warned of, a run with them says better."""
        with ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                handle = stack.enter_context(enabled(self.model.pipe, **cache))
            yield handle

    def record(self, job: Job, kind: str, made: Mapping[str, Any]) -> None:
        """It is done, and stays so."""
        self.records.append({"kind": kind, "id": job.id, "digest": job.digest, **made})

    def sample(self, job: Job, kind: str) -> dict[str, Any]:
        """Call the pipeline and write its output; returns what the record says about it."""
        pipe, on_gpu = self.model.pipe, self.device.type == "cuda"
        call = self.model.arguments(job)
        torch.manual_seed(job.seed)  # for what a pipeline draws without the generator
        cache: dict[str, Any] = {"cache": Uncached()} if kind == "uncached" else self.settings.cache()
        with self.attached(cache) as handle, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
                torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            # noise from the CPU: the same whatever device and however many workers
            made = pipe(**call, generator=torch.Generator("cpu").manual_seed(job.seed))
            if on_gpu:
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        path = path_of(self.folder, job, kind, self.model.format)
        path.parent.mkdir(exist_ok=True)
        size, digest = write(made[0][0], path, self.settings.fps)
        first, self.fresh = self.fresh, False
        return {
            "file": str(path.relative_to(self.folder)), "bytes": size, "sha256": digest, "seconds": seconds,
            "first_of_worker": first, "steps": len(pipe.scheduler.timesteps), **counted(handle.traces),
            "warnings": sorted({str(each.message) for each in said if "forecache" in str(each.message)}),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else _resident(),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else f"cpu ({platform.machine()})",
            "worker": self.name, "host": socket.gethostname(), "pid": os.getpid(), "versions": versions(),
        }  # fmt: skip

    def compared(self, job: Job) -> dict[str, Any]:
        """The sample against its uncached reference."""
        both = (path_of(self.folder, job, kind, self.model.format) for kind in ("forecast", "uncached"))
        return compare(*both)


def path_of(folder: Path, job: Job, kind: str, file_format: str) -> Path:
    """Where a sample lies."""
    return (folder / "uncached" if kind == "uncached" else folder) / f"{job.id}{SUFFIXES[file_format]}"


def counted(traces: Mapping[str, StageTrace]) -> dict[str, Any]:
    """``calls`` by branch and ``trace`` in short; a branch is ``cond``, ``uncond``, or ``call`` where the pipeline does
    not tell them apart; with two transformers their names come first.
    """
    calls: dict[str, int] = {}
    trace: dict[str, Any] = {}
    for transformer, stage in traces.items():
        prefix = f"{transformer}/" if len(traces) > 1 else ""
        calls |= {prefix + branch: n for branch, n in stage.calls.items()}
        for branch, steps in stage.branches.items():
            rules = Counter(rule for step in steps.steps if step.kind == "forecast" for rule in step.rules.values())
            trace[prefix + branch] = {
                "computed": steps.computed, "forecast": steps.forecast, "fallbacks": steps.fallbacks,
                "rules": dict(rules), "notes": steps.notes,
            }  # fmt: skip
        if stage.notes:
            trace[f"{prefix}notes"] = stage.notes
    return {"calls": calls, "trace": trace}


def versions() -> dict[str, str]:
    """Of what a sample's bits may depend on."""
    return {
        "forecache": forecache.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _resident() -> int:
    """Largest resident size of the process so far, in bytes: there is none for one sample on the CPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
