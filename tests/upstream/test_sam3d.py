"""SAM 3D Objects: the upstream's own generators, solvers and guidance around small woken networks and a toy one."""

from __future__ import annotations

import copy
import gc
import json
import random
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from forecache import Calibration, Forecaster, Group, schedule
from forecache.rules import Linear
from forecache_adapters import sam3d as adapter
from forecache_adapters.attach import attached
from forecache_adapters.families import ode_run
from forecache_lab.controls import WrongSign
from forecache_lab.generators.reference import sam3d
from forecache_lab.generators.reference.trellis import wake
from forecache_patches import find, load_lock
from forecache_patches.blobs import blob_id
from sam3d_toy import SHAPES, Toy, count, flat, made, run, same
from upstream_helpers import check_corrector, relative

CPU = torch.device("cpu")
TWO = Linear(1)


@pytest.fixture(scope="session")
def upstream(checkouts):
    return sam3d.load(checkouts("sam3d", patched=True, source="wheel"))


@pytest.fixture(scope="session")
def shared(upstream):
    torch.manual_seed(0)
    small = {"width": 32, "num_blocks": 1}
    structure, slat = sam3d.structure_network(upstream, side=4, **small), sam3d.slat_network(upstream, **small)
    return sam3d.Pipeline(
        {
            "ss_generator": sam3d.generator(upstream, wake(structure, 1, 0.2), sam3d.STRUCTURE),
            "slat_generator": sam3d.generator(upstream, wake(slat, 2, 0.2), sam3d.SLAT),
        }
    )


@pytest.fixture
def pipe(shared):
    yield shared
    adapter.disable(shared)


@pytest.fixture(scope="session")
def reference(shared):
    """Uncached structure samples, made once a seed."""
    made: dict[int, dict[str, torch.Tensor]] = {}

    def of(seed: int):
        return made.setdefault(seed, shared.sample_sparse_structure(seed))

    return of


@pytest.fixture(scope="session")
def coords():
    return sam3d.ball(40)


