"""SAM 3D Objects with a cache: whatever its generators can do without one, they do with it.

The upstream's own generators, solvers and guidance around a toy network.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import types
import warnings
import weakref
from functools import partial

import pytest
import torch

from forecache import Forecaster, Plan
from forecache.rules import Linear
from forecache_adapters import sam3d as adapter
from forecache_adapters.attach import Worn, attached, worn
from forecache_adapters.families import ode_run
from forecache_lab.generators.reference import sam3d
from sam3d_toy import CPU, SHAPES, Toy, count, made, run, same
from upstream_helpers import relative

TWO = Linear(1)
BRANCHES = pytest.mark.parametrize("branches", ["apart", "combined"])


@pytest.fixture(scope="module")
def upstream(checkouts):
    return sam3d.load(checkouts("sam3d", patched=True, source="wheel"))


@pytest.fixture
def toy(upstream):
    """``toy(**options)``: a generator of the upstream's around the toy network; ``run(generator, seed)`` samples."""
    return lambda *args, **options: made(upstream, *args, **options)


def notes(handle) -> list[str]:
    """Of the newest run of the structure stage and of its branches."""
    trace = handle.traces["ss"]
    return [*trace.notes, *(note for each in trace.branches.values() for note in each.notes)]


@torch.no_grad()
def watched(generator, step=lambda i, x: None, cond=None, seed=0):
    """A sample; ``step(i, x)`` after each of its steps, as a user's callback."""
    torch.manual_seed(seed)
    cond = torch.zeros(1, 3, 4) if cond is None else cond
    for i, (_, x, _) in enumerate(generator.generate_iter(SHAPES, CPU, cond)):
        step(i, x)
    return x


class Conditioned(Toy):
    """Follows its condition, whose batch may be larger than that of the state."""

    def leaf(self, name, x, t, shift):
        return super().leaf(name, x, t, shift + self.given)

    def forward(self, x, t, cond=None, *args, **kwargs):
        self.given = 0.0 if cond is None else float(cond.mean())
        return super().forward(x, t, *args, **kwargs)


# --- a history serves calls of one kind -------------------------------------------------------------------------------
def written(generator, cond):
    cond += 3.0


