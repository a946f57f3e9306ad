"""Engines on one machine: this process, or one process a device through torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from forecache_lab.errors import UserError

from .orders import Orders

LOG = Path("logs", "processes.log")
PATIENCE = 40  # seconds: torchrun gives its workers 30 to end


def devices(gpus: str | None, workers: int | None) -> list[str]:
    """A device a worker: the GPUs named, or all there are, or the CPU; more workers than GPUs take turns with them.

    Raises:
        UserError: both arguments, or a GPU that is not there.
    """
    import torch

    there = torch.cuda.device_count()
    if gpus is None:
        if workers is not None and workers < 1:
            raise UserError(f"--workers must be >= 1, got {workers}")
        found = [f"cuda:{k}" for k in range(there)] or ["cpu"]
        return found if workers is None else [found[k % len(found)] for k in range(workers)]
    if workers is not None:
        raise UserError(f"--gpus {gpus}: a worker each; leave out --workers {workers}")
    named = [part.strip() for part in gpus.split(",")]
    known = [str(k) for k in range(there)]
    if not set(named) <= set(known) or len(set(named)) < len(named):
        allowed = f"different ones of {', '.join(known)}" if known else "nothing: PyTorch sees no CUDA device here"
        raise UserError(f"--gpus {gpus}: allowed are {allowed}")
    return [f"cuda:{name}" for name in named]


def here(folder: Path, device: str) -> Iterator[None]:
    """One worker in this process; yields after each job."""
    from .work import Worker

    yield
    worker = Worker(folder, "worker-0", device)
    for task in Orders.load(folder).tasks:
        worker.do(task)
        yield


def processes(folder: Path, devices: Sequence[str]) -> Iterator[None]:
    """One worker a device; yields while they are at work, and ends them where it is closed.

    Where one dies, torchrun ends the others.

    Raises:
        UserError: a worker died.
    """
    log = folder / LOG
    log.parent.mkdir(exist_ok=True)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(devices)))
    with log.open("wb") as file:
        # in a session of its own: Ctrl-C reaches this process alone, which then ends the others in order; it inherits
        # the lock of the run's folder, the one file that is inheritable
        process = subprocess.Popen(
            [*torchrun, "-m", "forecache_cli.generate.worker", str(folder), *devices],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, close_fds=False,
        )  # fmt: skip
    try:
        while process.poll() is None:
            yield
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise UserError(f"a worker process died; what it said last: {last_words(log)} ({log})")


def last_words(log: Path) -> str:
    """The line of a log that names the error, of Python's or of torchrun's."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    ours = [line for line in lines if line.startswith("forecache_lab.errors.UserError")]
    said = [line for line in lines if line.startswith(("traceback : Signal", "exitcode")) or "Error: " in line]
    return (ours or said or lines or ["nothing"])[-1]
