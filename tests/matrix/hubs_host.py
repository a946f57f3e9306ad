"""The other hubs: ComfyUI, by the stand-in for its contract, and cache-dit itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cache_dit as hub
import torch

import comfyui_standin as comfy
from comfyui_helpers import NEGATIVE, NOISE, POSITIVE, entry
from forecache_adapters import cache_dit, comfyui
from matrix.diffusers_host import FLOW_SCHEDULERS, Diffusers
from matrix.hosts import STEPS, Stop
from matrix.pairs import Row

CALLS: list[int] = []


def sample_unknown(model: Any, x: Any, sigmas: Any, **keywords: Any) -> Any:
    """Euler under a name that nobody knows."""
    return comfy.sample_euler(model, x, sigmas, **keywords)


def sample_twice(model: Any, x: Any, sigmas: Any, **keywords: Any) -> Any:
    """Asks twice at each sigma, as tiles do."""
    return comfy.sample_euler(
        lambda *args, **named: (model(*args, **named) + model(*args, **named)) / 2, x, sigmas, **keywords
    )


SAMPLERS = {"euler": "euler", "heun": "heun", "unknown": sample_unknown, "twice a step": sample_twice}


class Nodes:
    """A ``MODEL`` in a box, since attaching makes a clone of it."""

    name = "comfyui"
    tables = 4

    def prepare(self, checkouts: Any) -> None:
        """See :class:`matrix.hosts.Host`."""

    def factors(self) -> dict[str, tuple[str, ...]]:
        """See :class:`matrix.hosts.Host`."""
        return {
            "sampler": tuple(SAMPLERS), "entries": ("plain", "area", "interval", "control", "no guidance"),
            "event": ("none", "exception", "latents"), "kind": comfy.KINDS, "batching": ("together", "apart"),
            "life": ("fresh", "copy", "deepcopy"), "setting": ("alone", "threads", "nested"),
            "dtype": ("float32", "float16", "bfloat16"),
        }  # fmt: skip

    def allowed(self, row: Row) -> bool:
        """See :class:`matrix.hosts.Host`."""
        return not (row.get("batching") == "apart" and row.get("setting") == "threads")  # one switch for the process

    def still(self, row: Row) -> int:
        """See :class:`matrix.hosts.Host`."""
        return 0

    def make(self, row: Row) -> Any:
        """See :class:`matrix.hosts.Host`."""
        comfy.together[:] = [lambda: row["batching"] == "together"]
        model, network = comfy.model(row["kind"], bend=1.0, out=getattr(torch, row["dtype"]))
        network.register_forward_pre_hook(_counted)
        return SimpleNamespace(model=model)

    def relived(self, box: Any, life: str) -> Any:
        """See :class:`matrix.hosts.Host`."""
        if life == "deepcopy":
            return copy.deepcopy(box)
        return box if life == "fresh" else SimpleNamespace(model=box.model.clone())

    def twin(self, box: Any) -> Any:
        """A network of its own: the weights of the stand-in's go when a run ends."""
        return copy.deepcopy(box)

    def enable(self, box: Any, row: Row, **settings: Any) -> Any:
        """See :class:`matrix.hosts.Host`."""
        box.model = comfyui.patch(box.model, **settings)
        return box

    def count(self) -> Callable[[], int]:
        """See :class:`matrix.hosts.Host`."""
        return lambda: len(CALLS)

    def notes(self, box: Any) -> list[str]:
        """See :class:`matrix.hosts.Host`."""
        trace = comfyui.trace_of(box.model)
        assert trace is not None
        return [note for each in (trace, *trace.branches.values()) for note in each.notes]

    def sample(self, box: Any, row: Row, nested: Callable[[], Any] | None) -> Any:
        """See :class:`matrix.hosts.Host`."""

        def callback(i: int) -> None:
            if i == 1 and nested is not None:
                nested()
            if i == STEPS // 3 and row["event"] == "exception":
                raise Stop

        positive = {
            "area": [*POSITIVE, entry(2.0, 2.0, 0.0, 1.0, area=(4, 8, 0, 0), strength=1.0)],
            "interval": [*POSITIVE, entry(1.0, 2.0, 3.0, 0.5, start_percent=0.3, end_percent=0.7)],
            "control": [entry(1.0, -2.0, 0.5, 3.0, control=comfy.Control(0.0, 0.5))],
        }.get(row["entries"], POSITIVE)
        sampler = SAMPLERS[row["sampler"]]
        if row["event"] == "latents":
            sampler = _scaled({"euler": comfy.sample_euler, "heun": comfy.sample_heun}.get(row["sampler"], sampler))
        cfg = 1.0 if row["entries"] == "no guidance" else 4.0
        return comfy.sample(
            box.model, NOISE, positive, NEGATIVE, steps=STEPS, cfg=cfg, sampler=sampler, callback=callback
        )


def _counted(network: Any, arguments: Any) -> None:
    CALLS.append(1)


def _scaled(sampler: Any) -> Any:
    """The sampler, with its state made smaller within the run."""

    def act(model: Any, x: Any, sigmas: Any, **keywords: Any) -> Any:
        calls = 0

        def smaller(x: Any, *args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == STEPS // 3:
                x.mul_(0.9)
            return model(x, *args, **named)

        return sampler(smaller, x, sigmas, **keywords)

    act.__name__ = getattr(sampler, "__name__", "sample_unknown")
    return act


class CacheDit(Diffusers):
    """cache-dit's DBCache with our forecasts; the control is the pipeline without either."""

    def factors(self) -> dict[str, tuple[str, ...]]:
        """See :class:`matrix.hosts.Host`."""
        return {**super().factors(), "life": ("fresh",), "setting": ("alone",), "level": ("velocity",)}

    def enable(self, pipe: Any, row: Row, **settings: Any) -> Any:
        """See :class:`matrix.hosts.Host`: every step is computed, or every second one."""
        mask = [1] * STEPS if settings.get("interval") == 1 else [1, 1, 1, 0] * (STEPS // 4)
        config = hub.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, num_inference_steps=STEPS,
            residual_diff_threshold=10.0, steps_computation_mask=mask, steps_computation_policy="static",
            enable_separate_cfg=row["pipeline"] in ("flux", "qwen-image", "wan"),
        )  # fmt: skip
        return cache_dit.enable(pipe, config)

    def disable(self, pipe: Any) -> None:
        """See :class:`matrix.hosts.Host`."""
        cache_dit.disable(pipe)

    def notes(self, handle: Any) -> list[str]:
        """See :class:`matrix.hosts.Host`."""
        return [note for own in handle.traces.values() for trace in own.values() for note in trace.notes]


HOSTS = (
    Nodes(),
    CacheDit(
        "cache-dit", ("flux", "qwen-image", "sd3", "wan"),
        {name: FLOW_SCHEDULERS[name] for name in ("euler", "lcm", "unipc")},
        ("none", "guidance", "batch", "prompt", "latents", "interrupt", "exception"),
    ),
)  # fmt: skip