@pytest.fixture
def calls(pipe):
    """Network calls by stage, seen inside of the network."""
    seen: dict[str, int] = {}
    hooks = [
        generator.reverse_fn.backbone.blocks[0].register_forward_pre_hook(
            lambda *a, name=name: seen.update({name: seen.get(name, 0) + 1})
        )
        for name, generator in pipe.models.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


# --- a toy network of the same contract, where any velocity can be had ------------------------------------------------
@pytest.fixture
def toy(upstream):
    """``toy(**options)``: a generator of the upstream's around the toy network; ``run(generator, seed)`` samples."""
    return lambda *args, **options: made(upstream, *args, **options)


@contextmanager
def combined(generator, basis, computed):
    """Control: the forks' way, one history of the velocity after guidance, on step indices, straight over the edge."""
    inside, left = generator._generate_dynamics, {}

    def velocity(*args, **kwargs):
        i = left.setdefault("i", 0)
        if i == 0:
            left["cache"] = Forecaster(basis, steps=25, computed=computed)
        left["i"] = (i + 1) % 25
        return left["cache"].step(i, lambda: inside(*args, **kwargs))

    generator._generate_dynamics = velocity
    try:
        yield
    finally:
        del generator._generate_dynamics


# --- where the files come from ----------------------------------------------------------------------------------------
def test_the_wheel_brings_the_repositorys_files_and_the_licence_that_it_lacks(checkouts):
    lock = find(load_lock(), "sam3d")
    wheel = checkouts("sam3d", source="wheel")
    assert not lock.wheel.licence_files
    assert (wheel / "LICENSE").read_text(encoding="utf-8").startswith("SAM License\nLast Updated: November 19, 2025")
    git = checkouts("sam3d", source="git")
    assert (wheel / "LICENSE").read_bytes() == (git / "LICENSE").read_bytes()
    folder = "sam3d_objects/model/backbone"
    here = {p.relative_to(git): p for p in (git / folder).rglob("*.py") if "renderers" not in p.parts}
    assert len(here) > 40 and all(p.read_bytes() == (wheel / name).read_bytes() for name, p in here.items())
    assert {blob_id((git / path).read_bytes()) for path in lock.blobs} == {blob.id for blob in lock.blobs.values()}


# --- off --------------------------------------------------------------------------------------------------------------
def test_uncached_calls_the_full_schedule_and_off(pipe, calls, reference, coords):
    structure = reference(1)
    calls.clear()
    slat = pipe.sample_slat(1, coords)
    again = pipe.sample_sparse_structure(1)
    assert calls == {"ss_generator": 44, "slat_generator": 38} and same(again, structure)
    with adapter.enabled(pipe, basis="dmd", interval=1) as handle:
        calls.clear()
        assert same(pipe.sample_sparse_structure(1), structure) and torch.equal(pipe.sample_slat(1, coords), slat)
    assert calls == {"ss_generator": 44, "slat_generator": 38}
    assert handle.traces["ss"].calls == {"cond": 25, "uncond": 19}
    assert handle.traces["slat"].calls == {"cond": 25, "uncond": 13}
    with adapter.enabled(pipe, stages={"ss": None, "slat": {"interval": 3}}) as handle:
        assert same(pipe.sample_sparse_structure(1), structure)
        assert not torch.equal(pipe.sample_slat(1, coords), slat)  # control: the other stage is on
    assert handle.traces["ss"].notes == ["off: not asked for in this stage"] and handle.traces["ss"].computed == 44
    for generator in pipe.models.values():
        parts = (generator, generator._solver, generator.reverse_fn.backbone)
        assert not any("_forecache_worn" in vars(kind) for part in parts for kind in type(part).__mro__)
        assert not {"forecache", "solve_iter", "forward"} & {name for part in parts for name in vars(part)}
    assert same(pipe.sample_sparse_structure(1), structure)


# --- forecasting ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("interval", "ss", "slat"), [(2, (14, 10), (14, 7)), (3, (10, 7), (10, 5))])
def test_calls_after_forecasting(pipe, calls, coords, interval, ss, slat):
    with adapter.enabled(pipe, basis="linear", interval=interval) as handle:
        pipe.sample_sparse_structure(1)
        pipe.sample_slat(1, coords)
    assert calls == {"ss_generator": sum(ss), "slat_generator": sum(slat)}
    for stage, expected in (("ss", ss), ("slat", slat)):
        assert handle.traces[stage].calls == dict(zip(("cond", "uncond"), expected, strict=True))
        assert json.loads(json.dumps(handle.traces[stage].to_dict()))["saved"] == 0


def test_drift_of_shape_and_pose_across_the_guidance_edge(pipe, reference):
    """Interval 3 crosses the edge between steps 18 and 19; both controls have the same calls."""
    computed = schedule.fixed_interval(range(25), 3, 2)
    drift: dict[str, list[list[float]]] = {}
    generator = pipe.models["ss_generator"]
    for seed in (1, 2):
        found = {}
        for name, basis in {"ours": TWO, "wrong": WrongSign(TWO)}.items():
            with adapter.enabled(pipe, basis=basis, interval=3, warmup=2) as handle:
                found[name] = pipe.sample_sparse_structure(seed)
        with combined(generator, TWO, computed):
            found["combined"] = pipe.sample_sparse_structure(seed)
        for name, sample in found.items():
            pose = [torch.cat([s[leaf].flatten() for leaf in sam3d.POSE]) for s in (sample, reference(seed))]
            row = [relative(sample["shape"], reference(seed)["shape"]), relative(*pose)]
            drift.setdefault(name, []).append(row)
    assert handle.traces["ss"].computed == len(computed) + sum(i < 19 for i in computed) == 17
    ours, wrong, control = (np.median(drift[name], axis=0) for name in ("ours", "wrong", "combined"))
    assert (ours <= control / 3).all(), drift
    assert (wrong > control / 3).all(), drift


def test_the_pose_is_a_group_of_its_own(pipe, reference):
    with adapter.enabled(pipe, basis="linear", interval=3) as handle:
        grouped = pipe.sample_sparse_structure(1)
    assert set(handle.traces["ss"].branches["cond"].steps[-1].forward_error) == {"['shape']", "pose"}
    pose = {"pose": Group(tuple(sam3d.POSE), basis="reuse")}
    with adapter.enabled(pipe, basis="linear", interval=3, stages={"ss": {"groups": pose}}) as handle:
        reused = pipe.sample_sparse_structure(1)
    rules = {name: rule for s in handle.traces["ss"].branches["cond"].steps for name, rule in s.rules.items()}
    assert rules == {"['shape']": "linear1", "pose": "reuse"}
    assert handle.hooks["slat"].settings.groups == {}
    worse = [relative(sample["translation"], reference(1)["translation"]) for sample in (reused, grouped)]
    assert worse[0] > 2 * worse[1]  # control: the rule reaches the pose


def test_an_exact_budget(toy):
    generator = toy()
    with adapter.enabled(generator, basis="auto", calls=8) as handle:
        run(generator)
    assert handle.traces["ss"].calls["cond"] == 8 == count(generator.reverse_fn.backbone, "cond")


@pytest.mark.parametrize(
    ("solver", "settings", "possible"),
    [
        ("Euler", {}, True), ("Euler", {"branches": "combined"}, True), ("Euler", {"adaptive_guidance": True}, False),
        ("Midpoint", {}, False), ("Midpoint", {"branches": "combined"}, False), ("RungeKutta4", {}, False),
    ],
)  # fmt: skip
def test_the_corrector_is_on_for_eulers_method_alone(toy, upstream, solver, settings, possible):
    generator = toy()
    generator._solver = getattr(upstream.solver, solver)()
    enabled = partial(adapter.enabled, generator, **settings)
    check_corrector(
        enabled, lambda: run(generator), lambda handle: list(handle.traces["ss"].branches.values()), possible, calls=12
    )


def test_the_combined_hook_computes_at_the_edge_and_starts_again(toy):
    generator = toy()
    expected, drift = run(generator), {}
    with adapter.enabled(generator, basis=TWO, interval=3, branches="combined") as handle:
        drift["edge"] = relative(run(generator)["shape"], expected["shape"])
    trace = handle.traces["ss"]
    steps = [step.index for step in trace.branches["combined"].steps if step.kind == "computed"]
    assert steps == [0, 1, 4, 7, 10, 13, 16, 19, 22, 24] and trace.calls == {"cond": 10, "uncond": 7}
    assert trace.notes == ["combined: asked for; what is forecast is the velocity after guidance"]
    errors = {step.index: step.forward_error for step in trace.branches["combined"].steps if step.kind == "computed"}
    assert not errors[19] and errors[16]  # an empty history: nothing was forecast there
    with combined(generator, TWO, steps):
        drift["across"] = relative(run(generator)["shape"], expected["shape"])
    assert drift["edge"] < drift["across"] / 2, drift


# --- adaptive guidance ------------------------------------------------------------------------------------------------
def test_adaptive_guidance_saves_unconditional_calls(pipe, calls, reference):
    with adapter.enabled(pipe, interval=1, adaptive_guidance={"tolerance": 0.05}) as handle:
        sample = pipe.sample_sparse_structure(1)
    trace = handle.traces["ss"]
    assert trace.calls["cond"] == 25 and 0 < trace.saved == 19 - trace.calls["uncond"]
    assert calls["ss_generator"] == trace.computed == 44 - trace.saved == sum(trace.calls.values())
    assert 0 < relative(sample["shape"], reference(1)["shape"]) < 0.05


@pytest.mark.parametrize(("interval", "saved", "cond"), [(1, 12, 25), (2, 4, 14), (3, 3, 10)])
def test_never_at_the_first_or_the_last_guided_step(toy, interval, saved, cond):
    """A test that cannot fail: only warm-up, refresh and the last guided step call the branch."""
    generator = toy()
    with adapter.enabled(generator, basis=TWO, interval=interval, adaptive_guidance={"tolerance": 1e9}) as handle:
        run(generator)
    trace, network = handle.traces["ss"], generator.reverse_fn.backbone
    steps = [ode_step(t) for t, branch in network.seen if branch == "uncond"]
    guided = [i for i in schedule.fixed_interval(range(25), interval, 2) if i < 19]
    assert trace.saved == saved == len(guided) - len(steps) and trace.calls == {"cond": cond, "uncond": len(steps)}
    assert steps[:2] == [0, 1] and set(steps) <= set(guided) and (18 not in guided or steps[-1] == 18)


def ode_step(t: float) -> int:
    """The step of the shifted grid that is nearest to ``t``."""
    line = np.linspace(0, 1, 26)
    return int(np.abs(line / (3 - 2 * line) - t).argmin())


def test_a_test_that_always_fails_saves_nothing_and_costs_nothing(toy):
    generator = toy()
    expected = run(generator)
    with adapter.enabled(generator, basis=TWO, interval=1, adaptive_guidance={"tolerance": 1e-12}) as handle:
        assert same(run(generator), expected)
    assert handle.traces["ss"].saved == 0 and handle.traces["ss"].calls == {"cond": 25, "uncond": 19}
    with adapter.enabled(generator, basis=TWO, interval=3):
        apart = run(generator)
    with adapter.enabled(generator, basis=TWO, interval=3, adaptive_guidance={"tolerance": 1e-12}):
        joined = run(generator)  # a line through c and one through d: one through u
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(flat(apart), flat(joined), strict=True))


