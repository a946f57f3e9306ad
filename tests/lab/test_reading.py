"""JSON from outside: read within limits and by its kinds, or refused with the field and what it must be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import pytest

from forecache_lab import reading


class Point(TypedDict):
    x: float
    name: str | None


@dataclass(frozen=True)
class Shape:
    points: Sequence[Point]
    count: int = 0
    closed: bool = False
    sizes: Mapping[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("9" * 5000, "too many digits"),
        ("{", "not JSON"),
        ("", "not JSON"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_no_reader_can_take_is_one_kind_of_error(text, why):
    with pytest.raises(ValueError, match=why):
        reading.parse(text)


def test_limits_are_not_reached_by_what_is_well_formed():
    assert reading.parse("[" * 64 + "]" * 64)
    assert reading.parse(b'{"a": [1, 2.5, null, "\\ud800"]}') == {"a": [1, 2.5, None, "\ud800"]}
    assert reading.parse("9" * 400) == 10**400 - 1


GOOD = {"points": [{"x": 1, "name": None, "more": [1]}], "count": 2, "sizes": {"a": 0.5}}


def test_kinds_are_those_of_the_class():
    made = reading.build(Shape, GOOD)
    assert made == Shape([{"x": 1, "name": None, "more": [1]}], 2, False, {"a": 0.5}), "a TypedDict keeps further keys"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"points": None}, "points must be a list, got None"),
        ({"points": [1]}, r"points\[0\] must be an object, got 1"),
        ({"points": [{"x": "1", "name": None}]}, r"points\[0\].x must be a number, got '1'"),
        ({"points": [{"x": True, "name": None}]}, "x must be a number, got True"),
        ({"points": [{"x": 10**400, "name": None}]}, "x must be a number"),
        ({"points": [{"x": 1}]}, r"points\[0\].name is missing"),
        ({"points": [{"x": 1, "name": 3}]}, "name must be text, got 3"),
        ({"count": 1.0}, "count must be a whole number, got 1.0"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"closed": 1}, "closed must be true or false, got 1"),
        ({"sizes": [1]}, "sizes must be an object"),
        ({"sizes": {"a": None}}, r"sizes\['a'\] must be a number, got None"),
        ({"colour": 1}, "'colour' is unknown, allowed are points, count"),
    ],
)
def test_another_kind_is_named_with_its_field(change, why):
    with pytest.raises(ValueError, match=why):
        reading.build(Shape, {**GOOD, **change})
    with pytest.raises(ValueError, match="points is missing"):
        reading.build(Shape, {})


def test_only_a_file_is_read(tmp_path):
    """A pipe would wait for ever, /dev/zero never ends."""
    (tmp_path / "file").write_bytes(b"1")
    assert reading.content(tmp_path / "file") == b"1"
    os.mkfifo(tmp_path / "pipe")
    for name, why in {"pipe": "no regular file", ".": "no regular file", "no": "No such file", "a\0": "null"}.items():
        with pytest.raises(ValueError, match=why):
            reading.content(tmp_path / name)
