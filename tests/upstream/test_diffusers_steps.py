"""Which step of which run a call of a diffusers transformer is: schedulers, rounded timesteps, several requests."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from diffusers_helpers import euler, loop, pipe_of  # noqa: E402
from forecache_adapters import diffusers as adapter  # noqa: E402
from forecache_adapters.diffusers import counted, grid  # noqa: E402
from forecache_adapters.diffusers.call import Call  # noqa: E402
from forecache_adapters.diffusers.steps import Scheduled  # noqa: E402
from forecache_adapters.diffusers.track import Track  # noqa: E402
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES  # noqa: E402
from upstream_helpers import relative  # noqa: E402

STEPS, CALLS = 16, 8
NOTHING = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # is left of the data at the first step
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def compatible():
    """Every scheduler that a pipeline here may have, with one that accepts it."""
    found = {}
    for name in ("dit", "pixart", "sana", "wan", "flux"):
        kind = getattr(diffusers, PIPELINES[name].scheduler)
        for each in {kind.__name__, *kind._compatibles}:
            found.setdefault(each, name)
    return sorted((each, name) for each, name in found.items() if hasattr(diffusers, each))


@pytest.fixture
def computed():
    """Counts the calls that reach the blocks of a pipeline's transformer."""
    hooks, seen = [], []

    def count(pipe):
        blocks = getattr(pipe.transformer, "blocks", None) or pipe.transformer.transformer_blocks
        hooks.append(blocks[0].register_forward_hook(lambda *_: seen.append(1)))
        return seen

    yield count
    for each in hooks:
        each.remove()


@pytest.mark.parametrize(("scheduler", "name"), compatible())
def test_every_scheduler(scheduler, name, computed):
    """Bit-identical with a full schedule; what calls several times a step is left alone, and says so."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)

    def run():
        torch.manual_seed(3)  # of a scheduler's own noise
        return tiny.run(pipe, steps=STEPS)

    try:
        reference = run()
    except Exception as error:
        pytest.skip(f"not with this pipeline, uncached: {error}")
    seen = computed(pipe)
    assert torch.equal(run(), reference)
    calls, _ = len(seen), seen.clear()
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(run(), reference) and len(seen) == calls
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle:
        seen.clear()
        latents = run()
    assert latents.shape == reference.shape and latents.isfinite().all()
    off = [note for note in handle.trace.notes if note.startswith("off: scheduler: ")]
    assert len(seen) == handle.trace.computed == (calls if off else tiny.per_step * CALLS)
    order, repeats = getattr(pipe.scheduler, "order", 1), scheduler == "PNDMScheduler"
    assert bool(off) == (order != 1 or repeats), off
    why = "repeats timesteps, its steps cannot be told apart" if repeats else f"calls the network {order} times a step"
    assert all(note.startswith(f"off: scheduler: {scheduler} {why}") for note in off), off


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("wan", lambda: diffusers.UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min")),
        ("sana", lambda: diffusers.SASolverScheduler(**FLOW)),
    ],
)
def test_a_corrector_uses_the_last_step(name, scheduler, computed, monkeypatch):
    """Its sigmas end with one twice; for Euler's method that step would move nothing."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    pipe.scheduler = scheduler()
    reference = tiny.run(pipe, steps=STEPS)
    assert pipe.scheduler.sigmas[-1] == pipe.scheduler.sigmas[-2]
    seen = computed(pipe)
    with adapter.enabled(pipe, interval=1):
        assert torch.equal(tiny.run(pipe, steps=STEPS), reference) and len(seen) == tiny.per_step * STEPS
    monkeypatch.setattr(grid, "ONE_STEP", (type(pipe.scheduler).__name__,))
    with adapter.enabled(pipe, interval=1):
        assert not torch.equal(tiny.run(pipe, steps=STEPS), reference), "the control: taken for Euler's"


def test_equal_sigmas_and_repeated_timesteps():
    repeated = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    repeated.set_timesteps(100)
    assert len(set(repeated.timesteps.tolist())) < 100, "rounded"
    assert grid.grid(repeated) == list(range(101)), "told apart by its own count"
    same = diffusers.FlowMatchEulerDiscreteScheduler()
    same.set_timesteps(sigmas=[0.9, 0.5, 0.5, 0.1])
    assert grid.grid(same)[1] == grid.grid(same)[2], "Euler: nothing moves"
    one = diffusers.DDIMScheduler()
    one.set_timesteps(1)
    assert len(grid.grid(one)) == 2


