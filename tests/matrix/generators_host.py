"""The 3D generators: their own pipelines, samplers and solvers from a patched checkout, around small networks.

What happens within a run happens where the network's own code is called: it raises, or another run begins in it.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from forecache_adapters import hunyuan2, hunyuan21, sam3d, trellis, trellis2
from forecache_lab.generators.reference import hunyuan2 as small_hunyuan2
from forecache_lab.generators.reference import hunyuan21 as small_hunyuan21
from forecache_lab.generators.reference import sam3d as small_sam3d
from forecache_lab.generators.reference import trellis as small_trellis
from forecache_lab.generators.reference import trellis2 as small_trellis2
from forecache_lab.generators.reference.trellis import wake
from matrix import hosts
from matrix.hosts import DTYPES, STEPS, Stop
from matrix.pairs import Row

CALLS: list[str] = []
_here = threading.local()


def watched(network: torch.nn.Module, arguments: Any) -> None:
    """A hook on a network: counts its calls, and does what the run under way asks for at its second and third one."""
    CALLS.append(type(network).__name__)
    run = getattr(_here, "run", None)
    if run is None:
        return
    run.calls += 1
    if run.calls == 2 and run.nested is not None:
        nested, run.nested = run.nested, None
        nested()
    if run.calls == 3 and run.event == "exception":
        raise Stop


class Generator:
    """One generator.

    Args:
        name: in the lock. adapter: of it. build: makes the pipeline from the classes of ``load`` and a row.
        networks: of a pipeline. sample: one run. factors: values of ``event`` and of what else the host has.
        twin: another pipeline around the same networks.
    """

    tables = 1
    lives: tuple[str, ...] = ("fresh", "copy", "deepcopy", "pickled")

    def __init__(
        self,
        name: str,
        adapter: Any,
        load: Callable[[Any], Any],
        build: Callable[[Any, Row], Any],
        networks: Callable[[Any], Sequence[torch.nn.Module]],
        sample: Callable[[Any, Row], Any],
        factors: Mapping[str, tuple[str, ...]],
        twin: Callable[[Any], Any],
    ) -> None:
        self.name, self.adapter, self.load, self.build, self.networks = name, adapter, load, build, networks
        self._sample, self._factors, self.twin = sample, factors, twin
        self.upstream: Any = None

    def prepare(self, checkouts: Callable[..., Any]) -> None:
        """See :class:`matrix.hosts.Host`; skips where the upstream's files cannot be had."""
        if self.upstream is None:
            self.upstream = self.load(checkouts)

    def factors(self) -> dict[str, tuple[str, ...]]:
        """See :class:`matrix.hosts.Host`."""
        known = {"event": ("none", "exception"), "setting": ("alone", "threads", "nested"), "dtype": ("float32",)}
        return {**known, "life": self.lives, **self._factors}

    def allowed(self, row: Row) -> bool:
        """See :class:`matrix.hosts.Host`."""
        event, setting = row.get("event"), row.get("setting")
        shared = event == "weights" and setting in ("threads", "nested")  # which both runs change
        return not (event == "exception" and setting == "nested") and not shared

    def still(self, row: Row) -> int:
        """See :class:`matrix.hosts.Host`."""
        return 0

    def make(self, row: Row) -> Any:
        """See :class:`matrix.hosts.Host`."""
        pipe = copy.deepcopy(_built(self, tuple(row.items())))
        for network in self.networks(pipe):
            network.register_forward_pre_hook(watched)
        return pipe

    def relived(self, pipe: Any, life: str) -> Any:
        """See :class:`matrix.hosts.Host`."""
        return hosts.relived(pipe, life)

    def enable(self, pipe: Any, row: Row, **settings: Any) -> Any:
        """See :class:`matrix.hosts.Host`."""
        return self.adapter.enable(pipe, **settings)

    def disable(self, pipe: Any) -> None:
        """See :class:`matrix.hosts.Host`."""
        self.adapter.disable(pipe)

    def count(self) -> Callable[[], int]:
        """See :class:`matrix.hosts.Host`."""
        return lambda: len(CALLS)

    def notes(self, handle: Any) -> list[str]:
        """See :class:`matrix.hosts.Host`."""
        traces = list(handle.traces.values()) if hasattr(handle, "traces") else [handle.trace]
        inner = [trace for each in traces for trace in getattr(each, "branches", {}).values()]
        return [note for trace in (*traces, *inner) for note in trace.notes]

    def sample(self, pipe: Any, row: Row, nested: Callable[[], Any] | None) -> Any:
        """See :class:`matrix.hosts.Host`."""
        before = getattr(_here, "run", None)
        _here.run = SimpleNamespace(calls=0, event=row["event"], nested=nested)
        try:
            return self._sample(pipe, row)
        finally:
            _here.run = before


