"""What TRELLIS and TRELLIS.2 share as subjects: the pipeline's own ``run``, whose samplers and decoders are watched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import trimesh
from PIL import Image

from .generated import Generated, GenerationFailed, InStages
from .reference import pictures


class TrellisFamily(InStages):
    """See :class:`.generated.Generator`. A generator is a subclass that fills in the attributes.

    Attributes:
        module, pipeline: where the upstream's class is, for real weights.
        samplers: names of the pipeline's samplers, without ``_sampler``.
        decoder: the pipeline's method that makes a mesh of the last latent.
        options: further arguments of the pipeline's ``run``.
        no_surface: the small networks may decode to an empty surface.
    """

    fork_last = True
    module: str
    pipeline: str
    name: str
    title: str
    conditions: str
    samplers: Sequence[str]
    decoder: str
    options: Mapping[str, Any]
    no_surface = False

    def __init__(self, checkout: Path, weights: str | None = None) -> None:
        """``weights``: a name or folder for ``from_pretrained``, for :meth:`generate` alone.

        Raises:
            FileNotFoundError, RuntimeError: no checkout, or one that is not patched; weights without a CUDA device.
        """
        self.real = weights is not None
        if weights is not None:
            self.pipe = load(checkout, self.module, self.pipeline, weights)
            self.title = f"{self.title.partition(',')[0]}, weights {weights}"
            self.conditions = f"{torch.cuda.get_device_name()}, the weights' own settings"
        else:
            torch.set_num_threads(1)
            self.pipe = self.build(checkout)
        self.adapter.enable(self.pipe)  # says so now, in one line, if the checkout is not patched
        self.adapter.disable(self.pipe)
        for name, network in self.pipe.models.items():
            if "flow_model" in name:
                network.register_forward_pre_hook(self._count)

    @property
    def networks(self) -> Mapping[str, Any]:
        """See :attr:`.generated.Generator.networks`."""
        return {stage: self.pipe.models[f"{stage}_flow_model"] for stage in self.grids}

    def build(self, checkout: Path) -> Any:
        """The pipeline around small networks."""
        raise NotImplementedError

    def voxel_makers(self) -> list[tuple[Any, str]]:
        """Owners and names of the methods that return voxels for a later stage."""
        return [(self.pipe, "sample_sparse_structure")]

    def mesh_of(self, found: Any) -> Any:
        """The mesh in what ``run`` returned."""
        raise NotImplementedError

    def generate(
        self,
        picture: Image.Image,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        given: Generated | None = None,
    ) -> Generated:
        """See :meth:`.generated.Generator.generate`."""
        made, pipe, stages = Generated(), self.pipe, {network: stage for stage, network in self.networks.items()}
        filled: list[torch.Tensor] = []
        look = pipe.models["sparse_structure_decoder"].register_forward_hook(lambda *io: filled.append(io[2][0, 0] > 0))
        params = {} if steps is None else {"steps": steps}
        with ExitStack() as around:
            around.callback(look.remove)
            handle = around.enter_context(self.attached(settings))
            for name in self.samplers:
                watch = watched(made, lambda: self._calls, stages.__getitem__)
                around.enter_context(replaced(getattr(pipe, f"{name}_sampler"), "sample", watch))
            for owner, name in self.voxel_makers():
                around.enter_context(replaced(owner, name, kept(made.voxels, name, given)))
            around.enter_context(replaced(pipe, self.decoder, made.timing("decode")))
            found = pipe.run(
                picture if self.real else pictures.from_image(picture), seed=seed, **self.options,
                **{f"{name}_sampler_params": params for name in self.samplers},
            )  # fmt: skip
        made.traced(handle)
        made.occupancy = filled[0].cpu()
        mesh = to_mesh(self.mesh_of(found))
        if len(mesh.faces):
            made.mesh = mesh
        elif not self.no_surface:
            raise GenerationFailed("the decoded surface is empty")
        return made


def load(checkout: Path, module: str, name: str, weights: str) -> Any:
    """``name.from_pretrained(weights)`` of a checkout's own module, on the device. All packages that the upstream
    imports must be installed: nothing stands in for them.

    Raises:
        RuntimeError: no CUDA device; a package is missing; another checkout was imported before.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(f"weights {weights} need a CUDA device, and this machine has none")
    root = str(Path(checkout).resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"weights {weights} need all that the upstream imports ({error}): see its README") from error
    if not str(found.__file__).startswith(root):
        raise RuntimeError(f"checkout: {found.__file__} is already imported; start a new process for {checkout}")
    pipe = getattr(found, name).from_pretrained(weights)
    pipe.cuda()
    return pipe


def to_mesh(mesh: Any) -> trimesh.Trimesh:
    """A mesh with tensors ``vertices``, ``faces`` for the metrics; a :class:`trimesh.Trimesh` as it is."""
    if isinstance(mesh, trimesh.Trimesh):
        return mesh
    return trimesh.Trimesh(mesh.vertices.float().cpu().numpy(), mesh.faces.cpu().numpy(), process=False)


@contextmanager
def replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """``owner.name`` is ``wrap(owner.name)`` for a block, on the instance."""
    before = vars(owner).get(name)
    setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


def watched(made: Generated, counter: Callable[[], int], stage_of: Callable[[Any], str]) -> Callable[[Any], Any]:
    """Made for :func:`replaced`: ``sample`` of an Euler sampler, which leaves latent, calls and seconds in ``made``.

    Args:
        made: of the run.
        counter: calls so far.
        stage_of: the stage of a network.
    """

    def wrap(sample: Any) -> Any:
        def run(network: Any, *args: Any, **kwargs: Any) -> Any:
            stage, before = stage_of(network), counter()
            with made.timed(stage):
                out = sample(network, *args, **{**kwargs, "verbose": False})
            made.calls[stage] = made.calls.get(stage, 0) + counter() - before
            made.latents[stage] = getattr(out.samples, "feats", out.samples).float().cpu()  # sparse, or dense
            return out

        return run

    return wrap


def kept(made: dict[str, torch.Tensor], name: str, given: Generated | None) -> Callable[[Any], Any]:
    """Made for :func:`replaced`, of a method that makes voxels: it keeps them as ``made[name]`` and returns those of
    the run ``given`` instead, if there is one. It raises :class:`GenerationFailed` where no voxel is occupied.
    """

    def wrap(make: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            made[name] = make(*args, **kwargs)
            if not len(made[name]):
                raise GenerationFailed("no voxel is occupied")
            return made[name] if given is None else given.voxels[name]

        return run

    return wrap


def structure_latent(pipe: Any, cond: Mapping[str, Any], steps: int) -> torch.Tensor:
    """What the structure stage's sampler returns for noise drawn here, before the pipeline decodes it to voxels."""
    network = pipe.models["sparse_structure_flow_model"]
    noise = torch.randn(1, network.in_channels, *[network.resolution] * 3)
    given = {**cond, **pipe.sparse_structure_sampler_params, "steps": steps, "verbose": False}
    latent: torch.Tensor = pipe.sparse_structure_sampler.sample(network, noise, **given).samples
    return latent
