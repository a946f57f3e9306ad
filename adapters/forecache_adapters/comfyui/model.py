"""Attach the cache to a ``MODEL``, as a clone of it, and read what happened."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from forecache import fingerprint

from ..handle import StageTrace
from ..settings import Settings
from .conflicts import conflict
from .report import summary
from .run import NAME, Run
from .samplers import name_of

log = logging.getLogger(NAME)


def patch(model: Any, *, cache: Any = None, **settings: Any) -> Any:
    """A clone of ``model`` whose sampling runs forecast; what the model had of ours is replaced, not added to.

    Args:
        model: ComfyUI's ``ModelPatcher``.
        cache: for one run, instead of settings: a forecaster, or what :func:`forecache.calibrate` hands to ``run``. It
            serves one condition: cfg 1.
        settings: see :class:`forecache_adapters.settings.Settings`. A plan serves each entry alone.

    Raises:
        TypeError: no ``ModelPatcher``, or one of a ComfyUI without wrappers.
        ValueError: a setting out of its range.
    """
    if not hasattr(model, "add_wrapper_with_key"):
        raise TypeError(f"model must be a MODEL of ComfyUI 0.3.52 or newer, got {type(model).__name__}")
    if cache is not None and settings:
        raise ValueError(f"cache: give it alone, not with {', '.join(settings)}")
    if settings.get("adaptive_guidance", False) is not False:
        raise ValueError("adaptive_guidance: ComfyUI's own code makes the calls")
    chosen = Settings(**settings) if cache is None else cache
    clone = unpatched(model)
    clone.add_wrapper_with_key("sampler_sample", NAME, Sampling(chosen))
    return clone


def unpatched(model: Any) -> Any:
    """A clone without a cache of ours and without the trace of a run."""
    clone = model.clone()
    clone.remove_wrappers_with_key("sampler_sample", NAME)
    clone.remove_attachments(NAME)
    return clone


def trace_of(model: Any) -> StageTrace | None:
    """The trace of the newest run that sampled with this very ``MODEL``, not with a clone of it."""
    newest: Newest | None = model.get_attachment(NAME)
    return None if newest is None else newest.trace


def key(model: Any, cfg: float | None) -> dict[str, Any]:
    """What a plan for this model is made for (``made_for``); the sigmas are compared beside it."""
    network = model.model.diffusion_model
    return {
        "generator": f"comfyui/{type(network).__name__}", "stage": "model", "guidance_scale": cfg,
        "weights": fingerprint(network), "dtype": str(model.model_dtype()),
    }  # fmt: skip


class Newest:
    """The trace of a model's newest run: an attachment, which is not a clone's."""

    def __init__(self, trace: StageTrace | None = None) -> None:
        self.trace = trace

    def on_model_patcher_clone(self) -> Newest:
        """Called by ComfyUI."""
        return Newest()


class Sampling:
    """Encloses each sampling run of a model: holds settings, and nothing of a run.

    A copy of a model shares it, so that runs of both have the same settings and nothing else in common.

    Args:
        settings: or a cache.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def __deepcopy__(self, memo: Any) -> Sampling:
        return self

    def __call__(self, executor: Any, guider: Any, sigmas: Any, extra_args: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by ComfyUI around the sampler, when model and sigmas are on their device."""
        patcher, options = guider.model_patcher, extra_args["model_options"]
        run = Run(
            self.settings, name_of(executor.class_obj), [float(s) for s in sigmas.tolist()], conflict(options),
            lambda: key(patcher, getattr(guider, "cfg", None)), getattr(guider, "cfg", None),
        )  # fmt: skip
        inner = {"calc_cond_batch": run.calc_cond_batch, "apply_model": run.apply_model}
        try:
            with wrapped(options, inner), wrapped(guider.model_options, {"predict_noise": run.predict_noise}):
                return executor(guider, sigmas, extra_args, *args, **kwargs)
        finally:
            run.close()
            patcher.set_attachments(NAME, Newest(run.trace))
            log.info("forecache: %s", summary(run.trace))


@contextmanager
def wrapped(model_options: dict[str, Any], wrappers: Mapping[str, Any]) -> Iterator[None]:
    """ComfyUI's model options with functions around its own by kind, for the time of one run.

    A run within it that has the same options has functions of its own, for its time.
    """
    kinds = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    former = {kind: kinds.setdefault(kind, {}).pop(NAME, None) for kind in wrappers}
    for kind, function in wrappers.items():
        kinds[kind][NAME] = [function]
    try:
        yield
    finally:
        for kind in wrappers:
            kinds[kind].pop(NAME, None)
            if former[kind] is not None:
                kinds[kind][NAME] = former[kind]