def test_the_difference_is_forecast_the_right_way(toy):
    generator, drift = toy(), {}
    expected = run(generator)
    for name, basis in {"line": TWO, "reuse": "reuse", "wrong": WrongSign(TWO)}.items():
        with adapter.enabled(generator, basis=basis, interval=1, adaptive_guidance={"tolerance": 1e9}):
            drift[name] = relative(run(generator)["shape"], expected["shape"])
    assert drift["line"] < drift["reuse"] < drift["wrong"], drift


def test_the_published_test_and_an_exact_budget(toy):
    generator = toy(strength=1.0)
    saved = {}
    for cosine in (0.2, 1.0):
        with adapter.enabled(generator, interval=1, adaptive_guidance={"cosine": cosine}) as handle:
            run(generator)
        saved[cosine] = handle.traces["ss"].saved
    assert saved[0.2] > 0 == saved[1.0]
    with adapter.enabled(generator, calls=9, adaptive_guidance=True) as handle:
        run(generator)
    assert handle.traces["ss"].calls["cond"] == 9


def test_adaptive_guidance_where_it_cannot_work_is_refused_by_name(toy, upstream):
    three = toy(guidance=upstream.PointmapCFG)
    with pytest.raises(ValueError, match="not 'no_pointmap'"):
        adapter.enable(three, adaptive_guidance=True)
    with pytest.raises(ValueError, match="adaptive_guidance: it needs the branches apart"):
        adapter.enable(three, adaptive_guidance=True, branches="combined")
    for bad in ({"tolerance": -1}, {"gamma": 0.9}, 3):
        with pytest.raises(ValueError, match=r"tolerance must be > 0|adaptive_guidance must be"):
            adapter.enable(three, adaptive_guidance=bad)


