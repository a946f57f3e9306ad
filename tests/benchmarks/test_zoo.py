"""The zoo: its networks, grids and solvers against what is known of them, and its numbers by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra `frontier`")

from benchmarks.flows import forms, solvers
from benchmarks.flows.caches import HiCachePP, Weighted
from benchmarks.flows.grids import GRIDS, Grid, level, ratios
from benchmarks.flows.methods import Candidate, Method
from benchmarks.flows.problems import Problem, normal
from benchmarks.flows.sampling import Batch, distance
from benchmarks.zoo import __main__ as command
from benchmarks.zoo import generators, halves, methods, networks, report, results, steering
from benchmarks.zoo.measure import Bench, Row
from benchmarks.zoo.mixtures import Mixture
from benchmarks.zoo.results import Cell, Results
from forecache import Forecaster, schedule
from forecache.rules import Hermite, Reuse, Taylor
from forecache_lab.generators.reference import pictures, solids
from forecache_patches.errors import CheckoutError

SEEDS = range(4)
FORMS = ("velocity", "eps", "v", "data")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def problem(
    flow: Mixture, grid: str, form: str, steps: int = 12, interval=None, strength: float | None = None
) -> Problem:
    def network(x, alpha, sigma, seeds, guided):
        if strength is None:
            data = flow.data(x, alpha, sigma)
        else:
            data = flow.guided(x, alpha, sigma, seeds, strength if guided else 1.0)
        return forms.output(form, data, x, alpha, sigma)

    def noise(seeds):
        return torch.stack([normal(seed, flow.dimensions) for seed in seeds])

    name = f"toy-{grid}-{steps}-{form}-unguided"
    return Problem(name, form, GRIDS[grid], steps, (6,), noise, network, interval)


def log_density(flow: Mixture, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Of the noisy data, from its definition."""
    c = alpha**2 * (flow.spread * flow.scale).square() + sigma**2
    off = (x[:, None] - alpha * flow.centres[None]).square() / c
    return torch.logsumexp(-off.sum(2) / 2 - c.log().sum() / 2, 1)


# --- closed-form networks ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("modes", [1, 5])
def test_the_denoiser_is_the_gradient_of_the_log_density(modes):
    """``alpha E[y | x] = x + sigma^2 grad log p(x)`` (Tweedie), by central differences."""
    flow, h = Mixture(modes, 7, power=0.5, spread=0.4), 1e-5
    x = torch.stack([normal(seed, 7) for seed in SEEDS])
    for alpha, sigma in ((1.0, 3.0), (0.6, 0.8), (0.3, 0.7)):
        slopes = [
            (log_density(flow, x + h * e, alpha, sigma) - log_density(flow, x - h * e, alpha, sigma)) / (2 * h)
            for e in torch.eye(7, dtype=torch.float64)
        ]
        wanted = (x + sigma**2 * torch.stack(slopes, 1)) / alpha
        assert torch.allclose(flow.data(x, alpha, sigma), wanted, atol=1e-7)


def test_guidance_pulls_away_from_the_other_classes():
    flow = Mixture(6, 5, spread=0.3, classes=3)
    x = torch.stack([normal(seed, 5) for seed in SEEDS])
    cond, uncond = flow.guided(x, 0.5, 0.5, SEEDS, 1.0), flow.data(x, 0.5, 0.5)
    own = Mixture(6, 5, spread=0.3).data(x[1:2], 0.5, 0.5, torch.tensor([1, 4]))
    assert torch.allclose(cond[1:2], own), "seed 1 is of class 1: modes 1 and 4"
    assert torch.allclose(flow.guided(x, 0.5, 0.5, SEEDS, 3.0), uncond + 3 * (cond - uncond))


def test_data_have_mean_square_one():
    flow = Mixture(4000, 50, power=1.0)
    assert float(flow.centres.square().mean()) == pytest.approx(1, rel=0.1)


