"""What the adapter of Fast-SAM3D relies on, in small: its two cached loops with the patch's hooks, and the plain ones.

Written from the contract, not from the upstream's text: class names, who calls whom, what is kept where, when a step
computes, which velocity a cached step gets and which tokens are carved.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import nn

LEAVES = {"shape": (1, 24, 4), "6drotation_normalized": (1, 1, 6), "scale": (1, 1, 3), "translation_scale": (1, 1, 1)}
WIDTH = 16


def over(function, *trees):
    """``function`` of tensors, or leaf by leaf of dictionaries."""
    if isinstance(trees[0], dict):
        return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


# --- networks and guidance ------------------------------------------------------------------------------------------
class Network(nn.Module):
    """Smooth in x, t and the condition; each token sees the mean of those that it is called with."""

    def __init__(self, channels):
        super().__init__()
        self.inside = nn.ModuleDict({name: nn.Linear(2 * c + 4, WIDTH) for name, c in channels.items()})
        self.outside = nn.ModuleDict({name: nn.Linear(WIDTH, c) for name, c in channels.items()})

    def forward(self, x, t, cond, *coords, d=None, cfg=False):
        angle = torch.as_tensor(t).reshape(-1)[0] / 400
        clock = torch.stack([angle.sin(), angle.cos()])
        given = torch.cat([clock, torch.zeros(2) if cfg else cond])

        def velocity(name, leaf):
            rest = given.expand(*leaf.shape[:2], -1)
            hidden = torch.tanh(self.inside[name](torch.cat([leaf, leaf.mean(1, True).expand_as(leaf), rest], -1)))
            return self.outside[name](hidden)

        if isinstance(x, dict):
            return {name: velocity(name, leaf) for name, leaf in x.items()}
        return velocity("v", x)


class ClassifierFreeGuidance(nn.Module):
    def __init__(self, backbone, strength, interval=(0, 500)):
        super().__init__()
        self.backbone, self.strength, self.interval = backbone, strength, interval

    def forward(self, x, t, *args, **kwargs):
        low, high = self.interval
        cond = self.backbone(x, t, *args, **kwargs)
        if not self.strength or not low <= t <= high:
            return cond
        uncond = self.backbone(x, t, *args, **{**kwargs, "cfg": True})
        return over(lambda c, u: (1 + self.strength) * c - self.strength * u, cond, uncond)


# --- solvers --------------------------------------------------------------------------------------------------------
class Euler:
    def step(self, dynamics, x, t, dt, *args, **kwargs):
        v = dynamics(x, t, *args, **kwargs)
        return over(lambda a, b: a + b * dt, x, v), v

    def solve_iter(self, dynamics, x, times, *args, **kwargs):
        for t, after in pairwise(times):
            x, v = self.step(dynamics, x, t, after - t, *args, **kwargs)
            yield x, t, v


class Midpoint(Euler):
    pass


def changes(memory, current, x):
    computes = current["step"] < 3
    if not computes:
        memory["error"] += memory["k"] * (x - memory["x"]).abs().mean() / memory["v"].abs().mean()
        computes = memory["error"] >= memory["thresh"]
    current["type"] = "full" if computes else "Taylor"
    if computes:
        memory["error"] = 0.0
        current["activated_steps"].append(current["step"])
    return computes


class Euler_end_slat(Euler):
    """Computes when the velocity must have changed by ``thresh`` of itself; carves the slowest tokens."""

    forecache = None

    def step(self, dynamics, x, t, dt, *args, **kwargs):
        memory, current = self.memory, self.current
        computes = changes(memory, current, x)
        served = self.forecache is not None and self.forecache.opens(current)
        if computes:
            if current["is_f3c_active"]:
                speed = memory["v"].norm(dim=-1)[0]
                carved = speed.topk(int(self.carving_ratio * x.shape[1]), largest=False).indices
                kept = torch.ones(x.shape[1], dtype=torch.bool)
                kept[carved] = False
                current["fast_update_indices"] = kept.nonzero()[:, 0]
                v = memory["v"].clone()
                v[:, kept] = dynamics(x[:, kept], t, *args, **kwargs)
            else:
                v = dynamics(x, t, *args, **kwargs)
            if "before" in memory:
                moved = (memory["x"] - memory["before"]).abs().mean()
                memory["k"] = (v - memory["v"]).abs().mean() / moved
            if "x" in memory:
                memory["before"] = memory["x"]
            memory["easy"] = v - x
        else:
            v = x + memory["easy"]
            if served:
                v = dynamics(x, t, *args, **kwargs)
        memory["x"], memory["v"] = x.clone(), v.clone()
        current["step"] += 1
        return x + v * dt, v

    def solve_iter(self, dynamics, x, times, *args, **kwargs):
        self.memory = {"error": 0.0, "k": 1.0, "thresh": self.thresh}
        self.current = {"step": 0, "type": None, "activated_steps": [], "use_f3c": True, "is_f3c_active": False}
        for t, after in pairwise(times):
            carves = int(self.carving_ratio * x.shape[1]) > 0
            self.current["is_f3c_active"] = carves and self.current["step"] >= 2
            x, v = self.step(dynamics, x, t, after - t, *args, **kwargs)
            yield x, t, v


# --- generators -----------------------------------------------------------------------------------------------------
class FlowMatching(nn.Module):
    time_scale = 1000.0

    def __init__(self, reverse_fn, solver=None, rescale_t=1.0, inference_steps=25):
        super().__init__()
        self.reverse_fn, self._solver = reverse_fn, solver or Euler()
        self.rescale_t, self.inference_steps = rescale_t, inference_steps

    def times(self):
        line = torch.linspace(0, 1, self.inference_steps + 1)
        return line / (1 + (self.rescale_t - 1) * (1 - line))

    def _generate_dynamics(self, x, t, *args, **kwargs):
        return self.reverse_fn(x, t * self.time_scale, *args, **kwargs)

    def generate_iter(self, x, *args):
        yield from self._solver.solve_iter(self._generate_dynamics, x, self.times(), *args)

    def forward(self, x, *args):
        for made, *_ in self.generate_iter(x, *args):  # noqa: B007
            pass
        return made


class FlowMatching_faster(FlowMatching):
    def forward(self, x, *args):
        self._solver.thresh = self.slat_params["slat_thresh"]
        self._solver.carving_ratio = self.slat_params["slat_carving_ratio"]
        return super().forward(x, *args)


class ShortCut(FlowMatching):
    pass


def cal_type(state, current):
    full = current["step"] < state["first_enhance"] or current["step"] >= state["end_enhance"]
    if full or state["cache_counter"] == state["cache_interval"] - 1:
        current["type"] = "full"
        state["cache_counter"] = 0
        current["activated_steps"].append(current["step"])
    else:
        current["type"] = "cache"
        state["cache_counter"] += 1


class ShortCut_faster(ShortCut):
    """Taylor of order 1 on the velocity after guidance."""

    forecache = None

    def forward(self, x, *args):
        own = {"cache_interval": self.ss_params["ss_cache_stride"], "first_enhance": self.ss_params["ss_warmup"]}
        self.cache_dic = {"cache_counter": 0, "end_enhance": 24, **own}
        self.current = {"step": 0, "activated_steps": []}
        return super().forward(x, *args)

    def _generate_dynamics(self, x, t, *args, **kwargs):
        cal_type(self.cache_dic, self.current)
        network = partial(self.reverse_fn, x, t * self.time_scale, *args, **kwargs)
        i, full = self.current["step"], self.current["activated_steps"]
        if self.forecache is not None and self.forecache.opens(self.current):
            self.current["step"] += 1
            return self.forecache.serve(x, network)
        if self.current["type"] == "full":
            v, gap = network(), full[-1] - full[-2] if len(full) > 1 else 1
            slope = over(lambda a, b: (a - b) / gap, v, self.last) if len(full) > 1 else over(torch.zeros_like, v)
            self.last, self.slope = v, slope
        else:
            v = over(lambda a, b: a + (i - full[-1]) * b, self.last, self.slope)
        self.current["step"] += 1
        return v


class Pipeline:
    def __init__(self, structure, slat):
        self.models = {"ss_generator": structure, "slat_generator": slat}

    @torch.no_grad()
    def sample_sparse_structure(self, seed):
        torch.manual_seed(seed)
        noise = {name: torch.randn(shape) for name, shape in LEAVES.items()}
        return self.models["ss_generator"](noise, torch.randn(2))

    @torch.no_grad()
    def sample_slat(self, seed, coords):
        torch.manual_seed(seed)
        return self.models["slat_generator"](torch.randn(1, len(coords), 8), torch.randn(2))


def build():
    """As the lab's builders do it: the same networks in the plain classes and in those with a cache."""
    torch.manual_seed(3)
    first = Network({name: shape[-1] for name, shape in LEAVES.items()})
    second = Network({"v": 8})
    for network in (first, second):
        network.requires_grad_(False)
    structure, slat = (ClassifierFreeGuidance(first, 7.0), ClassifierFreeGuidance(second, 1.0))
    plain = Pipeline(ShortCut(structure, rescale_t=3.0).eval(), FlowMatching(slat).eval())
    fast = Pipeline(
        ShortCut_faster(deepcopy(structure), rescale_t=3.0).eval(),
        FlowMatching_faster(deepcopy(slat), Euler_end_slat()).eval(),
    )
    fast.models["ss_generator"].ss_params = {"ss_cache_stride": 3, "ss_warmup": 2}
    fast.models["slat_generator"].slat_params = {"slat_thresh": 0.3, "slat_carving_ratio": 0.1}
    coords = torch.zeros(120, 4, dtype=torch.int)
    return SimpleNamespace(plain=plain, fast=fast, coords=coords, seeds=(1, 2, 3))