DDIM = {"clip_sample": False, "beta_end": 0.01}


@pytest.mark.parametrize(
    "made",
    [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        lambda: diffusers.DDIMScheduler(**DDIM),
        lambda: diffusers.DDIMScheduler(**DDIM, timestep_spacing="trailing"),
        lambda: diffusers.DDIMScheduler(**DDIM, steps_offset=1, set_alpha_to_one=False),
        lambda: diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction"),
        lambda: diffusers.DDIMScheduler(**DDIM, prediction_type="sample"),
        lambda: diffusers.DDIMScheduler(**DDIM, **NOTHING, prediction_type="v_prediction"),
        lambda: diffusers.CogVideoXDDIMScheduler(**NOTHING, prediction_type="v_prediction"),
    ],
)
def test_the_state_moves_by_the_differences_of_the_positions(made):
    """Measured at the schedulers' own ``step``: what a velocity that differs changes in the state."""
    scheduler = made()
    scheduler.set_timesteps(20)
    found = grid.corrector(scheduler, 0, 20)
    places, n, end = found.positions, 20, 0.0 if not scheduler.config.get("invert_sigmas") else 1.0
    assert len(places) == n + 1 and found.end == places[-1]
    scale = [1.0] * (n + 1)
    if "DDIM" in type(scheduler).__name__:
        kept = scheduler.alphas_cumprod[scheduler.timesteps].float()
        assert torch.allclose(torch.tensor(places[:-1]), ((1 - kept) / kept).sqrt(), rtol=1e-4)
        last = float(scheduler.final_alpha_cumprod)
        end, scale = ((1 - last) / last) ** 0.5, [*kept.sqrt().tolist(), last**0.5]
    assert places[-1] == pytest.approx(end, abs=1e-6)
    zero, one, x = torch.zeros(1, 4), torch.ones(1, 4), torch.full((1, 4), 0.3)
    for i, t in enumerate(scheduler.timesteps):
        a, b = found.rates[i] if found.rates else (0.0, 1.0)
        if not b:
            assert i == 0 and places[0] == math.inf
            continue
        ends = []
        for velocity in (zero, one):
            again = copy.deepcopy(scheduler)
            ends.append(again.step((velocity - a * x) / b, t, x, return_dict=False)[0])
        if i and "DDIM" in type(scheduler).__name__:  # with no velocity x / alpha stays where it is
            assert torch.allclose(ends[0] / scale[i + 1], x / scale[i], rtol=1e-3)
        scheduler.step(zero, t, zero)
        moved = float((ends[1] - ends[0]).mean()) / scale[i + 1]
        assert moved == pytest.approx(places[i + 1] - places[i], rel=1e-3, abs=1e-6), i


def test_positions_of_a_part_of_the_grid():
    """Of the first of two experts, and of a run that begins with a picture."""
    scheduler = euler(steps=10)
    whole, network = scheduler.sigmas.tolist(), Toy()
    until = float(scheduler.timesteps[5])
    steps = Scheduled(lambda: scheduler, lambda: until)
    for step, t in enumerate(scheduler.timesteps[:6]):
        track = steps.locate(Call({"hidden_states": torch.ones(1, 8), "timestep": t[None]}, None, torch.ones(1, 8)))
        assert track.i == step
        scheduler.step(torch.zeros(1, 8), t, torch.ones(1, 8))
    assert list(track.corrector.positions) == whole[:7] and track.corrector.end == whole[-1] == 0
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    handle = adapter.enable(network, scheduler=scheduler, few_steps=True)
    network(torch.ones(1, 8), scheduler.timesteps[4][None])
    track = handle.steps.track
    assert list(track.corrector.positions) == whole[4:] and track.corrector.end == 0
    adapter.disable(network)