# --- forms ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_an_output_stands_for_the_data_and_noise_that_it_was_made_of(form):
    data, noise = normal(0, 2, 6)[:, None]
    for alpha, sigma in ((1.0, 14.0), (0.6, 0.8), (0.25, 0.75)):
        x = alpha * data + sigma * noise
        found = forms.split(form, forms.output(form, data, x, alpha, sigma), x, alpha, sigma)
        assert torch.allclose(found[0], data) and torch.allclose(found[1], noise)


def test_steps_as_they_are_known():
    assert forms.advance("velocity", (0.2, 0.8), (0.5, 0.5)) == pytest.approx((1, 0.3)), "Euler in the flow's time"
    assert forms.advance("eps", (1.0, 7.0), (1.0, 4.0)) == pytest.approx((1, -3)), "Euler in sigma"
    a, b = forms.advance("eps", (0.6, 0.8), (0.8, 0.6))
    assert (a, b) == pytest.approx((0.8 / 0.6, 0.6 - 0.8 * 0.8 / 0.6)), "DDIM"


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_every_form_makes_the_same_run(grid):
    flow = Mixture(5, 6, spread=0.4)
    forms_of = halves.forms_of(GRIDS[grid](12))
    found = [Batch(problem(flow, grid, form), SEEDS).uncached for form in forms_of]
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-9, atol=1e-9)


# --- grids ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_grids_have_their_steps_and_one_direction(name):
    for steps in (5, 12, 25, 50):
        grid = GRIDS[name](steps)
        assert len(grid.s) == len(grid.times) == steps + 1
        assert len(schedule.effective_steps(grid.times)) == steps
        noise = [s / (a + s) for a, s in grid.levels]
        assert all(b < a for a, b in itertools.pairwise(noise)), "less noise at every step"


def test_published_ends():
    """Stable Diffusion's sigmas are 14.6146 to .0292; the other ends are those of the formulas."""
    assert ratios()[[-1, 0]] == pytest.approx((14.6146, 0.029167), rel=1e-4)
    first_and_last = {
        "karras80": (80, 0.002), "karras148": (148, 0.03), "exponential": (14.6146, 0.029167),
        "sgm_uniform": (14.6146, None), "beta": (14.6146, None),
    }  # fmt: skip
    for name, (high, low) in first_and_last.items():
        s = GRIDS[name](50).s
        assert s[0] == pytest.approx(high, rel=1e-4) and s[-1] == 0
        assert low is None or s[-2] == pytest.approx(low, rel=1e-4)
    assert GRIDS["leading"](50).times[:2] == (981, 961) and GRIDS["leading"](50).times[-2:] == (1, -1)
    assert GRIDS["trailing"](50).times[:2] == (999, 979) and GRIDS["trailing"](50).times[-2] == 19
    assert GRIDS["leading"](50).s[-1] == pytest.approx(0.029167, rel=1e-4) and GRIDS["trailing"](50).s[-1] == 0
    assert GRIDS["shift3"](4).s == pytest.approx((0, 0.1, 0.25, 0.5, 1)), "TRELLIS's grid"


# --- runs and solvers -------------------------------------------------------------------------------------------------
def exact(flow: Mixture, x: torch.Tensor, here: tuple[float, float], there: tuple[float, float]) -> torch.Tensor:
    """The solution for one mode: what is off the mean grows as its standard deviation."""
    own = (flow.spread * flow.scale).square()
    before, after = ((a**2 * own + s**2).sqrt() for a, s in (here, there))
    return there[0] * flow.centres[0] + after / before * (x - here[0] * flow.centres[0])


@pytest.mark.parametrize("grid", ["even", "shift5", "karras148", "karras80", "leading", "trailing", "beta"])
def test_the_fine_solution_is_the_solution(grid):
    flow = Mixture(1, 32, power=0.5, spread=1.0)
    batch = Batch(problem(flow, grid, halves.forms_of(GRIDS[grid](12))[0], 12), SEEDS)
    levels = batch.problem.own_grid.levels
    wanted = exact(flow, batch.problem.start(SEEDS, batch.problem.own_grid), levels[0], levels[-1])
    assert distance(batch.fine, wanted).max() < 1.5e-3
    assert distance(batch.uncached, wanted).min() > 10 * distance(batch.fine, wanted).max()