# --- one run and another ----------------------------------------------------------------------------------------------
def steps_of(generator, seed):
    """``generate_iter`` with noise of its own."""
    inside = generator.generate_iter(SHAPES, CPU, torch.zeros(1))
    torch.manual_seed(seed)
    yield next(inside)[1]
    for _, x, _ in inside:
        yield x


@torch.no_grad()
def test_interleaved_runs_do_not_touch(toy):
    generator = toy()
    uncached = run(generator, 1)
    with adapter.enabled(generator, basis="dmd", interval=3):
        alone = {seed: list(steps_of(generator, seed)) for seed in (1, 2)}
        together = list(zip(steps_of(generator, 1), steps_of(generator, 2), strict=True))
        late = steps_of(generator, 2)
        first = []
        for k, x in enumerate(steps_of(generator, 1)):
            first.append(x)
            if k % 4 == 1:
                next(late)
        assert len(list(late)) == 25 - 6
    assert all(same(a, b) for a, b in zip(alone[1], [x for x, _ in together], strict=True))
    assert all(same(a, b) for a, b in zip(alone[2], [x for _, x in together], strict=True))
    assert all(same(a, b) for a, b in zip(alone[1], first, strict=True))
    assert not same(alone[1][-1], uncached)  # control: there was something to mix up


def test_a_run_inside_another_runs_network_call(toy):
    outer, inner = toy(), toy()
    with adapter.enabled(outer, basis="dmd", interval=3), adapter.enabled(inner, basis="linear", interval=2):
        expected, nested = (run(outer, 1), run(inner, 2)), []

        def interrupt(*unused):
            if not nested:
                nested.append(None)
                nested[0] = run(inner, 2)

        outer.reverse_fn.backbone.register_forward_pre_hook(interrupt)
        assert same(run(outer, 1), expected[0]) and same(nested[0], expected[1])


