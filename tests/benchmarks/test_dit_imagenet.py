"""The DiT benchmark around a tiny random network: its statistics in closed form, its chunks, its rows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `diffusers`")
pytest.importorskip("transformers", reason="needs the extra `diffusers`: its pipelines import transformers")

from benchmarks.dit_imagenet import features, methods, plans, sampling, table
from benchmarks.dit_imagenet import run as loop
from benchmarks.dit_imagenet.__main__ import app
from benchmarks.dit_imagenet.chunks import Chunk, chunk_path
from benchmarks.dit_imagenet.statistics import Gaussian, Moments, Predictions, frechet, root
from benchmarks.flows.sampling import distance

STEPS, GUIDANCE, CALLS = 12, 1.5, 6
SIZES = {"images": 8, "chunk": 4, "batch": 4}
BUDGET = [f"--{name}={value}" for name, value in SIZES.items()] + [f"--steps={STEPS}", "--device=cpu"]


def gaussians(draw, width):
    return [Gaussian(draw.normal(size=width), np.diag(draw.uniform(0.1, 3, width))) for _ in range(2)]


def test_frechet_of_diagonal_covariances_is_closed_form():
    draw = np.random.default_rng(0)
    a, b = gaussians(draw, 6)
    sides = [np.sqrt(np.diag(each.covariance)) for each in (a, b)]
    wanted = ((a.mean - b.mean) ** 2).sum() + ((sides[0] - sides[1]) ** 2).sum()
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-12) == frechet(b, a)
    turn, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet(*turned) == pytest.approx(wanted, rel=1e-12)
    assert frechet(a, a) == 0.0
    assert frechet(*turned) != pytest.approx(frechet(a, turned[1]), rel=0.1), "the control: another covariance"


def test_frechet_of_singular_and_tiny_differences():
    """Two lines through the origin at an angle: ``tr + tr - 2 cos``; a shift of 1e-6 is seen beside a trace of 1."""
    u, v = np.array([1.0, 0, 0]), np.array([0.6, 0.8, 0])
    zero = np.zeros(3)
    lines = Gaussian(zero, np.outer(u, u)), Gaussian(zero, np.outer(v, v))
    assert frechet(*lines) == pytest.approx(2 - 2 * 0.6, rel=1e-9)
    assert frechet(lines[0], Gaussian(zero + 1e-6, lines[0].covariance)) == pytest.approx(3e-12, abs=1e-14)
    assert np.allclose(root(lines[1].covariance), lines[1].covariance)
    with pytest.raises(ValueError, match="one width, got 3 and 2"):
        frechet(lines[0], Gaussian(zero[:2], np.eye(2)))
    with pytest.raises(ValueError, match="not finite"):
        frechet(lines[0], Gaussian(zero * np.nan, np.eye(3)))


def test_inception_score_is_closed_form():
    certain = np.log(np.eye(5).repeat(3, axis=0), where=np.eye(5).repeat(3, axis=0) > 0, out=np.full((15, 5), -np.inf))
    assert Predictions.of(certain).score() == pytest.approx(5, rel=1e-12)
    assert Predictions.of(np.full((7, 5), np.log(0.2))).score() == pytest.approx(1, rel=1e-12)
    p = 0.9
    two = np.log([[p, 1 - p], [1 - p, p]] * 4)
    assert Predictions.of(two).score() == pytest.approx(2 * p**p * (1 - p) ** (1 - p), rel=1e-12)


@pytest.mark.parametrize("cuts", [(), (1,), (10, 11), (3, 20, 31)])
def test_any_split_gives_the_same_statistics(cuts, tmp_path):
    """Exactly where sums have no rounding (small integers), to rounding elsewhere; the control: a lost picture."""
    draw = np.random.default_rng(1)
    for values, exact in (
        (draw.integers(-99, 99, size=(40, 7)).astype(float), True),
        (draw.normal(size=(40, 7)), False),
    ):
        log_p = torch.tensor(values).log_softmax(dim=1).numpy()
        whole = chunk_of(values, log_p)
        for k, (lo, hi) in enumerate(itertools.pairwise((0, *cuts, 40))):
            chunk_of(values[lo:hi], log_p[lo:hi]).save(tmp_path / f"{k}.npz")
        made = sum((Chunk.load(tmp_path / f"{k}.npz") for k in range(1, len(cuts) + 1)), Chunk.load(tmp_path / "0.npz"))
        for name in ("total", "outer"):
            a, b = (getattr(each.moments, name) for each in (made, whole))
            assert np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-12, atol=1e-12)
        assert np.array_equal(made.drift, whole.drift) and made.moments.count == made.predictions.count == 40
        assert made.predictions.score() == pytest.approx(whole.predictions.score(), rel=1e-12)
        sides = made.moments.gaussian(), Moments.of(values).gaussian()
        assert frechet(*sides) == (0 if exact else pytest.approx(0, abs=1e-9))
        assert frechet(Moments.of(values[:-1]).gaussian(), sides[1]) > 1e-4
    assert np.allclose(sides[1].covariance, np.cov(values.T)) and np.allclose(sides[1].mean, values.mean(axis=0))


def chunk_of(values, log_p):
    n = len(values)
    return Chunk(
        Moments.of(values), Predictions.of(log_p), values[:, 0], values[:, 1], np.ones((1, 3)), np.ones((1, 2)),
        torch.zeros(n, 1, 1, 1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return sampling.load(sampling.TOY, "cpu", "float32")


@pytest.fixture(scope="module")
def plan(model, tmp_path_factory):
    """A plan's file, from the command."""
    out = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "load", lambda *given: model)
        command = ["plan", f"--out={out}", f"--calls={CALLS}", f"--steps={STEPS}", "--seeds=100:102", "--device=cpu"]
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and f"plan-{CALLS}.json: steps 0," in result.output, result.output
    return out / f"plan-{CALLS}.json"