def test_the_fine_solution_knows_where_guidance_switches():
    flow = Mixture(6, 8, spread=0.4, classes=3)
    here = problem(flow, "even", "velocity", 10, (0.8, 1.0), 3.0)
    coarse, fine = (Batch(replace(here, steps=steps), SEEDS) for steps in (10, 400))
    assert here.edges(here.own_grid) == [3], "noise .8 is guided still"
    seen: list[tuple[float, bool]] = []
    watched = replace(here, network=lambda *given: seen.append((given[2], given[4])) or here.network(*given))
    assert torch.equal(Batch(watched, SEEDS).fine, Batch(here, SEEDS).fine)
    assert all(guided == (sigma > 0.8 + 1e-9) for sigma, guided in seen), "the switch itself belongs to what follows"
    assert distance(coarse.fine, fine.fine).max() < 1e-3
    assert distance(Batch(replace(here, interval=None), SEEDS).fine, fine.fine).max() > 1e-2, "it is the switch"


EVERYWHERE = [(solvers.euler, 1), (solvers.ab2, 2), (solvers.lms, 2.5), (solvers.dpm, 2), (solvers.unipc, 3)]
ON_FLOWS = [
    (solvers.flow_dpm, 2), (partial(solvers.flow_dpm, solver_type="heun"), 2), (partial(solvers.flow_dpm, order=3), 2),
    (solvers.flow_unipc, 3), (partial(solvers.flow_unipc, order=3), 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("chart", "solver", "order"),
    [("flow", *each) for each in EVERYWHERE + ON_FLOWS] + [(c, *each) for c in ("ve", "vp") for each in EVERYWHERE],
)
def test_solvers_converge(chart, solver, order):
    """Even in log(alpha / sigma) from -3 to 3, which is uneven in s; twice the steps, 2^-order of the error.

    UniPC-2 corrects to order 3; LMS-4's first steps are of lower orders, which shows in fine grids.
    """
    flow = Mixture(1, 16, power=0.5, spread=1.0)
    here, errors = problem(flow, {"flow": "even", "ve": "exponential", "vp": "leading"}[chart], "v"), []
    for steps in (32, 64, 128):
        half = np.linspace(-3, 3, steps + 1)
        s = tuple((1 / (1 + np.exp(-half)) if chart == "flow" else np.exp(-half)).tolist())
        batch, made = Batch(here, SEEDS), Grid(chart, s, s)
        wanted = exact(flow, here.start(SEEDS, made), made.levels[0], made.levels[-1])
        run = batch.solve(solver, made)
        errors.append(float(np.median(distance(run.end, wanted))))
        assert set(run.calls) == {steps}
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > order - 0.3).all() and (orders < order + 1.2).all(), (errors, orders)


def test_a_solver_that_starts_anew_every_step_is_eulers():
    flow = Mixture(4, 6, spread=0.4)
    batch, grid = Batch(problem(flow, "karras148", "eps"), SEEDS), GRIDS["karras148"](10)
    wanted = batch.solve(solvers.euler, grid).end
    for solver in (solvers.ab2, solvers.lms, solvers.dpm):
        assert torch.allclose(batch.solve(solver, grid, restart=range(10)).end, wanted, rtol=1e-9)


def test_a_cache_that_computes_every_step_changes_nothing_and_values_are_shared():
    seen = []
    flow = Mixture(4, 6, spread=0.4)
    here = problem(flow, "leading", "v")
    counted = replace(here, network=lambda *given: seen.append(1) or here.network(*given))
    batch = Batch(counted, SEEDS)
    end = batch.uncached
    run = batch.sample(Forecaster("auto", times=here.times, computed=range(12)))
    assert torch.equal(run.end, end)
    assert set(run.calls) == {12} and len(seen) == 12, "counted, though the network did not run again"
    late = Forecaster("linear", times=here.times, computed=(0, 1, 2, 5, 8, 11))
    assert not torch.equal(batch.sample(late).end, end)
    assert len(seen) == 12 + 3, "the first three were known"