@contextmanager
def alive(monkeypatch):
    """Weak references to the runs and the forecasters that begin meanwhile."""
    found: list[weakref.ref] = []
    for cls in (ode_run.OdeRun, Forecaster):
        original = cls.__init__

        def watched(self, *args, original=original, **kwargs):
            original(self, *args, **kwargs)
            found.append(weakref.ref(self))

        monkeypatch.setattr(cls, "__init__", watched)
    yield found


@torch.no_grad()
def test_memory_is_freed_however_a_run_ends(toy, monkeypatch):
    generator = toy()
    gc.collect()
    gc.disable()  # freed at once, not when the collector comes
    try:
        with adapter.enabled(generator, basis="dmd", interval=3), alive(monkeypatch) as runs:
            expected = run(generator, 1)
            assert len(runs) == 3 and not any(ref() for ref in runs)
            dropped = steps_of(generator, 1)
            for _ in range(7):
                next(dropped)
            assert len(runs) == 6 and all(ref() is not None for ref in runs[3:])  # control: it does hold something
            del dropped
            assert not any(ref() for ref in runs)

            def cancel(*unused):
                cancel.left -= 1
                if cancel.left == 0:
                    raise KeyboardInterrupt

            cancel.left = 9
            hook = generator.reverse_fn.backbone.register_forward_pre_hook(cancel)
            try:
                run(generator, 1)
            except KeyboardInterrupt as interruption:
                interruption.__traceback__ = None
            else:
                pytest.fail("not cancelled")
            hook.remove()
            assert len(runs) == 9 and not any(ref() for ref in runs) and ode_run.here.run is None
            assert same(run(generator, 1), expected), "a cancelled run leaves nothing behind"
    finally:
        gc.enable()


def test_a_copy_of_the_network_and_another_use_of_the_solver_are_left_alone(toy):
    generator, other = toy(), toy()
    other._solver = generator._solver
    uncached = run(other, 1)
    with adapter.enabled(generator, basis="dmd", interval=3):
        assert same(run(other, 1), uncached)
        twin = copy.deepcopy(generator.reverse_fn.backbone)
        before = len(generator.reverse_fn.backbone.seen)
        twin({"x": torch.zeros(1)}, torch.zeros(1))
        assert len(generator.reverse_fn.backbone.seen) == before and len(twin.seen) == before + 1
        solved = generator._solver.solve(lambda x, t: -x, torch.ones(1), torch.linspace(0, 1, 11))
        assert torch.allclose(solved, torch.tensor(0.9**10))


# --- structures -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["ShortCut", "FlowMatching"])
def test_nested_trees_of_scalars_and_mixed_dtypes(toy, upstream, kind):
    network = Toy({"half": torch.bfloat16, "rotation": torch.float64})
    generator = toy(network, getattr(upstream, kind))
    expected, dtypes = run(generator, 1), []  # no scalar of it is near 0
    inside = generator._generate_dynamics
    with adapter.enabled(generator, basis=TWO, interval=2, warmup=3) as handle:
        hook = generator.reverse_fn.register_forward_hook(lambda m, a, out: dtypes.append([v.dtype for v in flat(out)]))
        found = run(generator, 1)
        hook.remove()
    assert len(dtypes) == 25 and all(each == dtypes[0] for each in dtypes)  # forecasts too
    assert set(dtypes[0]) == {torch.float32, torch.bfloat16, torch.float64}
    assert list(found) == list(expected) and found["time"].shape == () and found["pose"]["scale"].shape == (1, 1, 1)
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert a.dtype == b.dtype and relative(a, b) < 0.05
    assert not same(found, expected) and inside == generator._generate_dynamics
    note = "step 1: a new history begins: another state, another x"  # which the solver's first step makes float64
    assert handle.traces["ss"].branches["cond"].notes == [note]


