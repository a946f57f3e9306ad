"""A folder of results that a measurement goes on in, as long as its settings stay the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forecache import files

from . import reading

SETTINGS = "settings.json"


def open_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or go on in one that was made with the same settings.

    Raises:
        ValueError: names every setting that differs; or the settings there cannot be read.
    """
    path = out / SETTINGS
    new = json.loads(json.dumps(settings))
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        files.replace(path, lambda partial: partial.write_text(json.dumps(new, indent=1), encoding="utf-8"))
        return
    try:
        old = reading.build(dict[str, Any], reading.parse(reading.content(path)))
    except ValueError as error:
        raise ValueError(f"out: {path} is torn or no JSON ({error}); take another folder") from None
    differ = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in {**old, **new} if old.get(k) != new.get(k)]
    if differ:
        raise ValueError(f"out: {out} holds results of other settings ({'; '.join(differ)}); take another folder")