# --- cells ------------------------------------------------------------------------------------------------------------
def test_rows_keep_the_budget_and_choose_on_other_seeds():
    flow = Mixture(4, 6, spread=0.4, classes=2)
    bench = Bench(problem(flow, "shift3", "velocity", 12, (0.5, 1.0), 3.0), range(3), range(10, 14))
    rows = [row for part in ("peers", "ours") for row in bench.rows(6, part)]
    kinds = {kind: [row.name for row in rows if row.kind == kind] for kind in ("solver", "published", "ours")}
    assert kinds["solver"] == list(methods.SOLVERS)
    assert {"reuse", "TaylorSeer 2", "HiCache 1", "HiCache++ dmd", "HiCache++ auto"} < set(kinds["published"])
    assert kinds["ours"] == ["auto", "linear", "dmd", "auto, edges"]
    for row in rows:
        assert len(row.drift) == len(row.error) == 3 and min(row.drift) >= 0
        assert (row.served is None) == (row.kind == "solver") and (row.served is None or 0 <= row.served <= 1)
    with pytest.raises(ValueError, match="others"):
        Bench(bench.problem, range(3), range(2, 5))


def test_a_row_with_another_number_of_calls_is_refused(monkeypatch):
    bench = Bench(problem(Mixture(2, 4), "even", "velocity"), range(2), range(10, 12))
    wrong = Method("wrong", "ours", [Candidate("", lambda batch: batch.sample())])
    monkeypatch.setitem(command.PARTS, "ours", (lambda problem, calls: [wrong],))
    with pytest.raises(RuntimeError, match="12 calls of 6"):
        bench.rows(6, "ours")


def test_the_share_that_a_rule_served():
    times, value = tuple(range(13)), torch.ones(1, 3)
    cache = Forecaster("dmd", times=times, computed=(0, 2, 4, 6, 8, 10, 11))
    for i in range(12):
        cache.step(i, lambda i=i: value * 0.9**i)
    rules = [step.rules["v"] for step in cache.trace.steps if step.kind == "forecast"]
    assert 0 < methods.share_served(cache, "dmd") == sum(rule == "dmd" for rule in rules) / len(rules) < 1


def test_schedules_have_exactly_the_calls():
    for steps, calls in ((50, 9), (50, 19), (25, 7), (12, 5), (49, 15)):
        fixed, spread = methods.schedules(steps, calls)
        for found in (fixed, spread, methods.ramps(steps, calls)):
            assert found
            for each in found:
                assert len(set(each)) == calls and min(each) == 0 and max(each) < steps


# --- halves -----------------------------------------------------------------------------------------------------------
def test_halves_share_no_flow_and_no_seed():
    a, b = (halves.SETTINGS[half] for half in ("develop", "report"))
    assert not set(a.dimensions) & set(b.dimensions) and set(a.modes) & set(b.modes) == {1}
    assert set(a.grids) & set(b.grids) == {"even"} and set(a.grids) | set(b.grids) == set(GRIDS)
    assert abs(a.seed - b.seed) > halves.CHOOSING + 1000


@pytest.mark.parametrize("half", ["develop", "report"])
def test_every_two_settings_meet(half):
    settings = halves.SETTINGS[half]
    chosen = halves.choose(settings)
    assert 35 <= len(chosen) <= 65 and len(set(chosen)) == len(chosen)
    assert chosen == halves.choose(settings), "the same everywhere"
    product = list(halves._points(settings))
    for a, b in itertools.combinations(range(len(product[0])), 2):
        assert {(p[a], p[b]) for p in chosen} == {(p[a], p[b]) for p in product}
    keys = [each.key for each in halves.closed(half)]
    assert len(set(keys)) == len(keys) and all(len(key.split("-")) == 5 for key in keys)


# --- results and numbers ----------------------------------------------------------------------------------------------
def cell(name: str, steps: int, calls: int, **drift: list[float]) -> Cell:
    """A made-up cell; errors are the drift, and the solver's is .1."""
    kinds = {"euler": ("Euler-K", "solver"), "reuse": ("reuse", "published"), "taylor": ("TaylorSeer 2", "published")}
    rows = {}
    for key, values in drift.items():
        title, kind = kinds.get(key, (key, "ours"))
        rows[title] = Row(title, kind, "", None, values, [0.1] * len(values) if kind == "solver" else values)
    return Cell(name, "closed form", steps, calls, [0.1], rows)


