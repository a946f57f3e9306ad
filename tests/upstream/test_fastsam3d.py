"""Fast-SAM3D's accelerated generators: the upstream's code where its repository is reachable, and always a stand-in.

Both are given to the same tests, so the stand-in's contract is the upstream's.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import sys
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastsam3d_standin as standin
from forecache import Forecaster, Plan
from forecache.rules import Linear
from forecache_adapters import fastsam3d as adapter
from forecache_adapters.attach import attached
from forecache_adapters.families import ode_run
from forecache_adapters.fastsam3d import cached
from forecache_lab.controls import WrongSign
from forecache_lab.generators.reference import fastsam3d, sam3d
from upstream_helpers import check_corrector, check_objects_of_pictures, grey

FULL = [0, 1, 4, 7, 10, 13, 16, 19, 22, 24]  # what ShortCut_faster computes of 25 steps
PINNED = [0, 1, 2, 6, 11, 18]  # where the tests of the latent stage compute, whatever the velocity
COORDS = 48  # of the upstream's networks here
PACKAGES = ("sam3d_objects", "cache_utils_", "step_utils_", "f3c_slat_end", "fft")


@contextlib.contextmanager
def own_modules() -> Iterator[None]:
    """A process holds one ``sam3d_objects``; another test's comes back afterwards."""
    kept, path = dict(sys.modules), list(sys.path)
    for name in [name for name in sys.modules if name.startswith(PACKAGES)]:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(PACKAGES)]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in kept.items() if name.startswith(PACKAGES)})
        sys.path[:] = path


def real(checkout: Path) -> SimpleNamespace:
    """The upstream's generators, plain and accelerated, around the same woken networks."""
    classes = fastsam3d.load(checkout)
    coords = sam3d.ball(COORDS)
    fast = fastsam3d.accelerated(classes, sam3d.build_small(classes))
    fast.models["slat_generator"].coords_scores = fastsam3d.scores(classes, coords)
    plain = sam3d.build_small(classes)
    return SimpleNamespace(plain=plain, fast=fast, coords=coords, upstream=classes, seeds=(1,))


def both(case, pipe, seed=1):
    """The samples of both stages, leaf by leaf."""
    return [*pipe.sample_sparse_structure(seed).values(), pipe.sample_slat(seed, case.coords)]


@pytest.fixture(scope="module", params=["stand-in", "upstream"])
def shared(request, checkouts):
    if request.param == "stand-in":
        yield standin.build()
        return
    checkout, original = checkouts("fastsam3d", patched=True), checkouts("fastsam3d")
    with own_modules():
        before = real(original)
        samples = both(before, before.fast)
        with pytest.raises(RuntimeError, match="ShortCut_faster is not patched; run `forecache patch apply fastsam3d"):
            adapter.enable(before.fast)
        with pytest.raises(RuntimeError, match="Euler_end_slat is not patched"):
            adapter.enable(before.fast.models["slat_generator"])
    with own_modules():
        case = real(checkout)
        case.original = samples
        yield case


stand_in = pytest.mark.parametrize("shared", ["stand-in"], indirect=True)  # what is ours alone: fast
upstream = pytest.mark.parametrize("shared", ["upstream"], indirect=True)


@pytest.fixture
def case(shared):
    """Generators as nobody left them; ``counts``: network calls by stage."""
    kept = {name: dict(getattr(shared.fast.models[name], params)) for name, params in PARAMS.items()}
    shared.counts = counts(shared.fast)
    yield shared
    adapter.disable(shared.fast)
    adapter.disable(shared.plain)
    for name, generator in shared.fast.models.items():
        generator.inference_steps, generator.reverse_fn.interval = 25, (0, 500)
        setattr(generator, PARAMS[name], kept[name])
        del vars(generator.reverse_fn.backbone)["forward"]


PARAMS = {"ss_generator": "ss_params", "slat_generator": "slat_params"}


