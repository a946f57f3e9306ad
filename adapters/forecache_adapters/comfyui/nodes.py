"""The nodes, in the form that ComfyUI has read since its first versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import model as models
from . import pipelines, report

CATEGORY = "forecache"
RULES = ["auto", "exponential", "dmd", "hermite", "taylor", "linear", "chebyshev", "reuse"]


class AnyType(str):
    """A type that fits every other: ComfyUI asks whether two types differ."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")


def common() -> dict[str, Any]:
    """Inputs of both nodes that forecast."""
    whole = {"min": 0, "max": 1000}
    return {
        "enabled": ("BOOLEAN", {"default": True, "tooltip": "Off: what comes in goes out."}),
        "basis": (RULES, {"default": "auto", "tooltip": "The forecast rule. auto needs no tuning."}),
        "calls": (
            "INT",
            {**whole, "default": 0, "tooltip": "Steps that call the network, spread over the run. 0: see interval."},
        ),
        "interval": (
            "INT",
            {**whole, "default": 0, "tooltip": "Every how many steps the network is called, if calls is 0. 0: 4."},
        ),
        "warmup": ("INT", {**whole, "default": 0, "tooltip": "Steps at the beginning that are computed. 0: 2."}),
        "plan": (
            "STRING",
            {"default": "", "tooltip": "File of a calibrated plan, instead of calls, interval and warmup."},
        ),
        "few_steps": (
            "BOOLEAN",
            {"default": False, "tooltip": "Stay on in a run of 8 steps or fewer, which a distilled model has."},
        ),
    }


def settings_of(basis: str, calls: int, interval: int, warmup: int, plan: str, few_steps: bool) -> dict[str, Any]:
    """Keywords of ``enable``: what is 0 or empty is not given."""
    given = {"calls": calls, "interval": interval, "warmup": warmup, "plan": plan.strip().strip('"')}
    return {"basis": basis, "few_steps": few_steps, **{name: value for name, value in given.items() if value}}


class Forecast:
    """Forecasts a model's output on skipped steps."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A clone of the model that calls its network on some steps of a run only.",)
    DESCRIPTION = "Calls the network on some steps and forecasts its output on the others, from the steps before."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"model": ("MODEL", {"tooltip": "Any diffusion or flow model."}), **common()}}

    @classmethod
    def IS_CHANGED(cls, plan: str = "", **_: Any) -> Any:
        """A plan's file may be another."""
        return stamp(plan)

    def apply(self, model: Any, enabled: bool, **settings: Any) -> tuple[Any]:
        """See :func:`forecache_adapters.comfyui.model.patch`."""
        return (models.patch(model, **settings_of(**settings)) if enabled else models.unpatched(model),)


class ForecastPipeline:
    """Forecasts in a 3D pipeline of a wrapper."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("The same kind of object, with the same networks.",)
    DESCRIPTION = (
        "For nodes that hand around a pipeline of Hunyuan3D-2, Hunyuan3D-2.1, TRELLIS or TRELLIS.2. The pipeline's code"
        " needs forecache's patch once."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        stages = {"default": "", "multiline": True, "tooltip": 'TRELLIS: settings by stage, {"slat": {"interval": 3}}.'}
        what = {"tooltip": "What a wrapper's loader hands out, or what holds it."}
        return {"required": {"pipeline": (ANY, what), **common()}, "optional": {"stages": ("STRING", stages)}}

    @classmethod
    def IS_CHANGED(cls, plan: str = "", **_: Any) -> Any:
        """A plan's file may be another."""
        return stamp(plan)

    def apply(self, pipeline: Any, enabled: bool, stages: str = "", **settings: Any) -> tuple[Any]:
        """See :func:`forecache_adapters.comfyui.pipelines.forecasting`."""
        if not enabled:
            return (pipeline,)
        try:
            by_stage = json.loads(stages) if stages.strip() else None
        except ValueError as error:
            raise ValueError(f"stages must be JSON, {error}") from error
        return (pipelines.forecasting(pipeline, stages=by_stage, **settings_of(**settings)),)


class ForecastTrace:
    """What the newest run did."""

    CATEGORY = CATEGORY
    FUNCTION = "read"
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("summary", "json")
    OUTPUT_NODE = True
    DESCRIPTION = "Which steps called the network, which rule served the others, and what was refused."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        of = {"tooltip": "The MODEL or pipeline that the sampler got."}
        after = {"tooltip": "An output of the sampler, so that this node comes behind it."}
        return {"required": {"of": (ANY, of), "after": (ANY, after)}}

    def read(self, of: Any, after: Any) -> dict[str, Any]:
        """Summary and JSON, also shown at the node."""
        if hasattr(of, "get_attachment"):
            trace = models.trace_of(of)
            found = report.texts({} if trace is None else {"model": trace})
        else:
            found = report.texts(pipelines.traces_of(of))
        return {"ui": {"text": [found[0]]}, "result": found}


def stamp(plan: str) -> Any:
    """When a plan's file was written; ComfyUI runs a node again where this changes."""
    path = Path(plan.strip().strip('"'))
    return path.stat().st_mtime_ns if plan.strip() and path.is_file() else plan


NODE_CLASS_MAPPINGS = {
    "ForecacheForecast": Forecast,
    "ForecacheForecastPipeline": ForecastPipeline,
    "ForecacheTrace": ForecastTrace,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ForecacheForecast": "Forecast (model)",
    "ForecacheForecastPipeline": "Forecast (3D pipeline)",
    "ForecacheTrace": "Forecast trace",
}