def another_batch(generator, cond):
    """From here on the guidance is asked for two of everything, and one is used."""
    twice = lambda tree: torch.utils._pytree.tree_map(lambda v: torch.cat([v, v]) if v.ndim else v, tree)  # noqa: E731
    once = lambda tree: torch.utils._pytree.tree_map(lambda v: v[: len(v) // 2] if v.ndim else v, tree)  # noqa: E731
    generator.reverse_fn.register_forward_pre_hook(lambda module, args: (twice(args[0]), *args[1:]))
    generator.reverse_fn.register_forward_hook(lambda module, args, out: once(out))


def another_dtype(generator, cond):
    half = lambda tree: torch.utils._pytree.tree_map(torch.Tensor.bfloat16, tree)  # noqa: E731
    generator.reverse_fn.register_forward_pre_hook(lambda module, args: (half(args[0]), *args[1:]))


def no_condition(generator, cond):
    generator.reverse_fn.register_forward_pre_hook(lambda module, args: (*args[:2], None))


def one_leaf_less(generator, cond):
    """Of the state that the network sees; of the velocity too."""
    less = lambda tree: {name: leaf for name, leaf in tree.items() if name != "row"}  # noqa: E731
    generator.reverse_fn.register_forward_pre_hook(lambda module, args: (less(args[0]), *args[1:]))
    generator.reverse_fn.register_forward_hook(lambda module, args, out: {**out, "row": torch.zeros(3)})


CHANGES = {
    written: {"apart": "another argument 3", "combined": "another argument 4"},
    another_batch: {"apart": "another x"},
    another_dtype: {"apart": "another x"},
    no_condition: {"apart": "another argument 3"},
    one_leaf_less: {"apart": "another x"},
}


@pytest.mark.parametrize(("change", "branches"), [(c, b) for c, each in CHANGES.items() for b in each])
@pytest.mark.filterwarnings("ignore:forecache is off")
def test_a_history_serves_calls_of_one_kind(toy, change, branches):
    def sample(settings):
        generator, cond = toy(Conditioned()), torch.zeros(1, 3, 4)
        network = generator.reverse_fn.backbone

        def after(i, x):
            if i == 11:
                change(generator, cond)
            calls.append(len(network.seen))

        calls: list[int] = []
        if settings is None:
            return watched(generator, after, cond), calls, None
        with adapter.enabled(generator, branches=branches, **settings) as handle:
            return watched(generator, after, cond), calls, handle

    expected, full, _ = sample(None)
    same_calls, calls, handle = sample({"interval": 1})
    assert same(same_calls, expected) and calls == full
    found, calls, handle = sample({"basis": TWO, "interval": 6})
    text = CHANGES[change][branches]
    assert any(text in note and "step 12: a new history begins" in note for note in notes(handle)), notes(handle)
    assert calls[12] - calls[11] == 2, "the step after the change is computed, although its turn comes later"
    assert handle.traces["ss"].calls["cond"] < 25 and relative(found["shape"], expected["shape"]) < 0.1


def test_guidance_that_a_callback_changes(toy):
    """After guidance its strength is a part of the velocity; before it is not."""

    def sample(**settings):
        generator = toy(Conditioned(), interval=(0, 1000))

        def after(i, x):
            if i == 9:
                generator.reverse_fn.strength = 1.0
            if i == 15:
                generator.reverse_fn.interval = (0, 0)

        if not settings:
            return watched(generator, after)
        with adapter.enabled(generator, **settings) as handle:
            return watched(generator, after), handle

    expected = sample()
    for branches in ("apart", "combined"):
        for adaptive in [False] if branches == "combined" else [False, True]:
            found, handle = sample(interval=1, branches=branches)
            assert same(found, expected)
            found, handle = sample(basis=TWO, interval=4, branches=branches, adaptive_guidance=adaptive)
            assert relative(found["shape"], expected["shape"]) < 0.1
            another = [note for note in notes(handle) if "another guidance" in note]
            assert len(another) == (2 if branches == "combined" else 0), notes(handle)


def test_a_plan_in_a_run_whose_guidance_begins_after_all(toy):
    """The plan was made for a run without guidance: what it has is the conditional branch alone."""
    generator = toy(interval=None)
    times = tuple(map(float, generator._prepare_t_and_d()[0]))
    plan = Plan(times, (0, 1, 5, 9, 24), made_for=adapter.key(generator, "ss"))

    def after(i, x):
        generator.reverse_fn.interval = (0, 1000) if i >= 6 else None

    expected = watched(generator, after)
    generator.reverse_fn.interval = None
    with (
        adapter.enabled(generator, plan=plan, basis="linear") as handle,
        pytest.warns(UserWarning, match="'uncond' in a run that began without guidance"),
    ):
        found = watched(generator, after)
    assert relative(found["shape"], expected["shape"]) < 0.1 and handle.traces["ss"].calls["uncond"] == 18


# --- one call a branch an evaluation ----------------------------------------------------------------------------------
def guidance(upstream, times):
    """A wrapper that asks for every branch several ``times``, at states that are a little apart."""

    class Guidance(upstream.ClassifierFreeGuidance):
        def inner_forward(self, x, t, is_cond, strength, *args, **kwargs):
            near = [torch.utils._pytree.tree_map(lambda v, k=k: v + 0.01 * k, x) for k in range(times)]
            made = [super(Guidance, self).inner_forward(each, t, is_cond, strength, *args, **kwargs) for each in near]
            return torch.utils._pytree.tree_map(lambda *leaves: sum(leaves) / times, *made)

    return Guidance


@BRANCHES
def test_more_calls_than_the_order_names(toy, upstream, branches):
    generator = toy(guidance=guidance(upstream, 2))
    expected = run(generator)
    for settings in ({"interval": 1}, {"basis": TWO, "interval": 3}):
        generator.reverse_fn.backbone.seen.clear()
        with adapter.enabled(generator, branches=branches, **settings) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(generator)
        if branches == "apart":
            assert "off: the network is called more than 2 times a step: cond, uncond" in notes(handle)
            assert handle.traces["ss"].computed == len(generator.reverse_fn.backbone.seen)
            assert same(found, expected) or settings["interval"] == 3
        else:
            assert same(found, expected) == (settings["interval"] == 1)
        assert relative(found["shape"], expected["shape"]) < 0.05


def test_two_calls_of_one_branch_are_told_apart_by_their_order(toy, upstream):
    generator = toy(guidance=guidance(upstream, 2), interval=None)
    expected = run(generator)
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        found = run(generator)
    assert notes(handle) == [] and handle.traces["ss"].calls == {"cond": 10, "uncond": 10}
    assert 0 < relative(found["shape"], expected["shape"]) < 0.05


@pytest.mark.parametrize("interval", [1, 3])
def test_a_guidance_wrapper_that_is_not_known_comes_after_enable(toy, interval):
    class Mine(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, x, t, *args, **kwargs):
            return self.backbone(x, t, *args, **kwargs)

    generator = toy()
    with adapter.enabled(generator, basis=TWO, interval=interval) as handle:
        generator.reverse_fn = Mine(generator.reverse_fn.backbone).eval()
        with pytest.warns(UserWarning, match="reverse_fn must be one of ClassifierFreeGuidance, PointmapCFG, got Mine"):
            found = run(generator)
    assert same(found, run(generator)) and handle.traces["ss"].calls == {"cond": 25}


def test_a_network_or_a_solver_that_is_exchanged_is_followed(toy, upstream):
    generator, others = toy(), [Toy(), upstream.solver.Midpoint()]
    former = generator.reverse_fn.backbone, generator._solver
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        generator.reverse_fn.backbone, generator._solver = others
        run(generator)
        assert handle.traces["ss"].calls == {name: count(others[0], name) for name in ("cond", "uncond")}
        assert handle.traces["ss"].calls["cond"] == 20 and not any(map(worn, former))
        generator._solver = type("Adaptive", (upstream.solver.Euler,), {})()
        with pytest.warns(UserWarning, match="got Adaptive"):
            found = run(generator)
        assert attached(generator._solver) is None or handle.traces["ss"].calls["cond"] == 25
    assert same(found, run(generator)) and not any(map(worn, (*former, *others, generator._solver, generator)))


@pytest.mark.parametrize("interval", [1, 3])
def test_a_dynamics_that_goes_past_the_network(toy, upstream, interval):
    class Guidance(upstream.ClassifierFreeGuidance):
        def inner_forward(self, x, t, is_cond, strength, *args, **kwargs):
            return self.backbone.forward(x, t, *args, **kwargs)

    generator = toy(guidance=Guidance)
    with (
        adapter.enabled(generator, basis=TWO, interval=interval),
        pytest.warns(UserWarning, match="the dynamics does not call the network of the generator"),
    ):
        found = run(generator)
    assert same(found, run(generator))


def test_what_the_network_asks_for_while_it_runs_is_no_branch(toy):
    generator = toy()
    expected, nested = run(generator), []

    def probe(module, args):
        if not nested:
            nested.append(None)
            nested[0] = module({"v": torch.zeros(1, 2)}, torch.zeros(1))
            nested.clear()

    generator.reverse_fn.backbone.register_forward_pre_hook(probe)
    with adapter.enabled(generator, interval=1) as handle:
        assert same(run(generator), expected)
    assert notes(handle) == [] and handle.traces["ss"].calls == {"cond": 25, "uncond": 19}


# --- which step it is -------------------------------------------------------------------------------------------------
def solver(upstream, kind):
    """A solver of a known name that does not do what the name says."""
    inside = upstream.solver.Euler

    def rejecting(self, dynamics, x, t, dt, *args, **kwargs):
        if 0.1 < float(t) < 0.15:  # tried at half the step first
            inside.step(self, dynamics, x, t, dt / 2, *args, **kwargs)
        return inside.step(self, dynamics, x, t, dt, *args, **kwargs)

    def with_more_steps(self, dynamics, x, times, *args, **kwargs):
        yield from inside.solve_iter(self, dynamics, x, [*times, times[-1] + 0.1], *args, **kwargs)

    def with_fewer_steps(self, dynamics, x, times, *args, **kwargs):
        yield from inside.solve_iter(self, dynamics, x, times[::2], *args, **kwargs)

    def backwards(self, dynamics, x, times, *args, **kwargs):
        yield from inside.solve_iter(self, dynamics, x, times[::-1], *args, **kwargs)

    methods = {
        "rejecting": {"step": rejecting}, "more steps": {"solve_iter": with_more_steps},
        "fewer steps": {"solve_iter": with_fewer_steps}, "backwards": {"solve_iter": backwards},
    }  # fmt: skip
    return type("Euler", (inside,), methods[kind])()


STEPS = {
    "rejecting": "off: it is step {i} as they are counted, but step {before} by its time",
    "more steps": "off: the solver takes step 25 of a grid of 25",
    "fewer steps": "off: it is step 1 as they are counted, but step 2 by its time",
    "backwards": "off: it is step 0 as they are counted, but step 24 by its time",
}


@BRANCHES
@pytest.mark.parametrize("kind", STEPS)
def test_a_solver_that_takes_other_steps_than_its_grid(toy, upstream, kind, branches):
    generator = toy()
    generator._solver = solver(upstream, kind)
    expected = run(generator)
    for interval in (1, 3):
        generator.reverse_fn.backbone.seen.clear()
        with (
            adapter.enabled(generator, basis=TWO, interval=interval, branches=branches) as handle,
            pytest.warns(UserWarning, match="forecache is off"),
        ):
            found = run(generator)
        off = [note for note in handle.traces["ss"].notes if note.startswith("off")]
        step = len([t for t in generator._prepare_t_and_d()[0][1:] if t <= 0.1])
        assert len(off) == 1 and off[0].startswith(STEPS[kind].format(i=step + 2, before=step + 1)), off
        assert same(found, expected) if interval == 1 else relative(found["shape"], expected["shape"]) < 0.05
        assert handle.traces["ss"].computed == len(generator.reverse_fn.backbone.seen)


def test_a_time_that_is_no_number(toy, upstream):
    class Euler(upstream.solver.Euler):
        def step(self, dynamics, x, t, dt, *args, **kwargs):
            return super().step(dynamics, x, torch.stack([t, t]), dt, *args, **kwargs)

    class Both(Toy):
        def forward(self, x, t, *args, **kwargs):
            return super().forward(x, t.reshape(-1)[:1], *args, **kwargs)

    generator = toy(Both(), upstream.FlowMatching, interval=None)
    generator._solver = Euler()
    for branches in ("apart", "combined"):
        with (
            adapter.enabled(generator, interval=3, branches=branches) as handle,
            pytest.warns(UserWarning, match="step 0 has no time that could be compared"),
        ):
            found = run(generator)
        assert same(found, run(generator)) and handle.traces["ss"].calls == {"cond": 25}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2)])