@functools.lru_cache(maxsize=4)
def _built(host: Generator, row: tuple[tuple[str, str], ...]) -> Any:
    torch.manual_seed(0)
    return host.build(host.upstream, dict(row))


# --- Hunyuan3D ------------------------------------------------------------------------------------------------------
def shape_latents(pipe: Any, row: Row) -> Any:
    picture = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(7)) * 2 - 1

    def callback(step: int, t: Any, outputs: Any) -> None:
        if step == STEPS // 3 and row["event"] == "latents":
            outputs.prev_sample.mul_(0.9)
        if step == STEPS // 3 and row["event"] == "weights":
            with torch.no_grad():
                next(iter(pipe.model.final_layer.parameters())).mul_(1.25)

    seeds = range(2 if row["batch"] == "two" else 1)
    return pipe(
        image=[picture for _ in seeds], num_inference_steps=STEPS, output_type="latent", enable_pbar=False,
        guidance_scale=1.0 if row["guidance"] == "off" else 3.0, callback=callback, callback_steps=1,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )  # fmt: skip


def shape_twin(pipe: Any) -> Any:
    names = ("vae", "model", "conditioner", "image_processor")
    parts = {name: getattr(pipe, name) for name in names}
    return type(pipe)(**parts, scheduler=copy.deepcopy(pipe.scheduler), device="cpu", dtype=pipe.dtype)


class Shape(Generator):
    """Hunyuan3D's pipelines can be made anew from their parts."""

    lives = ("fresh", "copy", "deepcopy", "rebuilt")  # the lab's networks have classes that pickle does not find

    def still(self, row: Row) -> int:
        """The flow scheduler ends with a step of dt = 0, the consistency scheduler of the turbo models does not."""
        return int(row["event"] != "exception" and row.get("model") != "turbo")

    def relived(self, pipe: Any, life: str) -> Any:
        """See :class:`matrix.hosts.Host`."""
        return shape_twin(pipe) if life == "rebuilt" else super().relived(pipe, life)


SHAPE = {
    "event": ("none", "exception", "latents", "weights"), "guidance": ("on", "off"), "batch": ("one", "two"),
    "dtype": ("float32", "bfloat16"),
}  # fmt: skip


