"""The file of a run of the suite: what it was measured on, its figures, and whether they hold together."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import forecache

from .. import tables

FORMAT = 1
OVERHEAD, SAVED = 0.03, 0.97  # targets at the production size of Hunyuan3D-2.1
TARGET_CASE = "hunyuan3d-2.1"
SIGNIFICANT = 3
TINY = "tiny networks: shows the format and that the suite runs, nothing about any device or generator"
MIB = 1 << 20


def first_line(*command: str) -> str | None:
    """The first line that a program prints; ``None``: it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def installed(package: str) -> str | None:
    """Its version, if it is there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions."""
    found: dict[str, Any] = {
        "type": device.type,
        "device": f"CPU {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "forecache": forecache.__version__,
        "diffusers": installed("diffusers"),
        "commit": first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "device": about.name,
            "memory": about.total_memory,
            "capability": f"{about.major}.{about.minor}",
            "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call, unused-ignore]
        }
    return found


def free_path(body: Mapping[str, Any], folder: Path) -> Path:
    """``DEVICE[-tiny]-DATE.json`` in ``folder``, which is made; a second run of a day gets a number."""
    about, size = body["environment"], body["settings"]["size"]
    slug = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    name = "-".join([slug, *(["tiny"] if size == "tiny" else []), body["made"][:10]])
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{name}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.json"
    return path