@pytest.mark.parametrize("branches", ["apart", "combined"])
@pytest.mark.parametrize("start", ["appear", "disappear"])
def test_a_leaf_that_comes_or_goes_begins_a_new_history(toy, start, branches):
    """Of the velocity alone, at the first of a step that computes; the solver does not know the leaf."""

    class Restless(Toy):
        def forward(self, x, t, *args, **kwargs):
            out = dict(super().forward(x, t, *args, **kwargs))
            early = float(torch.as_tensor(t)) < 100
            if early == (start == "disappear"):
                out["late"] = torch.ones(1, 2)
            return out

    generator = toy(Restless(), interval=None)
    inside = generator._solver.step
    known = lambda v: {name: leaf for name, leaf in v.items() if name != "late"}  # noqa: E731
    generator._solver.step = lambda dynamics, *args: inside(lambda *given: known(dynamics(*given)), *args)
    expected, shapes = run(generator), SHAPES
    with adapter.enabled(generator, basis=TWO, interval=2, branches=branches) as handle:
        found = run(generator)
    notes = [note for trace in handle.traces["ss"].branches.values() for note in trace.notes]
    assert len(notes) == 1 and "a new history begins" in notes[0] and "late" in notes[0]
    assert set(found) == set(shapes) and relative(found["shape"], expected["shape"]) < 0.05
    with adapter.enabled(generator, interval=1, branches=branches):
        assert same(run(generator), expected)


def test_batch_items_are_independent(toy):
    generator = toy()
    both = {"shape": (2, 6, 2), "scale": (2, 1, 1)}
    with adapter.enabled(generator, basis="dmd", interval=3):
        torch.manual_seed(3)
        noise = {name: torch.randn(shape) for name, shape in both.items()}
        generator._generate_noise = lambda *unused: noise
        together = run(generator, shapes=both)
        for k in range(2):
            generator._generate_noise = lambda *unused, k=k: {name: x[k : k + 1] for name, x in noise.items()}
            alone = run(generator, shapes=both)
            assert all(torch.allclose(together[n][k : k + 1], alone[n], atol=1e-5) for n in both)
    del generator._generate_noise


# --- solvers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "each"), [("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("branches", ["apart", "combined"])
def test_solvers_with_several_calls_a_step(toy, method, each, branches):
    generator, drift = toy(solver_method=method), {}
    network = generator.reverse_fn.backbone
    expected = run(generator)
    uncached = {name: count(network, name) for name in ("cond", "uncond")}
    assert uncached["cond"] == 25 * each
    with adapter.enabled(generator, interval=1, branches=branches) as handle:
        assert same(run(generator), expected)
    assert handle.traces["ss"].calls == uncached
    for name, basis in {"line": TWO, "wrong": WrongSign(TWO)}.items():
        network.seen.clear()
        with adapter.enabled(generator, basis=basis, interval=3, branches=branches) as handle:
            drift[name] = relative(run(generator)["shape"], expected["shape"])
        trace = handle.traces["ss"]
        assert trace.calls == {name: count(network, name) for name in ("cond", "uncond")}
    steps = {
        name: [step.index for step in each.steps if step.kind == "computed"]
        for name, each in trace.branches.items()
        if not name.startswith("uncond")
    }
    assert len(steps) == each and all(mine == next(iter(steps.values())) for mine in steps.values())
    assert trace.calls["cond"] == each * len(next(iter(steps.values())))
    assert drift["line"] < 0.05 and drift["line"] < drift["wrong"] / 2, drift
    one = [key for key in trace.branches if key.endswith("/k2")]  # its own times, half a step on
    line = np.linspace(0, 1, 26) / (3 - 2 * np.linspace(0, 1, 26))
    assert trace.branches[one[0]].steps[3].time == pytest.approx((line[3] + line[4]) / 2)


def test_other_solvers_and_other_caches_are_refused_by_name(toy, upstream):
    with pytest.raises(ValueError, match="solver must be one of Euler, Midpoint, RungeKutta4, got SDE"):
        adapter.enable(toy(solver_method="sde"))

    class Mine(upstream.solver.Euler):
        pass

    generator = toy()
    generator._solver = Mine()
    with pytest.raises(ValueError, match="got Mine"):
        adapter.enable(generator)
    for name in ("ShortCut_faster", "FlowMatching_taylorseer"):
        base = upstream.ShortCut if "ShortCut" in name else upstream.FlowMatching
        with pytest.raises(TypeError, match=rf"{name} has a cache of its own; use forecache_adapters\.fastsam3d"):
            adapter.enable(toy(cls=type(name, (base,), {})))
    unguided = toy()
    unguided.reverse_fn = Toy()
    with pytest.raises(TypeError, match=r"reverse_fn must be one of ClassifierFreeGuidance, PointmapCFG, got Toy"):
        adapter.enable(unguided)
    with pytest.raises(TypeError, match="is no generator, and its models hold none of ss_generator, slat_generator"):
        adapter.enable(object())