def test_a_plan_for_ddim_and_its_sampler(model, plan):
    """The Euler form in s is the pipeline's DDIM; its plan beats the rule that it is given in place of."""
    sampler = plans.Guided(model, STEPS, GUIDANCE)

    class Off:
        step = staticmethod(lambda i, compute: compute())

    latents = sampler.run(3, Off()) / model.pipe.vae.config.scaling_factor
    wanted = sampling.sample(model, [3], 0, STEPS, GUIDANCE, None)
    assert distance(latents, wanted.latents).max() < 1e-5
    found = {
        name: sampling.sample(model, [3], 0, STEPS, GUIDANCE, settings)
        for name, settings in {"plan": {"plan": plan}, "linear": {"basis": "linear", "calls": CALLS}}.items()
    }
    assert {batch.calls for batch in found.values()} == {CALLS}
    off = {name: distance(batch.latents, wanted.latents).max() for name, batch in found.items()}
    assert 0 < off["plan"] < 0.5 * off["linear"], off
    with pytest.raises(ValueError, match=r"guidance 1\.5, got 4"):
        plans.check(plan, 4.0, range(8))
    with pytest.raises(ValueError, match=r"measured here, seeds 101\.\.101"):
        plans.check(plan, GUIDANCE, range(101, 109))


@pytest.fixture(scope="module")
def made(model, plan, tmp_path_factory):
    """Rows of every basis and of a plan, their chunks and their table."""
    out = tmp_path_factory.mktemp("dit")
    rows = methods.methods(methods.BASES, [CALLS], [], [plan], STEPS, None)
    bench = loop.Bench(model, features.stub(), STEPS, GUIDANCE, **SIZES)
    found = bench.run(rows, out, lambda what: None)
    return bench, rows, out, found, {row["group"]: row for row in table.summaries(rows, found, None)}


def test_rows(made):
    *_, of = made
    assert set(methods.BASES) < set(of)
    uncached = of[methods.UNCACHED]
    assert uncached["fid_drift"] == 0.0 and uncached["latent_drift"] == [0, 0] and uncached["psnr"] == [None, None]
    assert (uncached["calls"], uncached["cond"], uncached["uncond"], uncached["n"]) == (STEPS, STEPS, STEPS, 8)
    for group in {*methods.BASES, "plan", methods.FEWER, methods.CONTROL}:
        assert (of[group]["calls"], of[group]["cond"], of[group]["uncond"]) == (CALLS,) * 3
    for name in ("fid_drift", "latent_drift"):
        first = lambda value: value[0] if isinstance(value, list) else value  # noqa: E731
        linear, wrong, floor = (first(of[g][name]) for g in ("linear", methods.CONTROL, methods.FLOOR))
        assert 0 < linear < wrong < floor, name
    assert of[methods.CONTROL]["psnr"][0] < of["linear"]["psnr"][0]