def test_no_positions_where_the_state_is_made_another_way():
    """And none that are not numbers: a loop that begins behind them has its own part."""
    off = {
        "noise": diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        "Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
        "Cosmos Predict2": diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "clipped": diffusers.DDIMScheduler(),
        "thresholding": diffusers.DDIMScheduler(**DDIM, thresholding=True),
        "DPM": diffusers.DPMSolverMultistepScheduler(),
        "UniPC": diffusers.UniPCMultistepScheduler(**FLOW),
    }
    off["Cosmos Predict2"].register_to_config(sigma_max=80.0, sigma_min=0.002)  # as its pipeline does
    clean = diffusers.DDIMScheduler(**DDIM, prediction_type="sample")
    clean.alphas_cumprod[:300] = 1.0  # no noise is left, and what the sample says of it is lost
    off |= {"no noise": clean, "a form of its own": diffusers.DDIMScheduler(**DDIM, prediction_type="other")}
    for name, scheduler in off.items():
        scheduler.set_timesteps(10)
        assert grid.corrector(scheduler, 0, 10) is False, name
    for fresh in (diffusers.DDIMScheduler(**DDIM), diffusers.FlowMatchEulerDiscreteScheduler()):  # never asked
        assert grid.corrector(fresh, 0, 1000) is False
    nothing = diffusers.DDIMScheduler(**DDIM, **NOTHING)
    nothing.set_timesteps(10)
    assert nothing.alphas_cumprod[nothing.timesteps[0]] == 0 and grid.corrector(nothing, 0, 10).positions[0] == math.inf
    nothing.alphas_cumprod[nothing.timesteps[1]] = 0
    assert grid.corrector(nothing, 0, 10) is False and len(grid.corrector(nothing, 3, 10).positions) == 8


@pytest.mark.parametrize("given", [[0.5], [0.0], [0.5, 0.0]])
def test_a_run_that_is_hardly_one_passes_through(given):
    network, scheduler = PIPELINES["flux"].build().transformer, euler(sigmas=given)
    reference = loop(network, scheduler)
    with adapter.enabled(network, scheduler=scheduler, interval=2, few_steps=True) as handle:
        scheduler.set_timesteps(sigmas=given)
        assert torch.equal(loop(network, scheduler), reference)
    assert handle.trace.notes or handle.trace.computed == 2


def test_a_loop_over_a_part_of_the_timesteps():
    """Without ``set_begin_index`` the scheduler does not know where it begins until it has made its first step."""
    network = PIPELINES["flux"].build().transformer

    def run():
        scheduler.set_timesteps(24)

        class Part:
            timesteps, step = scheduler.timesteps[8:], staticmethod(scheduler.step)

        return loop(network, Part)

    scheduler = euler()
    reference = run()
    with adapter.enabled(network, scheduler=scheduler, basis="linear", interval=2) as handle:
        assert relative(run(), reference) < 0.02
    steps = handle.trace.branches["cond"].steps
    assert [step.time for step in steps] == pytest.approx(scheduler.sigmas[9:-1].tolist())
    assert steps[-1].kind == "computed"
    assert handle.trace.notes == ["a new run begins at step 9, which is not behind step 0"]


@pytest.mark.parametrize("how", ["more calls than steps", "one step"])
def test_what_keeps_it_off_is_said(how):
    tiny, pipe = PIPELINES["flux2"], pipe_of("flux2")
    steps, note = (1, "1 steps") if how == "one step" else (12, "calls=13 is more than the 12 steps of this run, so")
    reference = tiny.run(pipe, steps=steps)
    with adapter.enabled(pipe, calls=13) as handle, pytest.warns(UserWarning, match=note):
        assert torch.equal(tiny.run(pipe, steps=steps), reference)
    assert note in handle.trace.notes[0] and handle.trace.computed == steps


