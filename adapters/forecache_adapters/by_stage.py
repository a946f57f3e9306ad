"""Settings of a generator's stages: those of all, those of one, plans, caches of your own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forecache import Plan

from .settings import Settings

CALLS = ("needs_compute", "observe", "forecast")  # of a cache that a stage may be given instead of settings
SCHEDULE = {"interval", "warmup", "end", "calls", "plan"}  # settings that a stage gives or takes over together


def by_stage(
    samplers: Iterable[str],
    known: Sequence[str],
    stages: Mapping[str, Any] | None,
    plan: Any,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings, a cache, or ``None`` (off) by stage.

    Args:
        samplers: stages with a sampler of their own.
        known: all stages; several may run under one sampler.
        stages: what ``enable`` was given.
        plan: what ``enable`` was given.
        settings: what ``enable`` was given for every stage.

    Raises:
        ValueError, TypeError: a stage that does not exist, a setting out of its range, two plans for one stage.
    """
    foreign = sorted(set(stages or {}) - set(known))
    if foreign:
        raise ValueError(f"stages must be among {', '.join(known)}, got {', '.join(foreign)}")
    chosen: dict[str, Any] = dict.fromkeys(samplers, Settings(**settings))
    if plan is not None:
        chosen = dict.fromkeys(samplers, None) | _plans(plan, known, settings)
    return chosen | {stage: _stage_settings(stage, value, settings) for stage, value in (stages or {}).items()}


def _plans(plan: Any, known: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Settings]:
    """Plans by the stage that they were made for."""
    found: dict[str, Settings] = {}
    for each in plan if isinstance(plan, (list, tuple)) else [plan]:
        loaded = Plan.load(each) if isinstance(each, (str, Path)) else each
        if not isinstance(loaded, Plan):
            raise TypeError(f"plan must be a Plan, the path of its file, or a list of them, got {loaded!r}")
        stage = str(loaded.made_for.get("stage"))
        if stage not in known or stage in found:
            twice = "twice" if stage in found else f"but the pipeline has {', '.join(known)}"
            raise ValueError(f"plan: made for stage {stage!r}, {twice}")
        found[stage] = Settings(**{**settings, "plan": loaded})
    return found


def _stage_settings(stage: str, value: Any, settings: Mapping[str, Any]) -> Any:
    if value is None or all(hasattr(value, name) for name in CALLS):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"stages[{stage!r}] must be a mapping of settings, a cache, or None, got {value!r}")
    inherited = {k: v for k, v in settings.items() if not (k in SCHEDULE and SCHEDULE & set(value))}
    return Settings(**{**inherited, **value})
