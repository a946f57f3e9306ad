"""How far an object is from its uncached partner, in one number a column."""

from __future__ import annotations

import torch

from ..generators.generated import Generated, GenerationFailed
from ..metrics import geometry
from ..metrics.columns import surface, voxels_and_pose
from ..metrics.relative import relative

DRIFT = "latent drift"
HIGHER = (
    "sampling speed-up", "total speed-up", "seconds saved", "normals", "volume IoU", "occupancy IoU",
    *(f"F@{t}" for t in geometry.THRESHOLDS),
)  # fmt: skip
UNITS = (
    "latent drift: ||x - x_ref|| / ||x_ref||, of several stages the largest; Chamfer and F-score thresholds in longest"
    " box sides of the uncached mesh; speed-up: uncached seconds over these, of all samplers, and of the whole run;"
    " rotation in degrees, scale a ratio, translation in scene scales; peak memory of the uncached run is 1"
)


def drifts(made: Generated, reference: Generated) -> dict[str, float]:
    """By stage; one whose voxels differ has none."""
    stages = [name for name, latent in made.latents.items() if latent.shape == reference.latents[name].shape]
    return {name: relative(made.latents[name], reference.latents[name]) for name in stages}


def check(made: Generated) -> None:
    """Whether the object can be compared: one NaN would spoil the median over all objects.

    Raises:
        GenerationFailed: a latent or a vertex that is not finite; a mesh without faces or extent.
    """
    for stage, latent in made.latents.items():
        if not torch.isfinite(latent).all():
            raise GenerationFailed(f"the latent of {stage} is not finite")
    if made.mesh is not None:
        try:
            geometry.check(made.mesh, "its mesh")
        except ValueError as error:
            raise GenerationFailed(str(error)) from None


def floor(made: Generated) -> dict[str, float]:
    """The columns of a mesh against another sampling of itself: what no method can go below."""
    return {} if made.mesh is None else surface(geometry.floor(made.mesh))


def score(made: Generated, reference: Generated) -> dict[str, float]:
    """The columns that do not depend on the clock.

    Raises:
        ValueError: no stage can be compared.
    """
    by_stage = drifts(made, reference)
    if not by_stage:
        raise ValueError("no stage has a latent of the uncached run's shape")
    found = {DRIFT: max(by_stage.values())}
    if len(made.latents) > 1:
        found |= {f"drift, {stage}": drift for stage, drift in by_stage.items()}
    found |= voxels_and_pose(made, reference)
    if made.mesh is not None and reference.mesh is not None:
        found |= surface(geometry.compare(made.mesh, reference.mesh))
    return found
