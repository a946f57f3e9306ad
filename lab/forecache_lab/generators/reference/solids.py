"""Procedural solids: signed-distance functions of six families, their grids and their pictures.

A solid is a function ``points [..., 3] -> signed distance [...]`` (negative inside) in the cube ``[-1, 1]^3``,
y pointing up, drawn from ``numpy.random.Generator(seed)``: the same seed is the same solid on every machine.
Primitive distances are the textbook ones (Quilez, "Distance functions", https://iquilezles.org/articles/distfunctions/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

Distance = Callable[[torch.Tensor], torch.Tensor]

FAMILIES = ("table", "chair", "lamp", "mug", "torus", "blend")


# --- primitives -----------------------------------------------------------------------------------------------------
def box(centre: Sequence[float], half: Sequence[float], rounding: float = 0.02) -> Distance:
    """Rounded box with half extents ``half``."""
    c, h = torch.tensor(centre), torch.tensor(half) - rounding

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = (p - c).abs() - h
        outside: torch.Tensor = q.clamp(min=0).norm(dim=-1)
        return outside + q.amax(dim=-1).clamp(max=0) - rounding

    return distance


def frustum(centre: Sequence[float], half_height: float, bottom: float, top: float) -> Distance:
    """Upright cone frustum; the lateral distance is scaled by the slope, so that it is exact near the surface."""
    c = torch.tensor(centre)
    slope = (top - bottom) / (2 * half_height)
    cosine = 1 / math.sqrt(1 + slope * slope)

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = p - c
        radius = bottom + slope * (q[..., 1] + half_height)
        side = (q[..., ::2].norm(dim=-1) - radius) * cosine
        cap = q[..., 1].abs() - half_height
        outside: torch.Tensor = torch.stack((side, cap), -1).clamp(min=0).norm(dim=-1)
        return outside + torch.maximum(side, cap).clamp(max=0)

    return distance


def ring(centre: Sequence[float], major: float, minor: float, axis: int) -> Distance:
    """Torus around coordinate axis ``axis``."""
    c = torch.tensor(centre)
    plane = [k for k in range(3) if k != axis]

    def distance(p: torch.Tensor) -> torch.Tensor:
        q = p - c
        return torch.hypot(q[..., plane].norm(dim=-1) - major, q[..., axis]) - minor

    return distance


def sphere(centre: Sequence[float], radius: float) -> Distance:
    c = torch.tensor(centre)
    return lambda p: (p - c).norm(dim=-1) - radius


def union(*parts: Distance, smooth: float = 0.0) -> Distance:
    """Minimum, or the polynomial smooth minimum of width ``smooth``."""

    def distance(p: torch.Tensor) -> torch.Tensor:
        d = parts[0](p)
        for part in parts[1:]:
            e = part(p)
            if smooth:
                h = (smooth - (d - e).abs()).clamp(min=0) / smooth
                d = torch.minimum(d, e) - h * h * smooth / 4
            else:
                d = torch.minimum(d, e)
        return d

    return distance


def difference(solid: Distance, hole: Distance) -> Distance:
    return lambda p: torch.maximum(solid(p), -hole(p))


# --- families -------------------------------------------------------------------------------------------------------
def _legs(rng: np.random.Generator, x: float, z: float, floor: float, seat: float) -> list[Distance]:
    thick, mid, half = rng.uniform(0.1, 0.15), (floor + seat) / 2, (seat - floor) / 2
    inset = 0.03
    return [
        box((sx * (x - thick - inset), mid, sz * (z - thick - inset)), (thick, half, thick))
        for sx in (-1, 1)
        for sz in (-1, 1)
    ]


def table(rng: np.random.Generator) -> Distance:
    x, z, top, slab = rng.uniform(0.55, 0.9), rng.uniform(0.45, 0.9), rng.uniform(0.1, 0.6), rng.uniform(0.09, 0.14)
    floor = -rng.uniform(0.5, 0.8)
    if rng.random() < 0.5:
        plate, pole = min(x, z), (floor + top) / 2
        return union(
            frustum((0, top, 0), slab, plate, plate),
            frustum((0, pole, 0), (top - floor) / 2, rng.uniform(0.2, 0.35), rng.uniform(0.12, 0.2)),
        )
    return union(box((0, top, 0), (x, slab, z)), *_legs(rng, x, z, floor, top))


def chair(rng: np.random.Generator) -> Distance:
    x, z, seat, slab = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(-0.2, 0.1), rng.uniform(0.09, 0.14)
    back, lean = rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.14)
    return union(
        box((0, seat, 0), (x, slab, z)),
        box((0, (seat + back) / 2, lean - z), (x, (back - seat) / 2, lean)),
        *_legs(rng, x, z, -rng.uniform(0.6, 0.85), seat),
    )


def lamp(rng: np.random.Generator) -> Distance:
    floor, split, tip = -rng.uniform(0.7, 0.9), rng.uniform(0.0, 0.25), rng.uniform(0.6, 0.9)
    foot = rng.uniform(0.3, 0.5)
    return union(
        frustum((0, floor + 0.1, 0), 0.1, foot, foot * 0.85),
        frustum((0, (floor + split) / 2, 0), (split - floor) / 2 + 0.05, 0.13, 0.13),
        frustum((0, (split + tip) / 2, 0), (tip - split) / 2, rng.uniform(0.5, 0.75), rng.uniform(0.2, 0.4)),
    )


def mug(rng: np.random.Generator) -> Distance:
    radius, height, shift = rng.uniform(0.42, 0.55), rng.uniform(0.45, 0.7), -0.18
    top = radius * rng.uniform(0.9, 1.15)
    wall = rng.uniform(0.13, 0.17)
    cup = difference(
        frustum((shift, 0, 0), height, radius, top),
        frustum((shift, 2 * wall, 0), height, radius - wall, top - wall),
    )
    handle = difference(
        ring((shift + radius, 0, 0), rng.uniform(0.28, 0.36), rng.uniform(0.1, 0.13), axis=2),
        frustum((shift, 0, 0), height, radius - wall, top - wall),
    )
    return union(cup, handle)


def torus(rng: np.random.Generator) -> Distance:
    return ring((0, 0, 0), rng.uniform(0.45, 0.65), rng.uniform(0.16, 0.28), axis=int(rng.integers(3)))


def blend(rng: np.random.Generator) -> Distance:
    parts = [
        sphere(tuple(rng.uniform(-0.45, 0.45, 3).astype(np.float32)), rng.uniform(0.25, 0.45))
        for _ in range(int(rng.integers(2, 5)))
    ]
    return union(*parts, smooth=0.25)


def solid(seed: int, family: str | None = None) -> tuple[str, Distance]:
    """The solid of ``seed``; ``family`` (one of :data:`FAMILIES`) is drawn from the seed unless given."""
    rng = np.random.default_rng(seed)
    drawn = FAMILIES[int(rng.integers(len(FAMILIES)))]
    name = drawn if family is None else family
    if name not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, got {family!r}")
    make: Callable[[np.random.Generator], Distance] = globals()[name]
    return name, make(rng)


# --- what a network sees --------------------------------------------------------------------------------------------
def grid(distance: Distance, resolution: int, centres: bool = False) -> torch.Tensor:
    """Signed distances ``[resolution, resolution, resolution]`` (x, y, z) at the nodes of ``[-1, 1]^3``.

    Nodes include the boundary of the cube; ``centres`` takes the centres of as many cells instead, so that a grid of
    twice the resolution splits every cell into eight.
    """
    end = 1 - 1 / resolution if centres else 1
    axis = torch.linspace(-end, end, resolution)
    return distance(torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1))


def picture(distance: Distance, size: int = 32, marches: int = 28) -> torch.Tensor:
    """Shaded orthographic view ``[1, size, size]`` in ``[-1, 1]`` (background -1) from above the front right.

    Sphere tracing; brightness is the Lambert term of the normal plus a depth cue, so that one channel shows shape.
    """
    azimuth, elevation = math.radians(35), math.radians(28)
    forward = -torch.tensor(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]))
    right = right / right.norm()
    up = torch.linalg.cross(right, forward)
    axis = torch.linspace(-1.35, 1.35, size)
    v, u = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    p = u[..., None] * right + v[..., None] * up - 2.0 * forward
    travelled = torch.zeros(size, size)
    for _ in range(marches):
        step = distance(p)
        travelled = travelled + step
        p = p + step[..., None] * forward
    hit = (step.abs() < 0.03) & (travelled < 4)
    eps = 1e-2
    normal = torch.stack([distance(p + eps * e) - distance(p - eps * e) for e in torch.eye(3)], -1)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    light = torch.tensor([0.5, 0.8, 0.33])
    shade = 0.45 + 0.55 * (normal @ (light / light.norm())).clamp(min=0) - 0.15 * (travelled - 2.0)
    return torch.where(hit, shade.clamp(0.05, 1) * 2 - 1, -torch.ones(()))[None]