def test_times_of_any_dtype(toy, upstream, dtype, method, each):
    """In bfloat16 half of a step may be rounded away; it is still known which step it is."""
    shapes = {"shape": (1, 6, 2)}
    generator = toy(cls=upstream.FlowMatching, inference_steps=80, rescale_t=1.0, solver_method=method)
    inside = type(generator)._prepare_t
    generator._prepare_t = lambda *args: inside(generator, *args).to(dtype)
    expected = run(generator, shapes=shapes)
    with adapter.enabled(generator, interval=1):
        assert same(run(generator, shapes=shapes), expected)
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        found = run(generator, shapes=shapes)
    assert notes(handle) == [] and relative(found["shape"], expected["shape"]) < 0.05
    assert handle.traces["ss"].calls["cond"] == each * 28


@torch.no_grad()
def test_a_solver_is_broken_off_and_used_again(toy):
    generator = toy()
    expected = watched(generator)
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        alone = watched(generator)
        with pytest.raises(ZeroDivisionError):
            watched(generator, lambda i, x: 1 // (7 - i))
        assert handle.traces["ss"].calls["cond"] == 4 and ode_run.here.run is None
        assert same(watched(generator), alone) and not same(alone, expected)


# --- on one object, and on no copy ------------------------------------------------------------------------------------
def saved(x):
    stream = io.BytesIO()
    torch.save(x, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "save": saved,
}
PARTS = {
    "generator": lambda g: g, "solver": lambda g: g._solver, "network": lambda g: g.reverse_fn.backbone,
    "pipeline": lambda g: sam3d.Pipeline({"ss_generator": g}),
}  # fmt: skip


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("part", PARTS)
def test_copies_are_plain(toy, way, part):
    generator = toy()
    expected, kind = run(generator), type(PARTS[part](generator))
    whole = PARTS[part](generator)
    adapter.enable(whole if part == "pipeline" else generator, basis=TWO, interval=3)
    cached = run(generator)
    twin = COPIES[way](whole)
    assert type(twin) is kind and attached(twin) is None
    if part == "solver":
        plain = toy()
        plain._solver = twin
    elif part == "network":
        plain = toy(twin)
    else:
        plain = twin.models["ss_generator"] if part == "pipeline" else twin
    shared = part == "pipeline" and way == "copy"  # the same generators
    assert same(run(plain), cached if shared else expected)
    if part == "generator":
        adapter.disable(twin)
    if part == "pipeline":
        if shared:
            with pytest.warns(UserWarning, match="the ss generator keeps its cache, which another pipeline has put on"):
                adapter.disable(twin)
        else:
            adapter.disable(twin)
    assert same(run(generator), cached), "the original keeps its cache"
    adapter.disable(whole if part == "pipeline" else generator)
    assert same(run(generator), expected) and type(generator) is type(toy())
    if part in ("generator", "pipeline"):
        with adapter.enabled(twin, basis=TWO, interval=3):
            assert same(run(plain), cached)
        assert same(run(plain), expected)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_pipelines_that_share_a_network_and_a_solver(toy, order):
    network = Toy()
    pair = [toy(network), toy(network)]
    pair[1]._solver = pair[0]._solver
    expected = run(pair[0])
    settings = [{"interval": 3}, {"interval": 2}]
    alone = []
    for each, given in zip(pair, settings, strict=True):
        with adapter.enabled(each, basis=TWO, **given):
            alone.append(run(each))
    assert worn(network) is None and not same(*alone)
    handles = [adapter.enable(each, basis=TWO, **given) for each, given in zip(pair, settings, strict=True)]
    assert same(run(pair[0]), alone[0]) and same(run(pair[1]), alone[1])
    assert [handle.traces["ss"].calls["cond"] for handle in handles] == [10, 14]
    assert type(copy.deepcopy(network)) is Toy
    first, second = order
    adapter.disable(pair[first])
    assert same(run(pair[first]), expected) and same(run(pair[second]), alone[second])
    adapter.disable(pair[second])
    assert all(same(run(each), expected) for each in pair)
    assert type(network) is Toy and worn(pair[0]._solver) is None


def test_one_that_is_dropped_leaves_a_shared_network_to_the_other(toy):
    network = Toy()
    one, two = toy(network), toy(network)
    for each in (one, two):
        adapter.enable(each, basis=TWO, interval=3)
    cached = run(one)
    del two, each
    gc.collect()
    assert same(run(one), cached)
    adapter.disable(one)
    assert type(network) is Toy


def test_blocks_may_end_in_any_order(toy):
    generator = toy()
    outer, inner = (adapter.enabled(generator, basis=TWO, interval=n) for n in (3, 2))
    first = outer.__enter__()
    second = inner.__enter__()
    outer.__exit__(None, None, None)
    run(generator)
    assert generator.forecache.accelerator is second and not first.traces
    inner.__exit__(None, None, None)
    assert attached(generator) is None and type(generator) is type(toy())


def test_a_kept_handle_keeps_nothing(toy):
    generator = toy()
    handle = adapter.enable(sam3d.Pipeline({"ss_generator": generator}), basis=TWO, interval=3)
    run(generator)
    parts = [generator, generator.reverse_fn, generator.reverse_fn.backbone, generator._solver]
    parts = [weakref.ref(part) for part in parts]
    del generator
    gc.collect()
    assert not any(part() is not None for part in parts)
    assert handle.traces["ss"].calls == {"cond": 10, "uncond": 7} and handle.hooks["ss"].alive is None
    handle.hooks["ss"].detach()


@pytest.mark.parametrize("part", ["generator", "network"])
def test_another_cache_on_a_part_is_refused_by_name(toy, part):
    generator = toy()
    target = PARTS[part](generator)
    other = Worn(target, object(), {})
    other.attach()
    with pytest.raises(ValueError, match=f"{type(target).__name__} has another cache already; take that off first"):
        adapter.enable(generator)
    found = [worn(each) for each in (generator, generator._solver, generator.reverse_fn.backbone)]
    assert [each for each in found if each is not None] == [other], "nothing is left on"
    other.detach()
    adapter.disable(generator)


def test_a_failed_enable_leaves_what_was_on(toy):
    generator = toy()
    handle = adapter.enable(generator, interval=3)
    with pytest.raises(ValueError, match="interval must be >= 1"):
        adapter.enable(generator, interval=0)
    assert generator.forecache.accelerator is handle
    former, generator.reverse_fn.backbone = generator.reverse_fn.backbone, Toy()
    other = Worn(generator.reverse_fn.backbone, object(), {})
    other.attach()
    with pytest.raises(ValueError, match="Toy has another cache already"):
        adapter.enable(generator, interval=2)
    with pytest.warns(UserWarning, match="off: generator: Toy has another cache already"):
        run(generator)
    other.detach()
    generator.reverse_fn.backbone = former
    assert generator.forecache.accelerator is handle
    run(generator)
    assert handle.traces["ss"].calls == {"cond": 10, "uncond": 7}


def test_a_second_stage_that_cannot_wear_a_cache_leaves_the_first_without(toy):
    class Slotted:
        __slots__ = ("__weakref__",)

        def __call__(self, *args):
            raise NotImplementedError

    pipe = sam3d.Pipeline({"ss_generator": toy(), "slat_generator": toy()})
    last = pipe.models["slat_generator"].reverse_fn
    del last.backbone
    object.__setattr__(last, "backbone", Slotted())
    with pytest.raises(TypeError):
        adapter.enable(pipe)
    assert all(attached(each) is None for each in pipe.models.values())


def test_an_attribute_of_the_instance_stays_what_it_was(toy):
    """As accelerate's offloading and a user's own hook on the solver have it."""
    generator, seen = toy(), []
    network, solver = generator.reverse_fn.backbone, generator._solver
    inside = network.forward, solver.solve_iter
    network.forward = lambda *args, **kwargs: seen.append("forward") or inside[0](*args, **kwargs)
    solver.solve_iter = mine = lambda *args, **kwargs: seen.append("solve_iter") or inside[1](*args, **kwargs)
    with adapter.enabled(generator, basis=TWO, interval=3):
        run(generator)
    assert seen.count("solve_iter") == 1 and seen.count("forward") == 17
    assert vars(solver)["solve_iter"] is mine


# --- threads ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", ["generator", "network", "nothing"])
def test_threads_are_independent(toy, shared):
    """At every call of the guidance wrapper and of the network the other thread goes on."""
    gate, turn = threading.Condition(), [0]
    network = Toy()

    def hand_over(*unused):
        me = getattr(local, "me", None)
        if me is None or local.free:
            return
        with gate:
            turn[0] = 1 - me
            gate.notify_all()
            local.free = not gate.wait_for(lambda: turn[0] == me, timeout=0.5)

    local = threading.local()
    generators = [toy(network), toy(network if shared == "network" else Toy())]
    if shared == "generator":
        generators[1] = generators[0]
    noise = [torch.utils._pytree.tree_map(lambda v, k=k: v + k, {"shape": torch.zeros(1, 6, 2)}) for k in range(2)]

    @torch.no_grad()
    def sample(k):
        x = noise[k]
        times = generators[k]._prepare_t_and_d()[0]
        dynamics = generators[k]._generate_dynamics
        return list(generators[k]._solver.solve_iter(dynamics, x, times, 0, torch.zeros(1)))[-1][0]

    for each in dict.fromkeys(generators):
        adapter.enable(each, basis=TWO, interval=3)
    alone = [sample(0), sample(1)]
    for each in {module for g in generators for module in (g.reverse_fn, g.reverse_fn.backbone)}:
        each.register_forward_pre_hook(hand_over)
    found: dict[int, object] = {}

    def work(k):
        local.me, local.free = k, False
        found[k] = sample(k)
        with gate:
            turn[0] = 1 - k
            gate.notify_all()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert same(found[0], alone[0]) and same(found[1], alone[1]) and not same(alone[0], alone[1])


# --- compiled ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_a_network_that_is_compiled_by_itself_is_served_branch_by_branch(toy, way):
    generator, shapes = toy(inference_steps=12), {"shape": (1, 6, 2)}
    with adapter.enabled(generator, basis=TWO, interval=3):
        expected = run(generator, shapes=shapes)
    if way == "in place":
        generator.reverse_fn.backbone.compile(backend="eager")
    else:
        generator.reverse_fn.backbone = torch.compile(generator.reverse_fn.backbone, backend="eager")
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        found = run(generator, shapes=shapes)
    assert handle.traces["ss"].calls == {"cond": 6, "uncond": 4} and notes(handle) == []
    assert relative(found["shape"], expected["shape"]) < 1e-5


def test_a_plan_for_a_network_that_is_compiled_after_enable(toy):
    generator = toy()
    times = tuple(map(float, generator._prepare_t_and_d()[0]))
    plan = Plan(times, (0, 1, 5, 9, 19, 24), made_for=adapter.key(generator, "ss"))
    with adapter.enabled(generator, plan=plan) as handle:
        generator.reverse_fn.inner_forward = partial(type(generator.reverse_fn).inner_forward, generator.reverse_fn)
        with pytest.warns(
            UserWarning, match="plan: it needs the branches apart, but they are combined: the network is"
        ):
            found = run(generator)
    assert same(found, run(generator)) and attached(generator.reverse_fn.backbone) is None
    with pytest.raises(ValueError, match="plan: it needs the branches apart"):
        adapter.enable(generator, plan=plan)
    assert handle.traces["ss"].calls == {"cond": 25, "uncond": 19}


# --- runs that are none, and what cannot be served --------------------------------------------------------------------
GRIDS = {
    "no times": [], "one time": [0.0], "equal times": [0.5] * 12, "turning": [0.0, 0.5, 0.2, *[0.3] * 9, 1.0],
    "not finite": [0.0, float("nan"), *[1.0] * 10],
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("branches", "settings"),
    [(each, {"interval": n}) for each in ("apart", "combined") for n in (1, 3)]
    + [("apart", {"adaptive_guidance": True})],
)
@torch.no_grad()
def test_runs_without_a_step_that_moves(toy, name, branches, settings):
    def sample():
        torch.manual_seed(0)
        x, times = {"shape": torch.randn(1, 6, 2)}, torch.tensor(GRIDS[name])
        steps = generator._solver.solve_iter(generator._generate_dynamics, x, times, 0.0, torch.zeros(1))
        return [(x["shape"], float(t)) for x, t in steps]

    generator = toy()
    expected = sample()
    assert len(expected) == max(len(GRIDS[name]) - 1, 0)
    with adapter.enabled(generator, branches=branches, few_steps=True, **settings) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sample()
    assert str([t for _, t in found]) == str([t for _, t in expected])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for (a, _), (b, _) in zip(found, expected, strict=True))
    assert handle.traces["ss"].notes[0].startswith("off:") and handle.traces["ss"].branches == {}