class Toy(torch.nn.Module):
    """Notes the steps at which it is called."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen, self.step = [], 0

    def forward(self, hidden_states, timestep):
        self.seen.append(self.step)
        return 0.2 * torch.tanh(hidden_states) + timestep.float().reshape(-1, 1) * self.weight


def sigmas(shift, steps=STEPS):
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def request(network, seed, steps=STEPS, shift=1.0, dtype=torch.float32, times=1):
    """One request, step by step; the last value is what comes out. ``times`` calls a step, as with guidance."""
    x, grid = 3 * torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)), sigmas(shift, steps)
    for i in range(steps):
        yield None
        network.step = i
        for _ in range(times):
            v = network(x, grid[i : i + 1].to(dtype))
        x = x + (grid[i + 1] - grid[i]) * v
    yield x


def alone(network, seed, **options):
    *_, value = request(network, seed, **options)
    return value


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("shift", "dtype"), [(7.0, torch.float32), (7.0, torch.bfloat16), (12.0, torch.bfloat16)])
def test_rounded_timesteps_are_counted(shift, dtype, times, monkeypatch):
    """At 50 steps bfloat16 makes one of two; the last step that moves the state is computed all the same."""
    network, calls = Toy(), 12
    options = {"steps": 50, "shift": shift, "dtype": dtype, "times": times}
    rounded = sigmas(shift, 50)[:-1].to(dtype)
    assert (len(set(rounded.tolist())) < 50) == (dtype == torch.bfloat16)
    handle = adapter.enable(network, steps=50, basis="linear", calls=calls)
    alone(network, 0, **options)
    assert len(network.seen) == times * calls and network.seen[-1] == 49
    assert handle.trace.calls == {"call": calls, **({"call[1]": calls} if times == 2 else {})}
    monkeypatch.setattr(counted, "ROUNDED", 0)
    network.seen.clear()
    alone(network, 1, **options)
    assert (network.seen[-1] == 49) == (dtype == torch.float32), "the control: by timesteps alone"
    adapter.disable(network)


def in_turn(network, behind):
    """Request 1 begins ``behind`` steps after request 0; then both go on, and change places at every step."""
    requests, values, i = [request(network, 0), request(network, 1)], [None, None], 0
    for _ in range(behind):
        next(requests[0])
    while any(value is None for value in values):
        for k in (0, 1) if i % 2 else (1, 0):
            if values[k] is None:
                values[k] = next(requests[k])
        i += 1
    return values


@pytest.mark.parametrize("behind", [0, 1, 5])
def test_requests_that_take_turns_get_what_they_get_alone(behind, monkeypatch):
    network = Toy()
    reference = [alone(network, 0), alone(network, 1)]
    with adapter.enabled(network, steps=STEPS, basis="linear", calls=CALLS):
        served = [alone(network, 0), alone(network, 1)]
        assert all(0 < relative(a, b) < 0.1 for a, b in zip(served, reference, strict=True))
        for found, wanted in zip(in_turn(network, behind), served, strict=True):
            assert torch.equal(found, wanted)
    monkeypatch.setattr(counted.Request, "away", lambda *_: None)
    with adapter.enabled(network, steps=STEPS, basis="linear", calls=CALLS):
        assert not torch.equal(in_turn(network, behind)[0], served[0]), "the control: by timesteps alone"


def test_eight_requests_at_once():
    network = Toy()
    with adapter.enabled(network, steps=STEPS, basis="linear", calls=CALLS) as handle:
        served = [alone(network, seed) for seed in range(8)]
        requests = [request(network, seed) for seed in range(8)]
        for _ in range(STEPS):
            for each in requests:
                next(each)
        assert all(torch.equal(next(each), wanted) for each, wanted in zip(requests, served, strict=True))
        assert len(handle.steps.requests) == 8


def test_requests_in_threads_get_what_they_get_alone():
    network, values = Toy(), {}
    barrier = threading.Barrier(2)

    def work(seed):
        steps = request(network, seed)
        for _ in range(STEPS + 1):
            barrier.wait(30)
            values[seed] = next(steps)

    with adapter.enabled(network, steps=STEPS, basis="linear", calls=CALLS):
        served = [alone(network, 0), alone(network, 1)]
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert all(torch.equal(values[seed], served[seed]) for seed in (0, 1))


def test_a_run_that_was_broken_off_and_begun_again():
    network = Toy()
    with adapter.enabled(network, steps=STEPS, basis="linear", calls=CALLS) as handle:
        served = alone(network, 0)
        for stop in (1, 2, 7):
            for _, _ in zip(range(stop + 1), request(network, 0), strict=False):
                pass
            assert torch.equal(alone(network, 3), alone(network, 3))
            assert torch.equal(alone(network, 0), served)
        assert len(handle.steps.requests) <= 2, "what was broken off is let go"


def test_too_many_requests_and_a_run_that_does_not_move():
    """Nothing is refused and nothing is kept: the cache is off, and says why."""
    network = Toy()
    with adapter.enabled(network, steps=STEPS, interval=2) as handle, pytest.warns(UserWarning, match="off: "):
        for seed in range(20):
            network(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)), torch.ones(1))
        assert len(network.seen) == 20 and len(handle.steps.requests) == counted.LIVE
        assert "more than 8 requests share the transformer" in handle.trace.notes[0]
    with (
        adapter.enabled(network, steps=STEPS, interval=2) as handle,
        pytest.warns(UserWarning, match="9 calls of 'call' at the first step, and no step advances"),
    ):
        x = torch.ones(1, 8)
        for _ in range(20):
            network(x, torch.ones(1))
        assert len(network.seen) == 40 and handle.steps.requests[0].run.server is None


def test_a_pipeline_that_steps_a_copy_of_its_scheduler(monkeypatch):
    """The index of the one that it has does not advance: off with a note, and never a wrong step."""
    tiny, pipe = PIPELINES["flux2"], PIPELINES["flux2"].build()
    step = type(pipe.scheduler).step
    copies = {}

    def of_a_copy(self, *args, **kwargs):
        twin = copies.setdefault(id(self.timesteps), copy.deepcopy(self))
        return step(twin, *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", of_a_copy)
    reference = tiny.run(pipe, steps=STEPS)
    copies.clear()
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle, pytest.warns(UserWarning, match="off: "):
        assert torch.equal(tiny.run(pipe, steps=STEPS), reference)
    assert "while the loop stands at step 0: its steps are counted elsewhere" in handle.trace.notes[0]
    copies.clear()
    monkeypatch.setattr(Track, "_compare", lambda *_: None)
    with adapter.enabled(pipe, basis="linear", calls=CALLS) as handle, pytest.warns(UserWarning):
        tiny.run(pipe, steps=STEPS)
    assert "counted elsewhere" not in handle.trace.notes[0], "the control: one signal"


def test_timesteps_go_one_way():
    track = Track(range(9), range(9))
    for i, t in enumerate([900.0, 800.0, 850.0]):
        assert track.why is None
        track.enter(i, Call({"timestep": t}))
    assert track.why == "the transformer's timestep turns back at step 2, from 800 to 850"


@pytest.mark.parametrize("steps", [10, 7])
def test_another_loop_beside_the_one_whose_scheduler_is_known(steps):
    """It is not counted by that scheduler: the cache goes off, in step or not, and both get what they get uncached."""
    network, scheduler = PIPELINES["flux"].build().transformer, euler()
    reference, wanted = loop(network, euler()), loop(network, euler(steps=steps))
    nested, values = [euler(steps=steps)], []

    class Both:
        timesteps = scheduler.timesteps

        @staticmethod
        def step(*args, **kwargs):
            if nested:
                values.append(loop(network, nested.pop()))
            return scheduler.step(*args, **kwargs)

    with adapter.enabled(network, scheduler=scheduler, interval=2) as handle, pytest.warns(UserWarning, match="off"):
        latents = loop(network, Both)
    assert torch.equal(latents, reference) and torch.equal(values[0], wanted), handle.trace.notes


@pytest.mark.parametrize(
    ("how", "note"),
    [("in turn", "two latents at step 1, and"), ("threads", "the transformer is called from two threads, and")],
)
def test_two_requests_where_the_scheduler_counts_one(how, note):
    """At the same timesteps, and in another order at every step: off, and each gets what it gets uncached."""
    network, scheduler, values = Toy(), euler(steps=STEPS), [torch.ones(1, 8), -torch.ones(1, 8)]

    def step(t, k, x):
        v = network(x, t[None])
        values[k] = scheduler.step(v, t, x, return_dict=False)[0] if k == 0 else x - v / STEPS

    def run():
        scheduler.set_timesteps(STEPS)
        values[:] = [torch.ones(1, 8), -torch.ones(1, 8)]
        for i, t in enumerate(scheduler.timesteps):
            given = list(values)
            if i % 2 and how == "threads":
                thread = threading.Thread(target=step, args=(t, 1, given[1]))
                thread.start()
                thread.join()
            elif i % 2:
                step(t, 1, given[1])
            step(t, 0, given[0])
        return list(values)

    reference = run()
    with adapter.enabled(network, scheduler=scheduler, basis="reuse", interval=4) as handle:
        with pytest.warns(UserWarning, match=f"off: {note} the scheduler counts the steps of one"):
            found = run()
        assert all(torch.equal(*pair) for pair in zip(found, reference, strict=True)), handle.trace.notes


def test_timesteps_of_a_scheduler_that_does_not_count_may_be_rounded():
    """DDIM's, in bfloat16: those of its grid are found by where they stand and by what comes next."""
    scheduler, network = diffusers.DDIMScheduler(), Toy()
    scheduler.set_timesteps(STEPS)
    assert any(float(t.bfloat16()) != float(t) for t in scheduler.timesteps)
    handle = adapter.enable(network, scheduler=scheduler, basis="linear", calls=CALLS)
    for network.step, t in enumerate(scheduler.timesteps):
        network(torch.ones(1, 8), t[None].bfloat16())
    assert handle.trace.calls == {"call": CALLS} and network.seen[-1] == STEPS - 1
    scheduler.set_timesteps(STEPS)
    with pytest.warns(UserWarning, match="is not the next of DDIMScheduler"):
        for t in scheduler.timesteps[[0, 1, 2, 9, 3]]:
            network(torch.ones(1, 8), t[None])
    adapter.disable(network)
