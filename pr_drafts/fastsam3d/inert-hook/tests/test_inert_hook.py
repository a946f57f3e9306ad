"""The hooks of the two cached loops: with nothing attached their own rules, otherwise told every step.

Both loops, their schedules and their caches are the repository's own files; the networks are small functions, and packages
that the loops do not need are stood in for by empty modules.
"""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch


FOLDER = Path(__file__).parents[1]
STEPS = 12
COMPUTED = [0, 1, 4, 7, 10]    # of ShortCut_faster: two first steps, then every third
SETTINGS = {"ss_cache_stride": 3, "ss_warmup": 2, "ss_order": 1, "ss_momentum_beta": 0.5}
GENERATOR = "sam3d_objects.model.backbone.generator"
PACKAGES = ["sam3d_objects", "sam3d_objects.data", "sam3d_objects.model", "sam3d_objects.model.backbone", GENERATOR]
NEEDLESS = [
    "astor", "seaborn", "plotly", "plotly.graph_objects", "matplotlib", "matplotlib.pyplot", "matplotlib.ticker",
    "sklearn", "sklearn.decomposition",
]    # fmt: skip


class Empty(types.ModuleType):
    """Every name is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load(folder):
    """Both loops from the repository at `folder`; a second folder may follow."""
    beside = {file.parent.name for file in Path(folder).glob("*/__init__.py")} | {"f3c_slat_end", "sam3d_objects"}
    for name in [name for name in sys.modules if name.partition(".")[0] in beside]:
        del sys.modules[name]
    needless = {name: Empty(name) for name in NEEDLESS}
    needless |= {package: types.ModuleType(package) for package in PACKAGES}    # not what their __init__ imports
    for name, module in needless.items():
        module.__path__ = [str(Path(folder, *name.split(".")))]
    kept = {name: sys.modules.get(name) for name in NEEDLESS}
    sys.modules.update(needless)
    sys.path.insert(0, str(folder))
    try:
        structure = importlib.import_module(f"{GENERATOR}.shortcut.model").ShortCut_faster
        latent = importlib.import_module(f"{GENERATOR}.flow_matching.solver").Euler_end_slat
    finally:
        sys.path.remove(str(folder))
        for name, module in kept.items():
            del sys.modules[name]
            sys.modules.update({name: module} if module else {})
    return types.SimpleNamespace(structure=structure, latent=latent)


def network(x, t, cond, *unused, d=None):
    network.calls += 1
    return torch.tanh(1.7 * x.roll(1, -1) - x) * (1 + t / 1000) + cond


def leaves(x, *args, **kwargs):
    return {name: network(leaf, *args, **kwargs) for name, leaf in x.items()}


COND = torch.linspace(-1, 1, 4).reshape(1, 1, 4)


def noise(seed):
    return torch.randn((1, 6, 4), generator=torch.Generator().manual_seed(seed))


def structure(tree, seed=0, hook=None):
    """A run of ShortCut_faster."""
    made = tree.structure(reverse_fn=leaves, inference_steps=STEPS)
    made.no_shortcut, made.ss_params = True, SETTINGS
    made._generate_noise = lambda shape, device: {"shape": noise(seed)}
    if hook is not None:
        made.forecache = hook
    network.calls = 0
    return made(None, torch.device("cpu"), COND)["shape"]


def latent(tree, seed=0, hook=None):
    """A run of Euler_end_slat, without carving: it computes until it has three velocities, and then no more."""
    solver = tree.latent(thresh=float("inf"))
    if hook is not None:
        solver.forecache = hook
    leader = types.SimpleNamespace(current_step=0, full_sampling_steps=STEPS, increase_step=lambda: None)
    times = [i / STEPS for i in range(STEPS + 1)]
    network.calls = 0
    for x, _, _ in solver.solve_iter(scaled, noise(seed), times, leader, None, COND, None):
        pass
    return x


def scaled(x, t, *args):
    return network(x, torch.tensor([1000 * t]), *args)


def sample(tree, seed=0, hook=None):
    return torch.stack([structure(tree, seed, hook), latent(tree, seed, hook)])


def plain_structure(seed=0, rule="line", clock=COMPUTED):
    """Euler in our own words: a line through the last two computed velocities, or the last one again, in between."""
    x, seen = noise(seed), []
    for i in range(STEPS):
        if i in clock:
            seen.append((i, scaled(x, i / STEPS, COND)))
        v = seen[-1][1]
        if rule == "line" and len(seen) > 1:
            (before, older), (last, _) = seen[-2:]
            v = v + (v - older) / (last - before) * (i - last)
        x = x + v * ((i + 1) / STEPS - i / STEPS)
    return x


def plain_latent(seed=0, computed=3):
    """Euler in our own words: a cached velocity is x plus what the last computed one was more than its x."""
    x = noise(seed)
    for i in range(STEPS):
        if i < computed:
            v = scaled(x, i / STEPS, COND)
            easy = v - x
        else:
            v = x + easy
        x = x + v * ((i + 1) / STEPS - i / STEPS)
    return x


class Hook:
    """Opens every step or none; a cached step that it serves repeats the last velocity, or computes."""

    def __init__(self, serves, repeats=False):
        self.serves, self.repeats, self.told = serves, repeats, []

    def opens(self, current):
        self.told.append((current["step"], current["type"]))
        return self.serves

    def serve(self, x, guided):
        if self.told[-1][1] == "full" or not self.repeats:
            self.newest = guided()
        return self.newest


@pytest.fixture(scope="module")
def tree():
    return load(FOLDER)


def test_with_nothing_attached_both_follow_their_own_rules(tree):
    for seed in (0, 1):
        found = structure(tree, seed)
        assert network.calls == len(COMPUTED) and torch.equal(found, plain_structure(seed))
        found = latent(tree, seed)
        assert network.calls == 3 and torch.equal(found, plain_latent(seed))
    assert not torch.equal(plain_structure(), plain_structure(rule="last")), "control"


def test_nothing_is_attached_by_default(tree):
    assert tree.structure.forecache is None and tree.latent.forecache is None


def test_what_is_attached_is_told_every_step(tree):
    for run, computed, cached in ((structure, COMPUTED, "cache"), (latent, [0, 1, 2], "Taylor")):
        hook = Hook(serves=False)
        assert torch.equal(run(tree, hook=hook), run(tree))
        assert hook.told == [(i, "full" if i in computed else cached) for i in range(STEPS)]


def test_served_steps_go_through_guidance_and_the_schedule_stands(tree):
    found = structure(tree, hook=Hook(serves=True))
    assert network.calls == STEPS and torch.equal(found, plain_structure(rule="last", clock=range(STEPS)))
    found = structure(tree, hook=Hook(serves=True, repeats=True))
    assert network.calls == len(COMPUTED) and torch.equal(found, plain_structure(rule="last"))
    hook = Hook(serves=True)
    found = latent(tree, hook=hook)
    assert network.calls == STEPS and torch.equal(found, plain_latent(computed=STEPS))
    assert [kind for _, kind in hook.told].count("full") == 3