# --- the other modes of the upstream ----------------------------------------------------------------------------------
def test_the_distilled_mode_switches_the_cache_off(toy):
    """As ``use_stage1_distillation`` does it: the step size as an input, no guidance, 4 steps."""
    generator = toy(inference_steps=4)
    generator.no_shortcut, generator.reverse_fn.strength = False, 0
    expected = run(generator)
    with adapter.enabled(generator, basis="linear", interval=2) as handle:
        with pytest.warns(UserWarning, match="off: 4 steps"):
            assert same(run(generator), expected)
        assert handle.traces["ss"].calls == {"cond": 4} and "off: 4 steps" in handle.traces["ss"].notes[0]
    with adapter.enabled(generator, basis="linear", interval=2, few_steps=True):
        assert not same(run(generator), expected)


def test_a_compiled_network_is_forecast_from_outside(toy):
    """``compile_model=True`` puts a compiled function in the place of ``inner_forward``; before or after ``enable``."""

    def compiled(function):
        def call(*args, **kwargs):
            assert attached(generator.reverse_fn.backbone) is None, "Python of ours inside of the graph"
            return function(*args, **kwargs)

        return call

    for first in (True, False):
        generator = toy()
        expected = run(generator)
        if first:
            generator.reverse_fn.inner_forward = compiled(generator.reverse_fn.inner_forward)
        handle = adapter.enable(generator, basis="linear", interval=3)
        if not first:
            generator.reverse_fn.inner_forward = compiled(generator.reverse_fn.inner_forward)
        generator.reverse_fn.backbone.seen.clear()
        found = run(generator)
        trace = handle.traces["ss"]
        assert trace.notes == ["combined: the network is compiled; what is forecast is the velocity after guidance"]
        assert trace.calls == {"cond": 10, "uncond": 7} and len(generator.reverse_fn.backbone.seen) == 17
        assert not same(found, expected)
        adapter.disable(generator)
        assert same(run(generator), expected)


def test_three_branches(toy, upstream):
    generator = toy(guidance=upstream.PointmapCFG, strength_pm=2.0)
    expected, network = run(generator), generator.reverse_fn.backbone
    network.seen.clear()
    with adapter.enabled(generator, basis=TWO, interval=3) as handle:
        found = run(generator)
    trace = handle.traces["ss"]
    assert trace.calls == {"cond": 10, "no_pointmap": 7, "uncond": 7}
    assert trace.calls == {name: count(network, name) for name in trace.calls}
    assert relative(found["shape"], expected["shape"]) < 0.05
    with adapter.enabled(generator, basis=WrongSign(TWO), interval=3):
        assert relative(run(generator)["shape"], expected["shape"]) > 0.05  # control


def test_strengths_by_leaf_and_an_interval_that_begins_late(toy):
    names = {"shape": (1, 4), "scale": (1, 1)}
    generator = toy(strength={"shape": 4.0, "scale": 0.0}, interval={"shape": (200, 600), "scale": (0, 1000)})
    expected, network = run(generator, shapes=names), generator.reverse_fn.backbone
    for branches in ("apart", "combined"):
        network.seen.clear()
        with adapter.enabled(generator, basis=TWO, interval=3, branches=branches) as handle:
            found = run(generator, shapes=names)
        assert handle.traces["ss"].calls == {name: count(network, name) for name in ("cond", "uncond")}
        assert all(0 < relative(found[name], expected[name]) < 0.05 for name in names), branches


def test_training_mode_is_left_alone(toy):
    generator = toy()
    generator.train()
    generator.reverse_fn.p_unconditional = 0.5
    random.seed(0)
    expected = run(generator)
    with adapter.enabled(generator, interval=2) as handle:
        random.seed(0)
        assert same(run(generator), expected)
    assert "training mode" in handle.traces["ss"].notes[0]