# --- TRELLIS ----------------------------------------------------------------------------------------------------------
def structure(pipe: Any, row: Row, condition: Any, off: Mapping[str, Any]) -> Any:
    params = {**pipe.sparse_structure_sampler_params, "steps": STEPS, "verbose": False}
    if row["guidance"] == "everywhere":
        params[next(name for name in params if name.endswith("interval"))] = [0.0, 1.0]
    elif row["guidance"] == "one condition":
        condition = {**condition, "neg_cond": condition["cond"]}
    elif row["guidance"] == "weak":
        params |= off
    batch = 2 if row["batch"] == "two" else 1
    condition = {name: value.expand(batch, *value.shape[1:]) for name, value in condition.items()}
    if row["guidance"] == "one condition":
        condition["neg_cond"] = condition["cond"]
    noise = torch.randn(batch, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    network = pipe.models["sparse_structure_flow_model"]
    return pipe.sparse_structure_sampler.sample(network, noise, **condition, **params).samples


def sampler_twin(pipe: Any) -> Any:
    made = copy.copy(pipe)
    for name in [name for name in vars(pipe) if name.endswith("_sampler")]:
        setattr(made, name, copy.deepcopy(getattr(pipe, name)))
    return made


class Samplers(Generator):
    """A shallow copy of the pipeline has the pipeline's own samplers, so each life is that of a sampler."""

    lives = ("fresh", "copy", "deepcopy", "pickled")

    def relived(self, pipe: Any, life: str) -> Any:
        """See :class:`matrix.hosts.Host`."""
        made = copy.copy(pipe)
        made.sparse_structure_sampler = hosts.relived(pipe.sparse_structure_sampler, life)
        return made


TRELLIS = {"guidance": ("interval", "everywhere", "one condition", "weak"), "batch": ("one", "two")}


# --- SAM 3D Objects -------------------------------------------------------------------------------------------------
class Solver(Generator):
    """The network has functions that pickle does not find, and noise comes from the generator of the process."""

    lives = ("fresh", "copy", "deepcopy")

    def factors(self) -> dict[str, tuple[str, ...]]:
        """See :class:`matrix.hosts.Host`."""
        return {**super().factors(), "setting": ("alone", "nested")}


def small_pipeline(upstream: Any, row: Row) -> Any:
    options = {"inference_steps": STEPS}
    small = {"width": 32, "num_blocks": 1}
    network = wake(small_sam3d.structure_network(upstream, side=4, **small), 1, 0.2)
    made = small_sam3d.generator(upstream, network, small_sam3d.STRUCTURE, **options)
    if row["guidance"] == "off":
        made.reverse_fn.strength = 0.0
    elif row["guidance"] == "everywhere":
        made.reverse_fn.interval = [0, 1000]
    return small_sam3d.Pipeline({"ss_generator": made})


def pose_twin(pipe: Any) -> Any:
    """Another generator and solver around the same network."""
    stage = pipe.models["ss_generator"]
    memo = {id(stage.reverse_fn.backbone): stage.reverse_fn.backbone}
    return type(pipe)({"ss_generator": copy.deepcopy(stage, memo)})


HOSTS = (
    Shape(
        "hunyuan21", hunyuan21, lambda checkouts: small_hunyuan21.load(checkouts("hunyuan21", patched=True)),
        lambda upstream, row: small_hunyuan21.build(upstream, dtype=DTYPES[row["dtype"]]), lambda pipe: [pipe.model],
        shape_latents, SHAPE, shape_twin,
    ),
    Shape(
        "hunyuan2", hunyuan2,
        lambda checkouts: small_hunyuan2.load(checkouts("hunyuan2-released", patched=True, source="wheel")),
        lambda upstream, row: small_hunyuan2.build(upstream, row["model"], dtype=DTYPES[row["dtype"]]),
        lambda pipe: [pipe.model], shape_latents, {**SHAPE, "model": ("mini", "fast", "turbo")}, shape_twin,
    ),
    Samplers(
        "trellis", trellis, lambda checkouts: small_trellis.load(checkouts("trellis", patched=True, source="wheel")),
        lambda upstream, row: small_trellis.build(upstream),
        lambda pipe: [pipe.models["sparse_structure_flow_model"]],
        lambda pipe, row: structure(pipe, row, pipe.get_cond([1]), {"cfg_strength": 0.0}), TRELLIS, sampler_twin,
    ),
    Samplers(
        "trellis2", trellis2, lambda checkouts: small_trellis2.load(checkouts("trellis2", patched=True)),
        lambda upstream, row: small_trellis2.build(upstream),
        lambda pipe: [pipe.models["sparse_structure_flow_model"]],
        lambda pipe, row: structure(pipe, row, pipe.get_cond([1], 512), {"guidance_strength": 1.0}), TRELLIS,
        sampler_twin,
    ),
    Solver(
        "sam3d", sam3d, lambda checkouts: small_sam3d.load(checkouts("sam3d", patched=True, source="wheel")),
        small_pipeline, lambda pipe: [pipe.models["ss_generator"].reverse_fn.backbone],
        lambda pipe, row: pipe.sample_sparse_structure(1), {"guidance": ("interval", "everywhere", "off")}, pose_twin,
    ),
)  # fmt: skip
