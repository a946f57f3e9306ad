"""The methods of a bench, from what a user writes: ``dmd:interval=5,warmup=4``, ``plan=FILE``."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecache import Plan
from forecache.rules import NAMES, make_rule
from forecache_adapters.settings import Settings

from .. import reading
from ..controls import WrongSign
from ..errors import UserError

OPTIONS = ("interval", "warmup", "end", "calls", "history", "order", "sigma", "adaptive_guidance", "few_steps")
WRONG, OWN, PLAIN = "wrong-", "own", "uncached"
DEFAULT = ("auto:interval=3", "dmd:interval=3,warmup=4", "reuse:interval=3,warmup=4", "wrong-dmd:interval=3,warmup=4")
FORMS = f"BASIS:OPTION=VALUE,..., wrong-BASIS:..., plan=FILE[,FILE], {PLAIN}:steps=K or {OWN}[:basis=BASIS]"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        key: of its files. label: of its row; what stands before the first comma is its family.
        settings: for the adapter. calls: of the plain sampler with fewer steps, if it is that.
    """

    key: str
    label: str
    settings: Mapping[str, Any] | None = None
    calls: int | None = None


UNCACHED = Method(PLAIN, PLAIN)


def parse(given: Sequence[str]) -> list[Method]:
    """Methods in their order.

    Raises:
        UserError: names the method, what is wrong with it, and what is allowed.
    """
    found = [_parse(text) for text in given]
    for k, method in enumerate(found):
        if method.key in [each.key for each in found[:k]]:
            raise UserError(f"--method {given[k]}: asked for twice")
    return found


def _parse(text: str) -> Method:
    if text.startswith("plan="):
        return _plan(text)
    name, colon, rest = text.partition(":")
    options = _options(text, rest) if colon else {}
    if name == PLAIN:
        return _fewer(text, options)
    if name == OWN:
        return _own(text, options)
    basis = name.removeprefix(WRONG)
    if basis not in NAMES:
        raise UserError(f"--method {text}: must be {FORMS}, with BASIS among {', '.join(NAMES)}, got {basis!r}")
    _allowed(text, options, OPTIONS)
    words = [f"{key} {value}" for key, value in options.items()]
    settings: dict[str, Any] = {"basis": basis, **options}
    key = "-".join([name, *(re.sub(r"[^A-Za-z0-9.]+", "_", f"{k}{v}") for k, v in options.items())])
    _check(text, settings)
    if name == basis:
        return Method(key, ", ".join([basis, *words]), settings)
    order, sigma = settings.pop("order", None), settings.pop("sigma", None)
    settings["basis"] = WrongSign(make_rule(basis, None, order, sigma))
    return Method(key, ", ".join([f"control: {basis} with the wrong sign", *words]), settings)


def _plan(text: str) -> Method:
    paths = [Path(file).expanduser() for file in text.removeprefix("plan=").split(",")]
    digest = hashlib.sha256()
    for path in paths:
        try:
            Plan.load(path)
            digest.update(path.read_bytes())
        except (ValueError, OSError) as error:
            raise UserError(f"--method {text}: {error}") from None
    name = "+".join(path.stem for path in paths)
    plan = paths if len(paths) > 1 else paths[0]
    key = f"plan-{re.sub(r'[^A-Za-z0-9._+-]', '_', name)[:100]}-{digest.hexdigest()[:8]}"
    return Method(key, f"plan, {name.removeprefix('plan-')}", {"plan": plan})


def _fewer(text: str, options: Mapping[str, Any]) -> Method:
    _allowed(text, options, ("steps",))
    steps = options.get("steps")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"--method {text}: {PLAIN} is always run; {PLAIN}:steps=K is it with K >= 1 steps")
    return Method(f"{PLAIN}-steps{steps}", f"Euler, {steps} steps", calls=steps)


def _own(text: str, options: Mapping[str, Any]) -> Method:
    _allowed(text, options, ("basis",))
    _check(text, options)
    basis = options.get("basis")
    return Method(
        OWN if basis is None else f"{OWN}-{basis}",
        "its own rule" if basis is None else f"{basis}, its own schedule", {OWN: True, **options},
    )  # fmt: skip


def _options(text: str, given: str) -> dict[str, Any]:
    """``a=1,b=x``: {"a": 1, "b": "x"}; values are JSON, or text where they are not."""
    found: dict[str, Any] = {}
    for part in given.split(","):
        try:
            name, value = reading.assignment(part, "OPTION=VALUE")
        except ValueError as error:
            raise UserError(f"--method {text}: options {error}") from None
        if value == "":
            raise UserError(f"--method {text}: {name} has no value")
        if name in found:
            raise UserError(f"--method {text}: {name} is given twice")
        found[name] = value
    return found


def _allowed(text: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in options:
        if name not in allowed:
            raise UserError(f"--method {text}: option must be among {', '.join(allowed)}, got {name!r}")


def _check(text: str, settings: Mapping[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a number of steps that stands in for the generator's
            Settings(**settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"--method {text}: {error}") from None