@torch.no_grad()
def test_a_run_without_steps_and_a_cache_of_the_users_own(toy):
    generator, x = toy(), {"shape": torch.zeros(1, 6, 2)}
    with adapter.enabled(generator, stages={"ss": Forecaster("linear", steps=12)}) as handle:
        for times in ([], [0.0]):
            steps = generator._solver.solve_iter(generator._generate_dynamics, x, times, 0.0, torch.zeros(1))
            assert list(steps) == [] and handle.traces["ss"].notes == ["off: no step moves the state"]


@BRANCHES
def test_a_run_from_one_to_zero(toy, branches):
    generator = toy(reversed_timestamp=True)
    expected = run(generator)
    with adapter.enabled(generator, basis=TWO, interval=3, branches=branches) as handle:
        found = run(generator)
    assert 0 < relative(found["shape"], expected["shape"]) < 0.1 and handle.traces["ss"].calls["cond"] == 10
    assert not any(note.startswith("off") for note in notes(handle))


def test_settings_that_this_run_cannot_have(toy, upstream):
    """No fault of the call of ``enable``: an edge of guidance takes a call of its own, here the second of two."""
    late = toy(strength={"shape": 4.0, "scale": 1.0}, interval={"shape": (200, 400), "scale": (300, 600)})
    shapes = {"shape": (1, 4), "scale": (1, 1)}
    expected = run(late, shapes=shapes)
    with adapter.enabled(late, calls=2, branches="combined") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(late, shapes=shapes)
    assert all(x.isfinite().all() for x in found.values()) and handle.traces["ss"].calls["cond"] > 1
    assert any(note.startswith("off: ") for note in notes(handle)) == same(found, expected)


