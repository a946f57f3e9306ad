"""What every sample of a run is made with, and what a run refuses to mix."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forecache import Plan
from forecache_adapters.settings import Settings as CacheSettings
from forecache_lab import reading
from forecache_lab.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("auto", "png", "mp4", "npy", "latent")
#: Arguments of a pipeline's call that the job, or this package, gives.
OURS = (
    "prompt", "negative_prompt", "image", "class_labels", "generator", "output_type", "return_dict",
    "num_inference_steps", "guidance_scale", "height", "width",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """One run has one of these; another value of any of them would give other samples.

    Attributes:
        model: a folder or an identifier of the hub, or ``tiny:NAME``. revision: of the identifier.
        dtype: of the weights. format: of the files; ``auto``: png for pictures, mp4 for videos, latent without decoder.
        basis, interval, warmup, calls, few_steps: see :class:`forecache_adapters.settings.Settings`.
        plan: a plan's file, instead. plan_sha256: of its content.
        steps, guidance, height, width: of the pipeline's call; ``None``: its default. call: further arguments.
        fps: frames a second of an mp4.
        threads: of a worker on the CPU, whose sums depend on it.
    """

    model: str
    revision: str | None = None
    dtype: str = "float32"
    format: str = "auto"
    basis: str | None = None
    interval: int | None = None
    warmup: int | None = None
    calls: int | None = None
    plan: str | None = None
    plan_sha256: str | None = None
    few_steps: bool = False
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    fps: int = 16
    threads: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", DTYPES), ("format", FORMATS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("steps", "height", "width", "fps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be >= 1, got {value}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UserError(f"--guidance must be finite, got {self.guidance}")
        for name in self.call:
            if name in OURS:
                raise UserError(f"--set {name}: has an option of its own or comes from the prompts")
        if self.plan is not None:
            for name in ("basis", "interval", "warmup", "calls"):
                if getattr(self, name) is not None:
                    raise UserError(f"--plan {self.plan} has its own schedule and weights: leave out --{name}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are about a number of steps that stands in for the pipeline's
                CacheSettings(**self.cache())
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"cache settings: {error}") from None

    @classmethod
    def with_plan(cls, plan: Path | None, **given: Any) -> Settings:
        """Settings with the plan in a file.

        Raises:
            UserError: a file that is not a plan.
        """
        if plan is None:
            return cls(**given)
        try:
            Plan.load(plan)
            content = plan.read_bytes()
        except (ValueError, OSError) as error:
            raise UserError(f"--plan {plan}: {error}") from None
        return cls(plan=str(plan.resolve()), plan_sha256=hashlib.sha256(content).hexdigest(), **given)

    def cache(self) -> dict[str, Any]:
        """Keywords of the adapter's ``enable``."""
        names = ("basis", "interval", "warmup", "calls", "plan")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**given, "few_steps": self.few_steps}

    def arguments(self) -> dict[str, Any]:
        """Those of the pipeline's call that all jobs share."""
        named = {
            "num_inference_steps": self.steps, "guidance_scale": self.guidance,
            "height": self.height, "width": self.width,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None} | dict(self.call)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_arguments(given: Sequence[str]) -> dict[str, Any]:
    """``["a=1", "b=text"]``: {"a": 1, "b": "text"}; values are JSON, or text where they are not.

    Raises:
        UserError: no ``=``, or no name.
    """
    try:
        return dict(map(reading.assignment, given))
    except ValueError as error:
        raise UserError(f"--set {error}") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two :meth:`Settings.to_dict`; where a plan lies does not matter, its content does."""
    names = [name for name in {**old, **new} if name != "plan" and old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)!r} and now is {new.get(name)!r}" for name in names]
