"""JSON that the commands write and read again, damaged in every way: read as it was meant, or refused in one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecache_cli.generate import read_jobs
from forecache_cli.generate.manifest import Records
from forecache_lab import reading, record, report
from forecache_lab.bench import results
from forecache_lab.errors import UserError
from forecache_lab.run_folder import SETTINGS, open_folder
from fuzz.cases import CASES
from fuzz.test_files import VALUES, damaged

STEP = {"index": 0, "time": 1.0, "kind": "forecast", "rule": "dmd", "fallback": "", "error": None}
RESULT = {
    "picture": "chair", "digest": "0123", "seed": 0, "method": "dmd", "calls": {"denoise": 3}, "place": 1,
    "seconds": {"denoise": 1.5}, "values": {"latent drift": 0.1}, "trace": {"network": [STEP]}, "mesh": None,
    "peak": None, "repeated": None, "failed": None, "retry": False,
}  # fmt: skip
OBJECT = {"item": "chair", "calls": {"x": 3}, "seconds": {}, "values": {"d": 0.1}, "trace": {"n": [STEP]}, "mesh": None}
TABLE = {"name": "n", "drift": "d", "higher": ["d"], "floor": {"d": 0.1}}
RUNS = [{**OBJECT, "method": "uncached", "values": {}}, {**OBJECT, "method": "dmd, interval 3"}]
RUN_FOLDER = {"format": 1, "title": "t", "conditions": "c", "units": "u", "tables": [{**TABLE, "runs": RUNS}]}
SAMPLE = {
    "id": "a", "kind": "forecast", "digest": "0123", "file": "a.png", "bytes": 3, "seconds": 0.5, "calls": {"cond": 3},
    "first_of_worker": True, "warnings": ["w"],
}  # fmt: skip
PROMPT = {"prompt": "a chair", "id": "a", "seed": 3, "negative_prompt": "b", "class_label": 7}


def read_result(folder: Path, content: bytes) -> None:
    (folder / "result.json").write_bytes(content)
    with contextlib.suppress(UserError):
        found = results.load(folder / "result.json")
        assert type(found.retry) is bool and all(type(n) is int for n in found.calls.values())


def read_run_folder(folder: Path, content: bytes) -> None:
    """What can be read can be shown."""
    (folder / record.FILE).write_bytes(content)
    with contextlib.suppress(UserError):
        report.load(folder)
        report.write(folder)


def read_records(folder: Path, content: bytes) -> None:
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / "w.jsonl").write_bytes(content + b"\n")
    records = Records(folder / "records")
    records.refresh()
    assert records.damaged or all(type(each["bytes"]) is int for each in records.found.values() if "bytes" in each)


def read_prompts(folder: Path, content: bytes) -> None:
    (folder / "p.jsonl").write_bytes(content)
    with contextlib.suppress(UserError):
        assert all(type(job.seed) is int and type(job.prompt) is str for job in read_jobs(folder / "p.jsonl", [0]))


def read_settings(folder: Path, content: bytes) -> None:
    (folder / SETTINGS).write_bytes(content)
    with contextlib.suppress(ValueError):
        open_folder(folder, {"steps": 3})


READERS = {
    read_result: RESULT, read_run_folder: RUN_FOLDER, read_records: SAMPLE, read_prompts: PROMPT,
    read_settings: {"steps": 3},
}  # fmt: skip


def places(body: Any) -> list[tuple[Any, Any]]:
    """Every container and key of nested JSON."""
    keys = list(body) if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else []
    return [place for key in keys for place in [(body, key), *places(body[key])]]


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=CASES["json_text"] // len(READERS), deadline=None)
@given(data=st.data())
def test_json_of_the_commands_with_values_of_any_kind(tmp_path_factory: Any, read: Any, data: st.DataObject) -> None:
    body = json.loads(json.dumps(READERS[read]))
    container, key = data.draw(st.sampled_from(places(body)))
    container[key] = "HERE"
    read(tmp_path_factory.getbasetemp(), json.dumps(body).replace('"HERE"', data.draw(VALUES)).encode())


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=CASES["json_bytes"] // len(READERS), deadline=None)
@given(data=st.data())
def test_json_of_the_commands_with_damaged_bytes(tmp_path_factory: Any, read: Any, data: st.DataObject) -> None:
    read(tmp_path_factory.getbasetemp(), data.draw(damaged(json.dumps(READERS[read]).encode())))


def test_undamaged_json_of_the_commands_is_read(tmp_path: Path) -> None:
    """The control of the two above."""
    assert reading.build(results.Result, RESULT).place == 1
    (tmp_path / record.FILE).write_text(json.dumps(RUN_FOLDER))
    assert report.load(tmp_path).tables[0].runs[1].method == "dmd, interval 3"
    read_records(tmp_path, json.dumps(SAMPLE).encode())
    records = Records(tmp_path / "records")
    records.refresh()
    assert records.found == {("a", "forecast"): SAMPLE}
    (tmp_path / "p.jsonl").write_text(json.dumps(PROMPT))
    assert read_jobs(tmp_path / "p.jsonl", [0])[0].id == "a-s3"