@BRANCHES
def test_velocities_that_cannot_be_forecast(toy, upstream, branches):
    """An integer leaf, one that is not finite, one without numbers, and at last none at all."""

    class Odd(Toy):
        def forward(self, x, t, *args, **kwargs):
            out = super().forward(x, t, *args, **kwargs)
            return {**out, **self.extra}

    solver = upstream.solver.Euler()
    inside = solver.step
    known = lambda v: {name: v[name] for name in SHAPES}  # noqa: E731
    solver.step = lambda dynamics, *args: inside(lambda *given: known(dynamics(*given)), *args)
    for extra in (torch.ones(2, dtype=torch.int64), torch.tensor([float("nan")]), torch.zeros(0, 3)):
        network = Odd()
        network.extra = {"extra": extra}
        generator = toy(network, interval=None)
        generator._solver = solver
        expected = run(generator)
        with adapter.enabled(generator, basis=TWO, interval=3, branches=branches) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert same(run(generator), expected)
        assert notes(handle) and handle.traces["ss"].calls == {"cond": 25}


def test_a_network_that_answers_with_no_tensors(toy):
    class Other(types.SimpleNamespace):
        pass

    class Wrapped(Toy):
        def forward(self, *args, **kwargs):
            return Other(v=super().forward(*args, **kwargs))

    generator = toy(Wrapped(), interval=None)
    generator.reverse_fn.register_forward_hook(lambda module, args, out: out.v)
    expected = run(generator)
    with (
        adapter.enabled(generator, basis=TWO, interval=3) as handle,
        pytest.warns(UserWarning, match="off: value must be a tensor or a structure of tensors, got Other"),
    ):
        assert same(run(generator), expected)
    assert handle.traces["ss"].calls == {"cond": 25}