def test_steering_numbers_by_hand():
    cells = [
        cell("f-even-50-v-unguided", 50, 15, euler=[0.3], reuse=[0.4], taylor=[0.2], auto=[0.05]),
        cell("g-even-50-v-unguided", 50, 9, euler=[0.3], reuse=[0.1], taylor=[0.2], auto=[0.4]),
        cell("h-even-25-v-unguided", 25, 9, euler=[0.3], reuse=[0.4], taylor=[0.2], auto=[0.2]),
    ]
    found = steering.compared(cells)
    assert found.mean == pytest.approx((0.25 * 4 * 1) ** (1 / 3)) and found.worst == pytest.approx(4)
    assert found.where == "g-even-50-v-unguided / 9" and found.loses == pytest.approx(1 / 3), "equal is not lost"
    assert steering.above_euler(cells) == ["g-even-50-v-unguided / 9"]
    accurate = steering.accurate(cells)
    assert list(accurate) == [50, 25]
    assert accurate[50].cells == 1 and accurate[50].share == 1, "9 of 50 is less than a quarter"
    assert accurate[25].missed == ["h-even-25-v-unguided / 9"] and accurate[25].share == 0
    assert accurate[25].beyond == [], "the N steps' own error is .1, the solver's too"
    worse = replace(cells[2], uncached=[0.11])
    assert steering.accurate([worse])[25].beyond == ["h-even-25-v-unguided / 9"]


def test_p95_has_a_best_rule_of_its_own():
    values = {"reuse": [0.1] * 7 + [9.0] * 5, "taylor": [0.2] * 12, "auto": [0.1] * 12}
    one = cell("f-even-50-v-unguided", 50, 15, euler=[1.0] * 12, **values)
    assert steering.ratio(one) == pytest.approx(1) and steering.best(one, "published").name == "reuse"
    assert steering.ratio(one, steering.p95) == pytest.approx(0.5)
    low, high = steering.interval(one)
    assert low < 1 == pytest.approx(high), "some resamples hold more of the bad ones"


def test_round_off_is_no_victory():
    one = cell("f-even-50-v-unguided", 50, 15, euler=[1.0], reuse=[1e-12], taylor=[1.0], auto=[1e-9])
    assert steering.ratio(one) == 1


def test_a_run_goes_on_where_it_was_broken_off(tmp_path):
    here = problem(Mixture(2, 4), "even", "velocity")
    file = tmp_path / "deep" / "develop.jsonl"
    found = Results(file)
    assert found.missing(here, 6, 1) == ["peers", "ours"]
    rows = [Row("reuse", "published", "", 1.0, [0.2], [0.2])]
    found.add(here, 6, "peers", [0.1], rows, 1.0)
    with file.open("a") as stream:
        stream.write('{"problem": "broken off')
    again = Results(file)
    assert again.missing(here, 6, 1) == ["ours"] and again.missing(here, 6, 2) == ["peers", "ours"]
    assert again.cells() == [], "half a cell is none"
    for drift in (0.4, 0.1):
        again.add(here, 6, "ours", [0.1], [Row("auto", "ours", "", math.nan, [drift], [drift])], 1.0)
    (whole,) = Results(file).cells()
    assert steering.ratio(whole) == pytest.approx(0.5), "of two lines the later one"
    assert whole.rows["auto"].served is None