def write(body: Mapping[str, Any], path: Path) -> None:
    """The file, and its table beside it.

    Raises:
        ValueError: a body that :func:`faults` finds fault with.
    """
    if wrong := faults(body):
        raise ValueError(f"results: {'; '.join(wrong)}")
    path.write_text(json.dumps(rounded(body), indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(rounded(body)), encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        ValueError: no such file, or one that :func:`faults` finds fault with.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{path}: must hold an object")
    if wrong := faults(body):
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return body


def rounded(value: Any) -> Any:
    """Every number to five digits: more are not in a measurement."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- whether it holds together ----------------------------------------------------------------------------------------
def faults(body: Mapping[str, Any]) -> list[str]:
    """What is wrong with a file's content; nothing: it can be read and is consistent."""
    try:
        return list(_faults(body))
    except (KeyError, TypeError, AttributeError) as error:
        return [f"malformed: {type(error).__name__} {error}"]


def _faults(body: Mapping[str, Any]) -> Iterator[str]:
    if body["format"] != FORMAT:
        yield f"format must be {FORMAT}, got {body['format']!r}"
        return
    try:
        datetime.datetime.fromisoformat(body["made"])
    except ValueError:
        yield f"made must be a date, got {body['made']!r}"
    about, settings = body["environment"], body["settings"]
    cuda = about["type"] == "cuda"
    for name in ("device", "torch", "forecache", "python", *(("cuda", "capability", "memory") if cuda else ())):
        if not about[name]:
            yield f"environment.{name} must be told"
    if settings["size"] not in ("full", "tiny"):
        yield f"settings.size must be full or tiny, got {settings['size']!r}"
    if not body["command"]:
        yield "command must be told"
    for case in body["cases"]:
        yield from _case(case, cuda)


def _case(case: Mapping[str, Any], cuda: bool) -> Iterator[str]:
    name, call = case["name"], case["call"]
    yield from _clocks(f"{name}.call", call, cuda)
    for rule, each in case["rules"].items():
        at = f"{name}.{rule}"
        if each["calls"] + each["skipped"] != case["steps"] or not each["skipped"]:
            yield f"{at}: {each['calls']} calls and {each['skipped']} skipped steps of {case['steps']}"
        for part in ("skip", "record"):
            yield from _clocks(f"{at}.{part}", each[part], cuda)
        for part in ("uncached", "cached"):
            yield from _times(f"{at}.seconds.{part}", each["seconds"][part])
        if not math.isfinite(each["saved"]["median"]) or each["saved"]["least"] > each["saved"]["median"]:
            yield f"{at}.saved is no median above a least: {each['saved']}"
        for clock, share in each["overhead"].items():
            if each["skip"][clock] is None:
                continue
            real = each["skip"][clock]["median"] / call[clock]["median"]
            if not math.isclose(share, real, rel_tol=1e-3):
                yield f"{at}.overhead.{clock} is {share}, skip / call is {real:.4g}"
        if cuda != (each["memory"] is not None) or cuda != (each["returns_early"] is not None):
            yield f"{at}: memory and returns_early are of a CUDA device, and only there"


def _clocks(at: str, each: Mapping[str, Any], cuda: bool) -> Iterator[str]:
    if cuda != (each["device"] is not None):
        yield f"{at}: the device's clock is told on a CUDA device, and only there"
    for clock in each.values():
        if clock is not None:
            yield from _times(at, clock)


def _times(at: str, each: Mapping[str, Any]) -> Iterator[str]:
    good = all(math.isfinite(each[name]) and each[name] > 0 for name in ("median", "p95", "n"))
    if not good or each["p95"] < each["median"] * (1 - 1e-4):
        yield f"{at}: no median, p95, n of times: {dict(each)}"


# --- what a person reads ----------------------------------------------------------------------------------------------
def targets(case: Mapping[str, Any]) -> dict[str, bool]:
    """Which rules meet both: at most :data:`OVERHEAD` by either clock, at least :data:`SAVED` of the time."""
    return {
        rule: max(share for share in each["overhead"].values() if share is not None) <= OVERHEAD
        and each["saved"]["median"] >= SAVED
        for rule, each in case["rules"].items()
    }


def _ms(times: Mapping[str, float]) -> str:
    return f"{1e3 * times['median']:.{SIGNIFICANT}g} / {1e3 * times['p95']:.{SIGNIFICANT}g}"


def _peak(memory: Mapping[str, int]) -> str:
    return f"{memory['cached'] / MIB:.0f} ({(memory['cached'] - memory['uncached']) / MIB:+.1f})"


def _best(clocks: Mapping[str, Any]) -> Mapping[str, float]:
    """By the device's clock where there is one."""
    found: Mapping[str, float] = clocks["device"] or clocks["wall"]
    return found


def table(case: Mapping[str, Any], device: str) -> str:
    """Markdown: a row for each rule."""
    head = ["rule", "calls + skipped", "skipped step, ms", "record, ms", "of a call", "time saved", "peak MiB", "waits",
            "n"]  # fmt: skip
    rows = []
    for rule, each in case["rules"].items():
        memory, counted = each["memory"], each["waits"]
        share = each["overhead"]["device"] if each["overhead"]["device"] is not None else each["overhead"]["wall"]
        cells = [
            rule, f"{each['calls']} + {each['skipped']}", _ms(_best(each["skip"])), _ms(_best(each["record"])),
            f"{100 * share:.{SIGNIFICANT}g} %", f"{100 * each['saved']['median']:.1f} %",
            "-" if memory is None else _peak(memory),
            "-" if counted is None else f"{counted['record']} + {counted['skip']}",
            f"{_best(each['skip'])['n']:.0f}, {each['saved']['n']:.0f} runs",
        ]  # fmt: skip
        rows.append(cells)
    what = f"{case['network']}, {case['parameters'] / 1e6:,.4g} M random weights"
    if case["stand_in"]:
        what += f", stand-in ({case['stand_in']})"
    if case["left_out"]:
        what += f", only {case['left_out']}"
    timing = f"network call {_ms(_best(case['call']))} ms on {device}, {case['steps']} steps"
    return f"## {case['name']}: {case['value']}\n\n{what}; {timing}.\n\n" + tables.markdown(head, rows)


def page(body: Mapping[str, Any]) -> str:
    """The Markdown of a file."""
    about, settings = body["environment"], body["settings"]
    kept = ("driver", "cuda", "cudnn", "capability", "torch", "diffusers", "numpy", "python", "forecache", "commit")
    versions = ", ".join(f"{name} {about[name]}" for name in kept if about.get(name))
    parts = [f"# {about['device']}, {body['made'][:10]}"]
    if settings["size"] == "tiny":
        parts.append(f"**{TINY[0].upper()}{TINY[1:]}.**")
    parts += [
        f"`{body['command']}`",
        f"{versions}; {about['platform']}.",
        "Random weights. Milliseconds: median / p95. What the columns are: docs/gpu.md.",
    ]
    for case in body["cases"]:
        parts.append(table(case, about["device"]))
        if case["name"] == TARGET_CASE and about["type"] == "cuda" and settings["size"] == "full":
            met = [rule for rule, good in targets(case).items() if good]
            goal = f"Target, at most {100 * OVERHEAD:g} % of a call and at least {100 * SAVED:g} % saved"
            parts.append(f"{goal}: {'met by ' + ', '.join(met) if met else 'missed by every rule'}.")
    for name, reason in body["left_out"].items():
        parts.append(f"{name} was left out: {reason.rstrip('.')}.")
    if body["checks"]:
        parts.append(f"Checks:\n\n```json\n{json.dumps(body['checks'], indent=1)}\n```")
    return "\n\n".join(parts) + "\n"


def body(
    device: torch.device, command: str, settings: Mapping[str, Any], cases: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str], checks: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What a file holds."""
    return {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(device),
        "settings": dict(settings),
        "cases": list(cases),
        "left_out": dict(left_out),
        "checks": dict(checks),
    }