def test_the_generators_own_errors_are_its_own(toy):
    """An error of the network is not taken for one of ours."""
    generator, error = toy(), ValueError("of the network")

    def fail(module, args):
        raise error

    for branches in ("apart", "combined"):
        with adapter.enabled(generator, basis=TWO, interval=3, branches=branches) as handle:
            hook = generator.reverse_fn.backbone.register_forward_pre_hook(fail)
            with pytest.raises(ValueError, match="of the network"):
                run(generator)
            hook.remove()
            assert not any(note.startswith("off") for note in notes(handle))


def test_a_cache_of_the_users_own_is_told_what_it_misses(toy, upstream):
    generator = toy()
    generator._solver = solver(upstream, "fewer steps")
    cache = Forecaster("linear", times=generator._prepare_t_and_d()[0].tolist(), interval=3)
    with (
        adapter.enabled(generator, stages={"ss": cache}),
        pytest.raises(ValueError, match="cannot follow this run: it is"),
    ):
        run(generator)


def test_three_branches_with_a_plan(toy, upstream):
    generator = toy(guidance=upstream.PointmapCFG, strength_pm=2.0)
    times = tuple(map(float, generator._prepare_t_and_d()[0]))
    plan = Plan(times, (0, 1, 5, 9, 19, 24), made_for=adapter.key(generator, "ss"))
    expected = run(generator)
    with adapter.enabled(generator, plan=plan) as handle, pytest.warns(UserWarning, match="asks for 'no_pointmap' too"):
        assert same(run(generator), expected)
    assert handle.traces["ss"].calls == {"cond": 25, "no_pointmap": 19, "uncond": 19}