def test_without_guidance_there_is_one_branch(model):
    batch = sampling.sample(model, [0, 1, 2], 0, STEPS, 1.0, {"basis": "reuse", "calls": CALLS})
    assert (batch.calls, batch.cond, batch.uncond) == (CALLS, CALLS, 0)


def test_pictures_depend_on_their_own_noise_and_class(model):
    pair = sampling.sample(model, [5, 6], 0, STEPS, GUIDANCE, None).latents
    (alone,) = sampling.sample(model, [6], 0, STEPS, GUIDANCE, None).latents
    assert torch.allclose(pair[1], alone, atol=1e-5) and not torch.allclose(pair[0], alone, atol=0.1)
    assert len({sampling.label_of(i) for i in range(7, 1007)}) == 1000
    pictures = sampling.sample(model, [5, 6], 0, STEPS, GUIDANCE, None).pictures
    assert torch.equal(sampling.decode(model, pair), pictures) and pictures.float().std() > 1


def test_a_rerun_makes_what_is_missing_alone(made, monkeypatch, tmp_path):
    bench, rows, out, found, _ = made
    sampled = []
    real = loop.sample
    monkeypatch.setattr(loop, "sample", lambda *given: sampled.append(given[1]) or real(*given))
    bench.run(rows, out, lambda what: None)
    assert not sampled
    lost = chunk_path(out, "dmd-calls6", 1)
    lost.unlink()
    again = bench.run(rows, out, lambda what: None)
    assert [list(given) for given in sampled] == [[4, 5, 6, 7]] * 2, "a warm-up, and the batch"
    for name in ("total", "outer"):
        assert np.array_equal(getattr(again["dmd-calls6"].moments, name), getattr(found["dmd-calls6"].moments, name))
    assert np.array_equal(again["dmd-calls6"].drift, found["dmd-calls6"].drift)
    before = sorted(out.rglob("*"))

    def broken(*given):
        raise KeyboardInterrupt

    lost.unlink()
    monkeypatch.setattr(loop, "sample", broken)
    with pytest.raises(KeyboardInterrupt):
        bench.run(rows, out, lambda what: None)
    assert sorted(out.rglob("*")) == [path for path in before if path != lost], "nothing half-written"
    monkeypatch.setattr(loop, "sample", real)
    bench.run(rows, out, lambda what: None)
    other = loop.Bench(bench.model, bench.features, STEPS + 1, GUIDANCE, images=8, chunk=2, batch=2)
    with pytest.raises(ValueError, match="steps: 12 there, 13 now; chunk: 4 there, 2 now"):
        other.run(rows, out, lambda what: None)


def test_a_scheduler_with_noise_of_its_own_is_refused(model, tmp_path):
    """Runs from one noise would not be paired."""
    from diffusers import DDPMScheduler

    noisy = type(model.pipe)(model.pipe.transformer, model.pipe.vae, DDPMScheduler(clip_sample=False))
    noisy.set_progress_bar_config(disable=True)
    bench = loop.Bench(sampling.Model(noisy, "noisy", "", "cpu"), features.stub(), STEPS, GUIDANCE, **SIZES)
    with pytest.raises(RuntimeError, match="DDPMScheduler draws noise of its own"):
        bench.run(methods.methods(["linear"], [CALLS], [], [], STEPS, None), tmp_path, lambda what: None)
    with pytest.raises(ValueError, match="DDIMScheduler that predicts epsilon"):
        plans.Guided(bench.model, STEPS, GUIDANCE)


