"""Pipelines of the generators inside what the nodes of wrappers hand around."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..attach import attached
from . import unpatched

HOLDERS = ("pipeline", "pipe", "model")  # names under which wrappers keep the pipeline


def generator_of(pipeline: Any) -> str | None:
    """The adapter of an upstream pipeline; ``None``: it is none."""
    kinds = {kind.__name__: kind.__module__ for kind in type(pipeline).__mro__}
    if "Hunyuan3DDiTFlowMatchingPipeline" in kinds:
        return "hunyuan21" if "hy3dshape" in kinds["Hunyuan3DDiTFlowMatchingPipeline"] else "hunyuan2"
    if hasattr(pipeline, "shape_slat_sampler") or hasattr(pipeline, "tex_slat_sampler"):
        return "trellis2"
    return "trellis" if hasattr(pipeline, "slat_sampler") else None


def found(thing: Any) -> tuple[Any, Any]:
    """The key or attribute under which a wrapper's object holds its pipeline, ``None`` if it is one, and the pipeline.

    Raises:
        TypeError: no pipeline that an adapter knows.
    """
    if generator_of(thing) is not None:
        return None, thing
    inside = dict(_inside(thing))
    for where, inner in inside.items():
        if generator_of(inner) is not None:
            return where, inner
    held = ", ".join(f"{where}: {type(inner).__name__}" for where, inner in inside.items())
    raise TypeError(
        f"pipeline: {type(thing).__name__} ({held}) is and holds no pipeline of Hunyuan3D-2, Hunyuan3D-2.1, TRELLIS or"
        " TRELLIS.2; where a wrapper builds its pipeline in the node that samples, there is nothing to attach to"
    )


def _inside(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, Mapping):
        yield from thing.items()
    elif isinstance(thing, Sequence) and not isinstance(thing, str):
        yield from enumerate(thing)
    else:
        yield from ((name, getattr(thing, name)) for name in HOLDERS if hasattr(thing, name))


def forecasting(thing: Any, **settings: Any) -> Any:
    """A copy of a wrapper's object whose pipeline forecasts.

    Networks are shared with the original, which is left alone: of the pipeline, only its own attributes and its
    samplers are copied. Nothing is loaded, moved or read here, so the weights may come later and be of any kind.

    Args:
        thing: a pipeline, or a mapping, sequence or object that holds one.
        settings: of the adapter's ``enable``.

    Raises:
        TypeError: no pipeline; settings that the generator does not have.
        RuntimeError: TRELLIS or TRELLIS.2 whose code is not patched; the message says how to.
        ValueError: a setting out of its range.
    """
    where, original = found(thing)
    name, pipeline = str(generator_of(original)), copied(original)
    if name.startswith("hunyuan") and settings.get("stages"):
        raise ValueError("stages: the shape pipeline has one; give its settings directly")
    settings = {key: value for key, value in settings.items() if not (key == "stages" and value is None)}
    try:
        adapter_of(pipeline).enable(pipeline, **settings)
    except RuntimeError as error:
        raise RuntimeError(f"{error}; CHECKOUT is {checkout_of(pipeline)}") from error
    return _replaced(thing, where, pipeline)


def copied(pipeline: Any) -> Any:
    """A shallow copy with samplers of its own, and without a cache of ours."""
    new = copy.copy(pipeline)
    for name, value in list(vars(new).items()):
        if name.endswith("_sampler") and value is not None:
            setattr(new, name, copy.copy(value))
    adapter_of(new).disable(new)
    return new


def adapter_of(pipeline: Any) -> Any:
    """The module with ``enable`` and ``disable``: the generator's, where its code is patched or has to be."""
    name = str(generator_of(pipeline))
    patched = hasattr(type(pipeline), "forecache")
    return unpatched if name.startswith("hunyuan") and not patched else import_module(f"forecache_adapters.{name}")


def checkout_of(pipeline: Any) -> Path:
    """The folder of the code that a pipeline comes from: of the wrapper, above the upstream's package."""
    samplers = [value for name, value in vars(pipeline).items() if name.endswith("_sampler") and value is not None]
    file = Path(inspect.getfile(type(samplers[0] if samplers else pipeline)))
    tops = [each for each in file.parents if each.name in ("hy3dgen", "hy3dshape", "trellis", "trellis2")]
    return (tops[-1] if tops else file).parent


def _replaced(thing: Any, where: Any, pipeline: Any) -> Any:
    if where is None:
        return pipeline
    if isinstance(thing, Mapping):
        return type(thing)({**thing, where: pipeline})  # type: ignore[call-arg]
    if isinstance(thing, Sequence):
        return type(thing)([pipeline if k == where else each for k, each in enumerate(thing)])  # type: ignore[call-arg]
    new = copy.copy(thing)
    setattr(new, where, pipeline)
    return new


def traces_of(thing: Any) -> dict[str, Any]:
    """The traces of the newest run by stage; empty: no cache, or no run yet."""
    pipeline = found(thing)[1]
    handle = attached(pipeline) or vars(pipeline).get("forecache")
    return {} if handle is None else dict(handle.traces)