def counts(pipe) -> dict[str, list[int]]:
    """Tokens of each network call, by stage: ``forward`` itself is wrapped, so that a forecast does not count."""
    seen: dict[str, list[int]] = {}
    for stage, generator in pipe.models.items():
        backbone, calls = generator.reverse_fn.backbone, seen.setdefault(stage, [])

        def counted(x, *args, inside=backbone.forward, calls=calls, **kwargs):
            calls.append(1 if isinstance(x, dict) else x.shape[1])
            return inside(x, *args, **kwargs)

        backbone.forward = counted
    return seen


@contextlib.contextmanager
def pinned(case, steps=PINNED):
    """The latent stage computes at ``steps``: whatever its velocity, both rules run on one schedule."""
    solver = case.fast.models["slat_generator"]._solver
    names = type(solver).step.__globals__
    name = "changes" if "changes" in names else "cal_type"

    def rule(memory, current, x):
        full = current["step"] in steps
        current["type"] = "full" if full else "Taylor"
        if full:
            current["activated_steps"].append(current["step"])
        return full

    kept, names[name] = names[name], rule
    try:
        yield
    finally:
        names[name] = kept


def uncached(case, stage, seed=1):
    """The plain generator's sample, made once."""
    known = vars(case).setdefault("known", {})
    if (stage, seed) not in known:
        if stage == "ss":
            known[stage, seed] = case.plain.sample_sparse_structure(seed)
        else:
            known[stage, seed] = case.plain.sample_slat(seed, case.coords)
    return known[stage, seed]


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


def drifts(tree, reference) -> dict[str, float]:
    return {name: relative(tree[name], reference[name]) for name in reference}


def carving(case, ratio, **others):
    case.fast.models["slat_generator"].slat_params.update(slat_carving_ratio=ratio, **others)


# --- off ------------------------------------------------------------------------------------------------------------
def test_off_is_bit_identical(case):
    before = both(case, case.fast)
    if hasattr(case, "original"):  # the same networks in the classes of an unpatched checkout
        assert all(map(torch.equal, before, case.original))
    attributes = {name: set(vars(generator._solver)) for name, generator in case.fast.models.items()}
    with adapter.enabled(case.fast, basis="dmd"):
        inside = both(case, case.fast)
    assert not any(map(torch.equal, before, inside))
    assert all(map(torch.equal, before, both(case, case.fast)))
    for name, generator in case.fast.models.items():
        assert set(vars(generator._solver)) == attributes[name] and attached(generator) is None


def test_a_schedule_that_computes_everything_is_the_plain_sampler(case):
    case.fast.models["ss_generator"].ss_params["ss_cache_stride"] = 1
    carving(case, 0.0, slat_thresh=0.0)
    with adapter.enabled(case.fast, basis="dmd") as handle:
        found = both(case, case.fast)
    assert all(map(torch.equal, found, [*uncached(case, "ss").values(), uncached(case, "slat")]))
    assert handle.traces["ss"].calls == {"cond": 25, "uncond": 19}
    assert handle.traces["slat"].calls == {"cond": 25, "uncond": 13}
    assert [len(calls) for calls in case.counts.values()] == [44, 38]


# --- the same schedule, another rule ----------------------------------------------------------------------------------
def test_structure_calls_are_those_of_its_own_schedule(case):
    case.fast.sample_sparse_structure(1)
    assert len(case.counts["ss_generator"]) == 17
    with adapter.enabled(case.fast, basis="hermite") as handle:
        case.fast.sample_sparse_structure(1)
    trace = handle.traces["ss"]
    assert len(case.counts["ss_generator"]) == 34 and trace.calls == {"cond": 10, "uncond": 7}
    assert trace.full == FULL and trace.notes == []
    cond = trace.branches["cond"]
    assert [step.index for step in cond.steps if step.kind == "computed"] == FULL
    served = [step for step in cond.steps if step.kind == "forecast"]
    leaves = len(case.fast.sample_sparse_structure(1))
    assert all(len(step.rules) == leaves for step in served)  # a history each
    assert {rule for step in served[2:] for rule in step.rules.values()} == {"hermite2"}
    assert json.loads(json.dumps(trace.to_dict()))["full"] == FULL