# --- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"stages": {"texture": {"interval": 2}}}, "stages must be among ss, slat, got texture"),
        ({"stages": {"slat": 3}}, r"stages\['slat'\] must be a mapping of settings, a cache, or None, got 3"),
        ({"branches": "both"}, "branches must be one of apart, combined, got 'both'"),
        ({"basis": "fourier"}, "basis must be one of"),
        ({"intervall": 3}, "intervall"),
    ],
)
def test_bad_settings_are_refused_when_enabled(pipe, settings, error):
    with pytest.raises((ValueError, TypeError), match=error):
        adapter.enable(pipe, **settings)
    assert all(attached(each) is None for each in pipe.models.values())


def test_enable_is_symmetric(toy):
    generator = toy()
    outer = adapter.enable(generator, interval=3)
    with adapter.enabled(generator, interval=2) as inner:
        assert generator.forecache.accelerator is inner
        run(generator)
    assert generator.forecache.accelerator is outer and inner.traces["ss"].calls["cond"] == 14
    run(generator)
    assert outer.traces["ss"].calls["cond"] == 10
    wrapped = generator.reverse_fn.backbone.forward
    generator.reverse_fn.backbone.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)  # somebody else's hook
    adapter.disable(generator)
    adapter.disable(generator)
    generator.reverse_fn.backbone.seen.clear()
    run(generator)
    assert len(generator.reverse_fn.backbone.seen) == 44


def test_the_methods_of_the_patch_compose(toy):
    generator = toy()
    expected = run(generator)
    assert generator.enable_hicache(interval=3).hooks["ss"].settings.basis == "hermite"
    handle = generator.enable_adaptive_guidance(gamma_bar=0.1)
    run(generator)
    trace = handle.traces["ss"]
    assert trace.calls["cond"] == 10 and trace.saved > 0
    used = {rule for step in trace.branches["cond"].steps for rule in step.rules.values()}
    assert any("hermite" in rule for rule in used)
    settings = generator.enable_dmd(interval=4).hooks["ss"].settings
    assert (settings.basis, settings.interval, settings.adaptive_guidance) == ("dmd", 4, {"cosine": 0.1})
    generator.disable_cache()
    assert same(run(generator), expected)
    handle = generator.enable_adaptive_guidance()  # by itself: every step computed
    run(generator)
    assert handle.traces["ss"].calls["cond"] == 25
    generator.disable_cache()


# --- plans ------------------------------------------------------------------------------------------------------------
def test_a_plan_is_made_and_served_through_the_generator(toy, tmp_path):
    generator, shapes = toy(), {"shape": (1, 6, 2), "scale": (1, 1, 1)}

    def sample(seed, cache):
        with adapter.enabled(generator, stages={"ss": cache}):
            return run(generator, seed, shapes)["shape"]

    times = generator._prepare_t_and_d()[0].tolist()
    key = adapter.key(generator, "ss")
    made = Calibration(sample, times=times, seeds=range(10, 13), guidance_scale=8.0, probes=2, made_for=key).plan(8)
    made.save(tmp_path / "plan.json")
    drift: dict[str, list[float]] = {"plan": [], "even": []}
    for seed in range(3):
        expected = run(generator, seed, shapes)["shape"]
        with adapter.enabled(generator, plan=tmp_path / "plan.json") as handle:
            drift["plan"].append(relative(run(generator, seed, shapes)["shape"], expected))
        with adapter.enabled(generator, basis="linear", calls=8):
            drift["even"].append(relative(run(generator, seed, shapes)["shape"], expected))
    assert handle.traces["ss"].calls == {"cond": 8, "uncond": sum(i < 19 for i in made.computed)}
    assert np.median(drift["plan"]) < np.median(drift["even"]), drift
    generator.reverse_fn.strength = 3.0
    with adapter.enabled(generator, plan=made), pytest.raises(ValueError, match=r"guidance_scale: plan 8.0, run 4.0"):
        run(generator)
    generator.reverse_fn.strength = 7.0
    with pytest.raises(ValueError, match="plan: it needs the branches apart"):
        adapter.enable(generator, plan=made, branches="combined")
    with pytest.raises(ValueError, match="Midpoint makes 2"):
        adapter.enable(toy(solver_method="midpoint"), plan=made)
