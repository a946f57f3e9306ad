"""JSON that somebody else may have written or damaged: read within limits and by its kinds, or refused with a reason.

What a command is given (prompts, settings, records, results, run folders) goes through here, so that no file ends it in
a traceback.
"""

from __future__ import annotations

import json
import reprlib
import stat
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

DEPTH = 64  # of nested lists and objects; ours have less than ten


def content(path: Path) -> bytes:
    """All of a file.

    Raises:
        ValueError: says why it cannot be read. A pipe or a device may never end, so only a regular file is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("is no regular file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def parse(text: str | bytes) -> Any:
    """JSON, of bytes that are UTF-8.

    Raises:
        ValueError: not JSON, deeper than :data:`DEPTH`, or a number of more digits than Python reads.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    deep = ValueError(f"lists and objects are nested more than {DEPTH} deep")
    try:
        body = json.loads(text)
    except RecursionError:
        raise deep from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None
    if _deeper(body, DEPTH):
        raise deep
    return body


def assignment(text: str, form: str = "NAME=VALUE") -> tuple[str, Any]:
    """``name=value``, as an option has it; the value is JSON, or text where it is not.

    Raises:
        ValueError: no ``=``, or what is before it is no name; says that it must have the ``form``.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"must be {form}, got {text!r}")
    try:
        return name, parse(value)
    except ValueError:
        return name, value


def _deeper(body: Any, levels: int) -> bool:
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return any(isinstance(each, (dict, list)) and (levels <= 1 or _deeper(each, levels - 1)) for each in inner)


def build(kind: Any, body: Any, where: str = "") -> Any:
    """Parsed JSON as ``kind``: a dataclass, a TypedDict (further keys are kept), a mapping or sequence of kinds, a kind
    or ``None``, ``float`` (whole numbers too), ``int``, ``str`` or ``bool``.

    Raises:
        ValueError: names the field, its value and what it must be.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return body
    if origin in (Union, types.UnionType):
        return None if body is None else build(next(each for each in arguments if each is not type(None)), body, where)
    if is_dataclass(kind) or is_typeddict(kind):
        return _object(kind, body, where)
    if origin in (Mapping, dict):
        _require(isinstance(body, dict), body, where, "an object")
        return {key: build(arguments[1], value, f"{where}[{reprlib.repr(key)}]") for key, value in body.items()}
    if origin in (Sequence, list):
        _require(isinstance(body, list), body, where, "a list")
        return [build(arguments[0], value, f"{where}[{k}]") for k, value in enumerate(body)]
    if kind is float:
        _require(type(body) in (int, float) and (type(body) is float or _fits(body)), body, where, "a number")
        return body
    _require(type(body) is kind, body, where, {int: "a whole number", str: "text", bool: "true or false"}[kind])
    return body


def _object(kind: Any, body: Any, where: str) -> Any:
    _require(isinstance(body, dict), body, where, "an object")
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        required = kind.__required_keys__
    else:
        required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
        for name in body:
            if name not in hints:
                raise ValueError(f"{where}{reprlib.repr(name)} is unknown, allowed are {', '.join(hints)}")
    within = f"{where}." if where else ""
    for name in hints:
        if name in required and name not in body:
            raise ValueError(f"{within}{name} is missing")
    made = {name: build(hint, body[name], within + name) for name, hint in hints.items() if name in body}
    return {**body, **made} if is_typeddict(kind) else kind(**made)


def _fits(number: int) -> bool:
    """Whether a float can hold its size."""
    try:
        float(number)
    except OverflowError:
        return False
    return True


def _require(holds: bool, value: Any, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{where or 'it'} must be {what}, got {reprlib.repr(value)}")
