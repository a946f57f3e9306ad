"""``python -m benchmarks.gpu --device cuda --out benchmarks/results``; ``--show FILE`` checks and prints one.

Needs torch, numpy and this package, from an installation or on the path (``PYTHONPATH=core``); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import results, safety
from .cases import CASES
from .clocks import Clock
from .measure import RULES, measured
from .problems import Place

FAILED = "it failed"
CHECKOUTS = {"hunyuan21": "Hunyuan3D-2.1", "trellis": "TRELLIS"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Cost of forecasting beside a network.")
    made.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto (default): cuda if there is one")
    made.add_argument("--size", choices=("full", "tiny"), help="default: full on a CUDA device, tiny elsewhere")
    made.add_argument("--case", action="append", choices=tuple(CASES), help="once for each (default: all)")
    made.add_argument("--rule", action="append", choices=RULES, help="once for each (default: all)")
    made.add_argument("--repeats", type=int, default=5, help="paired rounds, and timed runs, of each rule (5)")
    made.add_argument("--out", type=Path, metavar="DIR", help="write DEVICE-DATE.json and .md there")
    made.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="check files of results and print them")
    for name, title in CHECKOUTS.items():
        made.add_argument(
            f"--{name}", type=Path, metavar="DIR", default=os.environ.get(f"FORECACHE_{name.upper()}"),
            help=f"checkout of {title}, whose own class then runs (default: $FORECACHE_{name.upper()})",
        )  # fmt: skip
    return made


def device_named(name: str) -> torch.device:
    """The device of a name, made the current one.

    Raises:
        ValueError: a CUDA device where there is none.
    """
    cuda = torch.cuda.is_available()
    device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"device must be cuda or cpu, got {name!r}")
    if device.type == "cuda":
        if not cuda:
            raise ValueError(f"device {name}: no CUDA device (torch {torch.__version__})")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def run(options: argparse.Namespace, command: str) -> Iterator[dict[str, Any]]:
    """Measure what the options ask for; what a file holds, after each case.

    A case that fails is left out with its reason, and the others go on.

    Raises:
        ValueError: an option out of its range.
    """
    if options.repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {options.repeats}")
    device = device_named(options.device)
    size = options.size or ("full" if device.type == "cuda" else "tiny")
    checkouts = {name: Path(folder) for name in CHECKOUTS if (folder := getattr(options, name))}
    place, clock, rules = Place(device, size, checkouts), Clock(device), tuple(options.rule or RULES)
    settings = {"size": size, "rules": list(rules), "repeats": options.repeats}
    checks, cases = safety.checks(device), []
    left_out = dict.fromkeys(options.case or CASES, "not reached")
    for name in tuple(left_out):
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):  # upstreams print while they load
                cases.append(measured(CASES[name](place), rules, clock, options.repeats))
            del left_out[name]
        except torch.cuda.OutOfMemoryError as error:
            left_out[name] = f"out of memory: {str(error).splitlines()[0]}"
        except Exception as error:
            traceback.print_exc()
            left_out[name] = f"{FAILED}, {repr(error)[:300]}"
        gc.collect()  # a network's modules refer to one another
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield results.body(device, command, settings, cases, left_out, checks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, or check and print."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    warnings.simplefilter("ignore", FutureWarning)
    try:
        if options.show:
            print("\n".join(results.page(results.load(path)) for path in options.show))
            return 0
        body, path = None, None
        for body in run(options, shlex.join(["python", "-m", "benchmarks.gpu", *given])):
            if wrong := results.faults(body):
                print(json.dumps(body))  # minutes of measurement, even so
                raise ValueError(f"results: {'; '.join(wrong)}")
            if options.out:  # after each case: a run that is broken off leaves what it has
                path = path or results.free_path(body, options.out)
                results.write(body, path)
        assert body is not None
        print(results.page(results.rounded(body)))
        if path:
            print(f"written to {path}")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(any(reason.startswith(FAILED) for reason in body["left_out"].values()))


if __name__ == "__main__":
    sys.exit(main())
