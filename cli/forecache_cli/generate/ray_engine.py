"""The engine on a Ray cluster, or on this machine through Ray: workers take the next job when they are free."""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forecache_lab.errors import UserError

from .orders import Orders

TRIES = 3  # of a job whose worker dies
POLL = 0.2


class Remote:
    """A worker on some node; the run's folder must be the same there."""

    def __init__(self, folder: str, name: str, on_gpu: bool) -> None:
        from .work import Worker

        if not Path(folder, "orders.json").is_file():
            raise UserError(f"--out {folder}: must lie on a file system that all nodes of the cluster share")
        self.worker = Worker(Path(folder), name, "cuda:0" if on_gpu else "cpu")

    def do(self, task: Any) -> None:
        """See :meth:`forecache_cli.generate.work.Worker.do`."""
        self.worker.do(task)


def require() -> Any:
    """The package ray, asked for before a folder is written.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise UserError("--engine ray needs Ray: pip install '.[ray]' in forecache's checkout") from None


def spread(folder: Path, workers: int | None, address: str | None) -> Iterator[None]:
    """Yields while the workers are at work, and ends them where it is closed.

    A worker that dies is replaced, and its job tried again.

    Args:
        folder: of the run.
        workers: default: as many as the cluster has GPUs, else one.
        address: of a cluster; default: ``RAY_ADDRESS``, else Ray is started on this machine.

    Raises:
        UserError: Ray or the cluster is not there, has too little, or its workers die without getting anything done.
    """
    ray = require()
    threads = Orders.load(folder).settings.threads
    started = not ray.is_initialized()
    if started:
        _start(ray, address, (workers or 1) * threads)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or 1
        if gpus and count > gpus:
            raise UserError(f"--workers {count}: the cluster has {gpus} GPUs, and a worker takes one")
        if count * threads > resources.get("CPU", 0):
            raise UserError(
                f"--workers {count} of --threads {threads}: the cluster has {int(resources.get('CPU', 0))} CPUs"
            )
        actor = ray.remote(num_cpus=threads, num_gpus=1 if gpus else 0)(Remote)
        yield from _pull(ray, actor, folder, count, bool(gpus))
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, address: str | None, cpus: int) -> None:
    quiet = {"logging_level": "error", "log_to_driver": False}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray-address {address or os.environ.get('RAY_ADDRESS', 'local')}: {error}") from None


def _pull(ray: Any, actor: Any, folder: Path, count: int, on_gpu: bool) -> Iterator[None]:
    """Hand a free worker the next task until there is none."""
    waiting = deque(Orders.load(folder).tasks)
    count = min(count, len(waiting))
    workers = [actor.remote(str(folder), f"ray-{k}", on_gpu) for k in range(count)]
    busy: dict[Any, tuple[int, Any]] = {}
    tries: Counter[str] = Counter()
    deaths = 0  # in a row
    free = list(range(count))
    while waiting or busy:
        while waiting and free:
            k, task = free.pop(), waiting.popleft()
            busy[workers[k].do.remote(task)] = (k, task)
        yield
        done, _ = ray.wait(list(busy), timeout=POLL)
        for reference in done:
            k, task = busy.pop(reference)
            free.append(k)
            try:
                ray.get(reference)
                deaths = 0
            except ray.exceptions.RayActorError as error:
                deaths += 1
                tries[task.job.id] += 1
                if deaths == TRIES + count or tries[task.job.id] == TRIES:
                    reason = " ".join(str(error).split())
                    raise UserError(f"workers died, the last with {task.job.id}: {reason[:600]}") from None
                waiting.append(task)
                workers[k] = actor.remote(str(folder), f"ray-{k}", on_gpu)
            except ray.exceptions.RayTaskError as error:
                raise UserError(" ".join(str(error.cause).split())) from None