def test_a_network_that_takes_long_gets_fewer_seeds(tmp_path, monkeypatch):
    asked = []

    def bench(problem, seeds, choosing):
        asked.append((len(seeds), len(choosing)))
        return Bench(problem, seeds, choosing)

    monkeypatch.setattr(command, "Bench", bench)
    here = replace(problem(Mixture(2, 4), "even", "velocity"), slow=True)
    found = Results(tmp_path / "zoo.jsonl")
    for _ in range(2):
        command.measure(here, 0, 5, (6,), found, "")
    assert asked == [(3, 2)], "measured once"
    (whole,) = found.cells()
    assert len(whole.uncached) == len(whole.rows["auto"].drift) == 3


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A quick run of two problems."""
    out = tmp_path_factory.mktemp("zoo")
    arguments = ["--quick", "--seeds", "2", "--only", "karras148|shift3", "--out", str(out)]
    assert command.main(arguments) == 0
    return out, arguments


def test_a_quick_run_writes_a_table_and_a_picture(two, capsys):
    out, _ = two
    page = (out / "develop-quick.md").read_text()
    assert (out / "develop-quick.png").stat().st_size > 10_000
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for lines in blocks:
        assert len({line.count("|") for line in lines}) == 1, "as many cells in every line"
    assert len(blocks[2]) == 2 + 2 and all(f"| {name} |" in page for name in methods.OURS)


def test_a_second_start_measures_nothing_unless_it_is_told_to(two, monkeypatch, capsys):
    out, arguments = two
    file = out / "develop-quick.jsonl"
    before = file.read_text()
    parts = [json.loads(line)["part"] for line in before.splitlines()]
    assert sorted(parts) == ["ours", "ours", "peers", "peers"]
    monkeypatch.setattr(command, "Bench", None)
    assert command.main(arguments) == 0 and file.read_text() == before
    monkeypatch.undo()
    assert command.main([*arguments, "--redo", "ours", "--only", "shift3"]) == 0
    added = file.read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["part"] for line in added] == ["ours"]


# --- trained networks -------------------------------------------------------------------------------------------------
def test_what_cannot_be_had_is_left_out_with_its_reason(tmp_path, monkeypatch):
    def refuse(wheel, folder):
        raise CheckoutError("cannot download: no network")

    monkeypatch.setattr(networks.wheel, "download", refuse)
    a = command.parser().parse_args(["--out", str(tmp_path), "--trellis", str(tmp_path / "none")])
    found, left_out = command.problems(a)
    assert len(found) == len(halves.closed("develop"))
    assert (
        left_out["published networks"] == "cannot download: no network"
        and "holds no" in left_out["trellis's reference network"]
    )
    page = report.page("develop", [], 2, left_out)
    assert "- left out: published networks: cannot download: no network" in page


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "galaxygrad-0.1.0-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(CheckoutError, match="sha256"):
        networks.fetched(tmp_path)


def made_up(side: int = 8, hidden: int = 6, width: int = 5) -> list[torch.Tensor]:
    """Arrays in the order and the shapes of a published score network."""
    patches = (side // networks.PATCH) ** 2
    block = [
        (width, patches), (width,), (patches, width), (patches,), (width, hidden), (width,), (hidden, width), (hidden,),
        (hidden, patches), (hidden, patches), (patches, hidden), (patches, hidden),
    ]  # fmt: skip
    ends = [(hidden, 2, 4, 4), (hidden, 1, 1), (1, hidden, 4, 4), (1, 1, 1)]
    shapes = [*ends, *block * 4, (hidden, patches), (hidden, patches)]
    return [0.3 * normal(k, *shape).float() for k, shape in enumerate(shapes)] + [torch.tensor(10.0)]


def test_the_score_networks_layers():
    """Its size, its time channel, and the transposed convolution against its definition by loops."""
    arrays = made_up()
    net = networks.ScoreNet(arrays)
    assert net.side == 8 and net.last == 10
    y = torch.stack([normal(k, 1, 8, 8).float() for k in range(2)])
    assert net.score(y, 1.0).shape == y.shape and not torch.allclose(net.score(y, 1.0), net.score(y, 2.0))
    alone = net.score(y[:1], 1.0)
    assert torch.allclose(net.score(y, 1.0)[:1], alone, atol=1e-5), "items do not mix"
    sigma = 2.0
    t = math.log(1 + sigma**2)
    wanted = -math.sqrt(1 - math.exp(-t)) * net.score(y / math.sqrt(1 + sigma**2), t)
    assert torch.allclose(net.eps(y, 1.0, sigma, range(2), False), wanted, rtol=1e-5)
    # an upsampling by correlation: output[4 p + a] = sum_c h[c, p] kernel[c, 3 - a] for a kernel stored forward
    stored = arrays[2]
    h = normal(9, 1, 6, 2, 2).float()
    found = torch.nn.functional.conv_transpose2d(h, net.out[0], stride=4)
    for p, q, a, b in itertools.product(range(2), range(2), range(4), range(4)):
        wanted = (h[0, :, p, q] * stored[0, :, 3 - a, 3 - b]).sum()
        assert float(found[0, 0, 4 * p + a, 4 * q + b]) == pytest.approx(float(wanted), abs=1e-5)


def test_levels_of_the_charts():
    assert level("flow", 0.25) == (0.25, 0.75) and level("ve", 3.0) == (1.0, 3.0)
    assert level("vp", 0.75) == pytest.approx((0.8, 0.6))


def test_results_are_plain_json(two):
    out, _ = two
    for line in (out / "develop-quick.jsonl").read_text().splitlines():
        assert json.loads(line)["rows"] and "NaN" not in line and results.Row


# --- published rules --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", [Reuse(), Taylor(1), Taylor(2), Hermite(1, 0.5), Hermite(2, 0.5)])
def test_a_published_rule_is_that_of_the_core_without_a_guard(rule):
    computed, values = (0, 1, 2, 5, 9, 13), [normal(k, 2, 6) for k in range(14)]
    ours = Forecaster(rule, steps=14, computed=computed, guard=math.inf)
    theirs = Weighted(computed, rule)
    for i in range(14):
        a, b = (cache.step(i, lambda i=i: values[i]) for cache in (ours, theirs))
        if i > 2:  # before, the core puts a line in place of the last value
            assert torch.allclose(a, b, rtol=1e-9)
    assert theirs.served == 1


def test_hicache_pps_own_choice_is_what_its_package_forecasts():
    """A trend plus an oscillation that dies out: DMD first serves from five even snapshots on."""
    computed = tuple(range(0, 40, 4))
    both = {backend: HiCachePP(computed, backend=backend) for backend in ("dmd", "auto")}
    k = torch.arange(6).double()
    ends = {}
    for name, cache in both.items():
        for i in range(39):
            ends[name] = cache.step(i, lambda i=i: (torch.exp(-0.05 * i * (k + 1)) * torch.cos(0.1 * i * k))[None])
    counts = both["auto"].states[0]["telemetry"]["method_counts"]
    assert both["dmd"].served > both["auto"].served > 0
    assert both["auto"].served == pytest.approx(counts["dmd"] / sum(counts.values()))
    assert torch.isfinite(ends["auto"]).all()


# --- the generators' own loops ----------------------------------------------------------------------------------------
def test_the_uncached_run_is_trellis_own(checkouts):
    """Its sampler, with its guidance interval and shift, around the reference network."""
    seeds = range(2)
    here = generators.trellis_structure(checkouts("trellis", patched=True, source="wheel"))[1]
    ours = Batch(here, seeds).uncached
    stage = here.network.__self__
    for k, seed in enumerate(seeds):
        cond = stage.pipe.get_cond([solids.picture(solids.solid(seed)[1], pictures.PICTURE)])
        settings = {**stage.settings, "steps": 12, "verbose": False}
        theirs = stage.pipe.sparse_structure_sampler.sample(stage.model, here.noise([seed]), **cond, **settings).samples
        assert float((theirs[0] - ours[k]).norm() / theirs.norm()) < 1e-5


def test_hunyuans_problems_are_the_frontiers_under_the_zoos_names(patched):
    ours = {each.key: each for each in generators.hunyuan21(patched)}
    assert set(ours) == {
        "hunyuan21-even-49-velocity-guided", "hunyuan21-shift3-25-velocity-interval",
        "hunyuan21-shift3-12-velocity-interval", "hunyuan21-shift5-12-velocity-interval",
    }  # fmt: skip
    assert ours["hunyuan21-even-49-velocity-guided"].budgets == (15, 11, 9)
    assert all(each.slow and each.group == generators.GROUP and each.strength == 3 for each in ours.values())