class Published(torch.nn.Module):
    """The interface of NVIDIA's file."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False, no_output_bias: bool = False):
        x = pictures.float().mean(dim=(2, 3))
        return x if return_features else torch.softmax(x / 50 + (0.0 if no_output_bias else 9.0), dim=1)


class Own(torch.nn.Module):
    """The interface of a module of one's own."""

    def forward(self, pictures: torch.Tensor):
        x = pictures.float().mean(dim=(2, 3))
        return x, x / 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_feature_networks_from_files(tmp_path):
    pictures = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    wanted = pictures.float().mean(dim=(2, 3)).double()
    for kind in (Published, Own):
        path = tmp_path / f"{kind.__name__}.pt"
        torch.jit.script(kind()).save(str(path))
        network = features.load(str(path), "cpu")
        values, log_p = network.of(pictures)
        assert np.allclose(values, wanted) and np.allclose(log_p, (wanted / 50).log_softmax(dim=1), atol=1e-5)
        assert network.name == path.name and len(network.digest) == 16
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not TorchScript"):
        features.load(str(tmp_path / "weights.pth"), "cpu")
    with pytest.raises(ValueError, match=r"there is no file nowhere\.pt"):
        features.load("nowhere.pt", "cpu")
    a, b = (features.stub().of(pictures) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and a[0].std(axis=0).min() > 0


def test_command_writes_table_plot_and_json(made, model, plan, monkeypatch, tmp_path):
    """In the folder of the other tests, so that only the table is made; with statistics to compare with."""
    _, _, out, found, of = made
    near = found[methods.UNCACHED].moments.gaussian()
    np.savez(tmp_path / "reference.npz", mu=near.mean + 0.5, sigma=near.covariance)
    monkeypatch.setattr(sampling, "load", lambda *given: model)
    command = ["run", f"--out={out}", f"--calls={CALLS}", f"--plan={plan}", *BUDGET]
    result = CliRunner().invoke(app, [*command, f"--reference={tmp_path / 'reference.npz'}"])
    assert result.exit_code == 0, result.output
    written = json.loads((out / "results.json").read_text())
    rows = {row["group"]: row for row in written["rows"]}
    assert rows["dmd"]["fid_drift"] == of["dmd"]["fid_drift"] and written["settings"]["chunk"] == 4
    assert rows[methods.UNCACHED]["fid"] == pytest.approx(0.25 * len(near.mean))
    text = (out / "results.md").read_text()
    assert "plumbing only" in text and "stub" in text and "| exponential, calls 6 | 6 | 6 + 6 |" in text
    assert "| plan 6 | 6 |" in text and rows["plan"]["fid_drift"] < rows["linear"]["fid_drift"]
    assert (out / "results.png").stat().st_size > 10_000 and "<svg" in (out / "results.svg").read_text()
    np.savez(tmp_path / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048)[:8])
    for options, message in (
        ([f"--reference={tmp_path / 'reference.npz'}"], "must come from one network"),
        ([f"--reference={tmp_path / 'none.npz'}"], "mu and sigma"),
        (["--basis=nonsense"], "basis must be among reuse, taylor"),
        (["--guidance=4"], "is for guidance 1.5, got 4"),
        (["--calls=12"], "calls must be 2..11"),
        (["--interval=1"], "interval must be 2..11"),
        (["--batch=3"], "chunk of batch"),
        (["--steps=8", "--calls=5"], "steps must be >= 9"),
        (["--features=none.pt"], "there is no file none.pt"),
    ):
        refused = CliRunner().invoke(app, [*command, *options])
        assert refused.exit_code == 1 and message in refused.output, refused.output


def test_a_pipeline_from_a_folder_in_half_precision(model, tmp_path):
    model.pipe.save_pretrained(tmp_path)
    loaded = sampling.load(str(tmp_path), "cpu", "bfloat16")
    batch = sampling.sample(loaded, [5, 6], 0, STEPS, GUIDANCE, {"basis": "linear", "calls": CALLS})
    assert loaded.pipe.dtype == torch.bfloat16 and loaded.weights != model.weights
    assert torch.equal(sampling.decode(loaded, batch.latents), batch.pictures), "latents come back as they were"
    exact = sampling.sample(model, [5, 6], 0, STEPS, GUIDANCE, {"basis": "linear", "calls": CALLS}).latents
    assert distance(batch.latents, exact).max() < 0.1


def test_what_is_not_on_this_machine_is_not_downloaded():
    with pytest.raises(ValueError, match="hf download nobody/no-dit"):
        sampling.load("nobody/no-dit", "cpu", "float32")
    with pytest.raises(ValueError, match="dtype must be float32"):
        sampling.load(sampling.TOY, "cpu", "int8")
    with pytest.raises(ValueError, match="the toy is float32"):
        sampling.load(sampling.TOY, "cpu", "bfloat16")