def test_structure_drift_against_its_own_rule_at_the_same_schedule(case):
    """Its own rule draws the velocity after guidance across the edge of the interval; ours has the branches apart."""
    found: dict[str, list[float]] = {}
    for seed in case.seeds:
        reference = uncached(case, "ss", seed)
        own = drifts(case.fast.sample_sparse_structure(seed), reference)
        found.setdefault("own", []).append(own["shape"])
        for name, basis in {"linear": Linear(1), "dmd": "dmd", "auto": "auto", "wrong": WrongSign(Linear(1))}.items():
            with adapter.enabled(case.fast, basis=basis) as handle:
                ours = drifts(case.fast.sample_sparse_structure(seed), reference)
            assert handle.traces["ss"].full == FULL
            found.setdefault(name, []).append(ours["shape"])
            if name != "wrong":
                assert max(ours.values()) < max(own.values()), (name, ours, own)
    middle = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    bound = middle["own"] / 5
    assert max(middle[name] for name in ("linear", "dmd", "auto")) <= bound < middle["wrong"], middle


def test_latent_calls_are_those_of_its_own_schedule(case):
    with pinned(case):
        case.fast.sample_slat(1, case.coords)
        own = list(case.counts["slat_generator"])
        case.counts["slat_generator"].clear()
        with adapter.enabled(case.fast, basis="dmd") as handle:
            case.fast.sample_slat(1, case.coords)
    trace = handle.traces["slat"]
    assert len(own) == 11 and trace.calls == {"cond": 6, "uncond": 5} and trace.full == PINNED
    # carving: as many tokens as ever, at the same steps, in both branches
    assert case.counts["slat_generator"] == own
    assert trace.carved == dict.fromkeys([2, 6, 11, 18], len(case.coords) // 10)
    n = len(case.coords)
    assert own == [n] * 4 + [n - n // 10] * 7


def test_no_corrector_where_it_decides_itself_what_is_computed(case):
    def traces(handle):
        return list(handle.traces["ss"].branches.values())

    enabled = partial(adapter.enabled, case.fast)
    check_corrector(enabled, lambda: case.fast.sample_sparse_structure(1), traces, possible=False)


def test_its_adaptive_schedule_goes_on_deciding(case):
    case.fast.sample_slat(1, case.coords)
    solver = case.fast.models["slat_generator"]._solver
    own = list(solver.current["activated_steps"])
    with adapter.enabled(case.fast, basis="auto") as handle:
        case.fast.sample_slat(1, case.coords)
    full = handle.traces["slat"].full
    assert full == solver.current["activated_steps"] and full[:3] == own[:3] == [0, 1, 2]
    assert 3 < len(full) <= len(own)


@pytest.mark.parametrize("carved", [False, True])
def test_latent_drift_against_its_own_rule_at_the_same_schedule(case, carved):
    """Drift is what skipping adds: to the plain run, or to the run that carves and computes at every step."""
    found: dict[str, list[float]] = {}
    carving(case, 0.1 if carved else 0.0)
    for seed in case.seeds:
        with pinned(case, range(25)):
            reference = case.fast.sample_slat(seed, case.coords)
        if not carved:
            assert torch.equal(reference, uncached(case, "slat", seed))
        with pinned(case):
            found.setdefault("own", []).append(relative(case.fast.sample_slat(seed, case.coords), reference))
            for name, basis in {"linear": Linear(1), "auto": "auto", "wrong": WrongSign(Linear(1))}.items():
                with adapter.enabled(case.fast, basis=basis):
                    found.setdefault(name, []).append(relative(case.fast.sample_slat(seed, case.coords), reference))
    middle = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    bound = middle["own"] * (0.95 if carved else 0.6)
    assert max(middle["linear"], middle["auto"]) <= bound, middle
    assert carved or middle["wrong"] > 2 * middle["linear"], middle  # what is carved hides the sign


def test_prev_v_and_prev_x_stay_those_of_the_step_before(case, monkeypatch):
    """What schedule and carving read next is the velocity that was served, and the state that it was served at."""
    generator = case.fast.models["slat_generator"]
    solver, seen = generator._solver, []
    inside = type(solver).step

    def step(self, dynamics, x, *args, **kwargs):
        after, v = inside(self, dynamics, x, *args, **kwargs)
        memory = self.memory if hasattr(self, "memory") else self.cache_dic["cache"]
        names = ("x", "v") if "x" in memory else ("prev_x", "prev_v")
        seen.append(torch.equal(memory[names[0]], x) and torch.equal(memory[names[1]], v))
        return after, v

    monkeypatch.setattr(type(solver), "step", step)
    with adapter.enabled(case.fast, basis="linear"):
        case.fast.sample_slat(1, case.coords)
    assert len(seen) == 25 and all(seen)


@stand_in
def test_histories_begin_anew_where_carving_begins(case, monkeypatch):
    """The control draws a line through a run that sees all tokens and one that does not."""
    drift = {}
    for name in ("ours", "control"):
        if name == "control":
            monkeypatch.setattr(Forecaster, "match", lambda self, kind: None)
        total = 0.0
        for seed in case.seeds:
            with pinned(case, range(25)):
                reference = case.fast.sample_slat(seed, case.coords)
            with pinned(case, [0, 1, 2, 9, 17]), adapter.enabled(case.fast, basis=Linear(1)):
                total += relative(case.fast.sample_slat(seed, case.coords), reference)
        drift[name] = total
    assert drift["ours"] < drift["control"], drift


def test_guidance_that_begins_at_a_cached_or_carved_step(case):
    for generator in case.fast.models.values():
        generator.reverse_fn.interval = (200, 600)
    with pinned(case), adapter.enabled(case.fast, basis="linear") as handle:
        assert all(bool(x.isfinite().all()) for x in both(case, case.fast))
    for trace in handle.traces.values():  # one call for the branch's first value where the schedule has none
        begins = trace.branches["uncond"].steps[0]
        extra = begins.index not in trace.full
        assert begins.kind == "computed" and trace.calls["cond"] == len(trace.full)
        assert trace.calls["uncond"] == extra + sum(step.index in trace.full for step in trace.branches["uncond"].steps)


# --- ends of a run ----------------------------------------------------------------------------------------------------
def test_twelve_steps_end_with_a_forecast_and_the_trace_says_so(case):
    case.fast.models["ss_generator"].inference_steps = 12
    with adapter.enabled(case.fast, basis="linear") as handle:
        case.fast.sample_sparse_structure(1)
    trace = handle.traces["ss"]
    assert trace.full == [0, 1, 4, 7, 10]
    assert trace.notes == [
        "the last step, 11, was forecast: the schedule of ShortCut_faster computes up to step 10 of this grid"
    ]


def test_few_steps_leave_the_generator_to_its_own_rule(case):
    case.fast.models["ss_generator"].inference_steps = 4
    before = case.fast.sample_sparse_structure(1)
    with adapter.enabled(case.fast, basis="linear") as handle, pytest.warns(UserWarning, match="off: 4 steps"):
        inside = case.fast.sample_sparse_structure(1)
    assert all(torch.equal(inside[name], before[name]) for name in before)
    assert "off: 4 steps" in handle.traces["ss"].notes[0]
    with adapter.enabled(case.fast, basis="reuse", few_steps=True) as handle:
        case.fast.sample_sparse_structure(1)
    assert handle.traces["ss"].full == [0, 1]


def test_a_stage_may_be_off(case):
    before = both(case, case.fast)
    with adapter.enabled(case.fast, basis="dmd", stages={"slat": None}) as handle:
        inside = both(case, case.fast)
    assert torch.equal(inside[-1], before[-1]) and not torch.equal(inside[0], before[0])
    assert handle.traces["slat"].notes == ["off: not asked for in this stage"]


@stand_in
def test_nothing_is_left_behind_by_a_run_that_ends_early(case, monkeypatch):
    made: list[weakref.ref] = []
    inside = ode_run.OdeRun.__init__

    def watched(self, *args):
        inside(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(ode_run.OdeRun, "__init__", watched)
    with adapter.enabled(case.fast, basis="dmd"):
        reference = both(case, case.fast)
        for stage, generator in case.fast.models.items():
            backbone = generator.reverse_fn.backbone
            left = len(case.counts[stage]) + 5

            def cancel(*unused, calls=case.counts[stage], left=left):
                if len(calls) >= left:
                    raise KeyboardInterrupt

            hook = backbone.register_forward_pre_hook(cancel)
            with pytest.raises(KeyboardInterrupt):
                both(case, case.fast)
            hook.remove()
        assert all(map(torch.equal, reference, both(case, case.fast)))
        gc.collect()
        assert len(made) >= 6 and all(run() is None for run in made)


@stand_in
def test_a_run_inside_anothers_step(case):
    """The stages keep apart; two runs of one generator cannot, because of its own cache, and that is said."""
    with adapter.enabled(case.fast, basis="linear"):
        alone = both(case, case.fast)
        nested: list[torch.Tensor] = []

        def other(*unused):
            if not nested:
                nested.append(torch.zeros(()))
                state = torch.get_rng_state()
                nested[0] = case.fast.sample_slat(1, case.coords)
                torch.set_rng_state(state)

        hook = case.fast.models["ss_generator"].reverse_fn.backbone.register_forward_hook(other)
        inside = case.fast.sample_sparse_structure(1)
        hook.remove()
        assert torch.equal(nested[0], alone[-1]) and all(map(torch.equal, inside.values(), alone))
        again: list[None] = []

        def same(*unused):
            if not again:
                again.append(None)
                case.fast.sample_sparse_structure(2)

        hook = case.fast.models["ss_generator"].reverse_fn.backbone.register_forward_hook(same)
        expected = uncached(case, "ss", 1)
        with pytest.warns(UserWarning, match="another generation on it has begun before this one ended"):
            found = case.fast.sample_sparse_structure(1)
        assert drifts(found, expected)["shape"] < drifts(dict(zip(found, alone, strict=False)), expected)["shape"]
        hook.remove()


# --- a cache must not harm --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_a_condition_that_changes_within_a_run_begins_a_new_history(case, stage):
    """At a cached step, which is computed then; the next one of its kind has a history again."""
    wrapper = case.fast.models[f"{stage}_generator"].reverse_fn

    def sample():
        asked: list[None] = []

        def change(module, args):
            asked.append(None)
            return (*args[:2], args[2] + 1.0, *args[3:]) if len(asked) > 9 else args

        hook = wrapper.register_forward_pre_hook(change)
        with pinned(case, [0, 1, 2, 6, 11, 18, 21]):
            both(case, case.fast)
        hook.remove()

    with adapter.enabled(case.fast, basis="linear") as handle:
        sample()
    trace = handle.traces[stage]
    for branch in trace.branches.values():
        assert any("step 9: a new history begins: another argument 3" in note for note in branch.notes), branch.notes
        kinds = {step.index: step.kind for step in branch.steps}
        assert 9 not in trace.full and kinds[9] == "computed" and kinds[12] == "forecast"
    assert not any(note.startswith("off") for note in trace.notes)


def test_more_calls_than_the_order_names_leave_every_step_computed(case):
    """Its own rule has missed the steps that were served; what is computed is never wrong."""
    for stage, generator in case.fast.models.items():
        wrapper = generator.reverse_fn
        inside = type(wrapper).forward
        wrapper.forward = lambda *a, w=wrapper, inside=inside, **k: [inside(w, *a, **k) for _ in range(2)][1]
        more = "the network is called more than 2 times a step: cond, uncond"
        with (
            pinned(case),
            adapter.enabled(case.fast, basis="linear") as handle,
            pytest.warns(UserWarning, match=more),
        ):
            found = case.fast.sample_sparse_structure(1) if "ss" in stage else case.fast.sample_slat(1, case.coords)
        del wrapper.forward
        if "ss" in stage:
            assert all(torch.equal(found[name], leaf) for name, leaf in uncached(case, "ss").items())
        assert sum(handle.traces[stage.split("_")[0]].calls.values()) > 60


def test_a_generation_that_is_dropped_half_way(case):
    generators = case.fast.models.values()
    with adapter.enabled(case.fast, basis="linear") as handle:
        alone = both(case, case.fast)
        for generator in generators:
            inside = type(generator).generate_iter
            dropped = lambda *a, g=generator, inside=inside: [  # noqa: E731
                found for found, _ in zip(inside(g, *a), range(7), strict=False)
            ]
            generator.generate_iter = dropped
        both(case, case.fast)
        for generator in generators:
            del generator.generate_iter
        assert all(map(torch.equal, alone, both(case, case.fast)))
    assert not any(note.startswith("off") for trace in handle.traces.values() for note in trace.notes)


@stand_in
@torch.no_grad()
def test_a_generation_that_begins_with_another_ones_state(case):
    """``generate_iter`` by itself does not make the state of the generator's own cache anew."""
    generator, noise = case.fast.models["ss_generator"], {"shape": torch.zeros(1, 24, 4)}

    def twice():
        generator(noise, torch.zeros(2))
        return [x["shape"] for x, *_ in generator.generate_iter(noise, torch.zeros(2))][-1]

    expected = twice()
    with (
        adapter.enabled(case.fast, basis="linear") as handle,
        pytest.warns(UserWarning, match="in the place of step 0"),
    ):
        assert torch.equal(twice(), expected)
    assert handle.traces["ss"].full == []


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy], ids=["deepcopy", "copy"])
def test_copies_of_what_is_attached_are_plain(case, way):
    before = both(case, case.fast)
    handle = adapter.enable(case.fast, basis="linear")
    cached_samples = both(case, case.fast)
    twins = {name: way(generator) for name, generator in case.fast.models.items()}
    for name, twin in twins.items():
        assert not any("_forecache_worn" in vars(kind) for kind in type(twin).__mro__)
        assert "ss" not in name or twin.forecache is None
        adapter.disable(twin)
    found = copy.copy(case.fast)
    found.models = twins
    assert all(map(torch.equal, before, both(case, found)))
    assert all(map(torch.equal, cached_samples, both(case, case.fast))), "the original keeps its cache"
    assert handle.hooks["ss"].alive is case.fast.models["ss_generator"]
    adapter.disable(case.fast)
    for generator in case.fast.models.values():
        assert not any("_forecache_worn" in vars(kind) for kind in type(generator._solver).__mro__)


@stand_in
def test_generators_that_share_a_solver(case):
    """The latent stage's solver is what the patched loop runs in; two generators of one solver, one after the other."""
    one = case.fast.models["slat_generator"]
    two = copy.deepcopy(one)
    two._solver = one._solver
    other = copy.copy(case.fast)
    other.models = {"slat_generator": two}
    handles = [adapter.enable(pipe, basis=basis) for pipe, basis in ((case.fast, "linear"), (other, "reuse"))]
    for order in ((0, 1), (1, 0)):
        found, rules = {}, {}
        for k in order:
            found[k] = (case.fast, other)[k].sample_slat(1, case.coords)
            rules[k] = {r for s in handles[k].traces["slat"].branches["cond"].steps for r in s.rules.values()}
        assert rules[1] == {"reuse"} and "linear1" in rules[0] and not torch.equal(found[0], found[1])
    adapter.disable(case.fast)
    assert one._solver.forecache is not None
    adapter.disable(other)
    assert one._solver.forecache is None


@stand_in
def test_a_solver_that_is_exchanged_leaves_the_generator_to_its_own_rule(case):
    generator = case.fast.models["ss_generator"]
    kept = generator._solver
    with adapter.enabled(case.fast, basis="linear"):
        generator._solver = standin.Midpoint()
        with pytest.warns(UserWarning, match="off: solver must be Euler with ShortCut_faster, got Midpoint"):
            found = case.fast.sample_sparse_structure(1)
    assert all(map(torch.equal, found.values(), case.fast.sample_sparse_structure(1).values()))
    generator._solver = kept


@stand_in
@torch.no_grad()
def test_a_run_without_steps(case):
    with adapter.enabled(case.fast, basis="linear") as handle:
        for stage, generator in case.fast.models.items():
            x = {"shape": torch.zeros(1, 24, 4)} if "ss" in stage else torch.zeros(1, 8, 8)
            for times in (torch.zeros(0), torch.zeros(1)):
                generator._solver.thresh, generator._solver.carving_ratio = 0.3, 0.1
                assert list(generator._solver.solve_iter(generator._generate_dynamics, x, times, torch.zeros(2))) == []
                assert handle.traces[stage.split("_")[0]].notes == ["off: no step moves the state"]
            generator._solver.solve_iter = lambda *args: iter(())
    with adapter.enabled(case.fast, basis="linear"):
        for generator in case.fast.models.values():
            assert list(generator._solver.solve_iter(generator._generate_dynamics, x, torch.linspace(0, 1, 26))) == []
    for generator in case.fast.models.values():
        del generator._solver.solve_iter


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 3}, r"interval=3: ShortCut_faster computes where its own schedule says.* the class ShortCut"),
        ({"calls": 9}, "calls=9: ShortCut_faster"),
        ({"warmup": 4}, "warmup=4: ShortCut_faster"),
        ({"end": 20}, "end=20: ShortCut_faster"),
        ({"stages": {"ss": None, "slat": {"interval": 2}}}, "interval=2: FlowMatching_faster"),
        ({"basis": "taylorseer"}, "basis must be one of auto, reuse, linear, taylor, hermite, dmd, chebyshev"),
        ({"branches": "combined"}, "branches must be 'apart' with ShortCut_faster, got 'combined'"),
        ({"adaptive_guidance": True}, "adaptive_guidance: not with ShortCut_faster, use the class ShortCut"),
        ({"stages": {"mesh": {}}}, "stages must be among ss, slat, got mesh"),
    ],
)
def test_refused(case, settings, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a budget on the grid that settings are tried on
        with pytest.raises(ValueError, match=message):
            adapter.enable(case.fast, **settings)
    assert all(attached(generator) is None for generator in case.fast.models.values())


def plan(case, stage, computed):
    generator = case.plain.models[f"{stage}_generator"]
    if hasattr(generator, "times"):
        times = generator.times()
    else:
        times = generator._prepare_t_and_d()[0] if stage == "ss" else generator._prepare_t()
    return Plan(tuple(map(float, times)), tuple(computed), made_for=adapter.key(case.fast, stage))


def test_a_plan_serves_where_it_computes_the_same_steps(case):
    with adapter.enabled(case.fast, plan=plan(case, "ss", FULL), basis="linear") as handle:
        served = case.fast.sample_sparse_structure(1)
    assert handle.traces["ss"].calls == {"cond": 10, "uncond": 7} and handle.traces["ss"].full == FULL
    reference = uncached(case, "ss")
    own = case.fast.sample_sparse_structure(1)
    assert relative(served["shape"], reference["shape"]) < relative(own["shape"], reference["shape"]) / 3
    with adapter.enabled(case.fast, plan=plan(case, "ss", [0, 1, 5, 9, 24])):
        message = r"plan: it computes the steps \[0, 1, 5, 9, 24\], the schedule of ShortCut_faster \[0, 1, 4, 7, 10,"
        with pytest.raises(ValueError, match=message):
            case.fast.sample_sparse_structure(1)
    with pytest.raises(ValueError, match="plan: FlowMatching_faster decides during the run which steps compute"):
        adapter.enable(case.fast, plan=plan(case, "slat", PINNED))


def test_another_solver_is_refused(case):
    generator = case.fast.models["ss_generator"]
    kept = generator._solver
    kind = case.upstream.solver.Midpoint if hasattr(case, "upstream") else standin.Midpoint
    generator._solver = kind()
    try:
        with pytest.raises(ValueError, match="solver must be Euler with ShortCut_faster, got Midpoint"):
            adapter.enable(case.fast)
    finally:
        generator._solver = kept


# --- the plain classes ------------------------------------------------------------------------------------------------
def test_plain_generators_take_a_schedule_of_ours(case):
    reference = uncached(case, "ss")
    with adapter.enabled(case.plain, basis="linear", interval=3, warmup=2) as handle:
        found = case.plain.sample_sparse_structure(1)
    assert handle.traces["ss"].computed == 17
    own = relative(case.fast.sample_sparse_structure(1)["shape"], reference["shape"])
    assert relative(found["shape"], reference["shape"]) <= own / 5
    assert cached.loop_of(case.plain.models["ss_generator"]) is None
    assert all(map(torch.equal, reference.values(), case.plain.sample_sparse_structure(1).values()))


# --- methods of HiCache++, on the upstream alone ----------------------------------------------------------------------
@upstream
def test_methods_on_the_generators(case):
    plain, fast = case.plain.models["ss_generator"], case.fast.models["ss_generator"]
    for method, basis, calls in (("enable_hicache", "hermite2", 14), ("enable_dmd", "dmd", 16)):
        handle = getattr(plain, method)()  # interval 4, two first steps; interval 5, four first steps
        case.plain.sample_sparse_structure(1)
        assert handle.traces["ss"].computed == calls
        handle = getattr(fast, method)()
        case.fast.sample_sparse_structure(1)
        assert handle.traces["ss"].full == FULL
        used = {rule for step in handle.traces["ss"].branches["cond"].steps for rule in step.rules.values()}
        assert basis in used
        with pytest.raises(ValueError, match="interval=3: ShortCut_faster computes where its own schedule says"):
            getattr(fast, method)(interval=3)
    plain.enable_adaptive_guidance(tolerance=0.5)
    case.plain.sample_sparse_structure(1)
    assert plain.forecache.accelerator.traces["ss"].saved > 0
    with pytest.raises(ValueError, match="adaptive_guidance: not with ShortCut_faster"):
        fast.enable_adaptive_guidance()
    plain.disable_cache()
    fast.disable_cache()
    assert attached(plain) is None and attached(fast) is None
    assert len(case.counts["ss_generator"]) == 34  # two runs of 17


def test_objects_of_pictures(checkouts):
    from forecache_lab.generators.fastsam3d import FastSam3D

    checkout = checkouts("fastsam3d", patched=True)
    with own_modules():
        subject = FastSam3D(checkout)
        check_objects_of_pictures(subject)
        settings = (None, {"own": True}, {"own": True, "basis": "dmd"})
        plain, own, ours = (subject.generate(grey(0), 0, each, 9) for each in settings)
        assert own.calls == ours.calls and own.calls["ss"] < plain.calls["ss"] and ours.trace and not own.trace
        assert 0 < relative(ours.latents["ss"], plain.latents["ss"]) < relative(own.latents["ss"], plain.latents["ss"])
