"""``torchrun -m forecache_cli.generate.worker FOLDER DEVICE ...``: the rank's share of the orders in a run's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(folder: Path, devices: list[str]) -> None:
    """Jobs rank, rank + world size, ... on the device of the local rank."""
    from .orders import Orders
    from .work import Worker

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    tasks = Orders.load(folder).tasks[rank::size]
    if not tasks:
        return
    worker = Worker(folder, f"worker-{rank}", devices[local % len(devices)])
    for task in tasks:
        worker.do(task)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
