"""The instruments: solids, geometry metrics, the drift table, the demonstration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import trimesh

from forecache import Forecaster, Trace
from forecache.rules import Linear
from forecache_lab import demo, drift, session
from forecache_lab.generators import Sample
from forecache_lab.generators.hunyuan2mini import Hunyuan2Mini
from forecache_lab.generators.hunyuan21 import Hunyuan21
from forecache_lab.generators.reference import hunyuan21, solids
from forecache_lab.metrics import geometry


@pytest.mark.parametrize("family", solids.FAMILIES)
def test_solids_are_closed_repeatable_distances(family):
    _, distance = solids.solid(7, family)
    grid = solids.grid(distance, 24)
    assert 0.005 < float((grid < 0).float().mean()) < 0.4
    assert all(
        bool((face > 0).all()) for face in (grid[0], grid[-1], grid[:, 0], grid[:, -1], grid[..., 0], grid[..., -1])
    )
    assert torch.equal(grid, solids.grid(solids.solid(7, family)[1], 24))
    assert not torch.equal(grid, solids.grid(solids.solid(8, family)[1], 24))
    step = 2 / 23
    assert float((grid[1:] - grid[:-1]).abs().max()) <= step * 1.01, "a distance is 1-Lipschitz"
    picture = solids.picture(distance)
    assert picture.shape == (1, 32, 32) and float(picture.max()) > -0.5 and float(picture.min()) == -1


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of"):
        solids.solid(0, "sofa")


def test_latents_are_the_grid():
    grid = torch.rand(2, 16, 16, 16) * 0.5 - 0.25
    assert torch.allclose(hunyuan21.to_distance(hunyuan21.to_latent(grid)), grid, atol=1e-6)


def test_geometry_of_known_distances():
    ball = trimesh.creation.icosphere(3, 0.5)
    floor = geometry.floor(ball)
    assert floor.chamfer < 0.005 and floor.volume_iou == 1 and floor.fscore[0] > 0.99
    grown = geometry.compare(trimesh.creation.icosphere(3, 0.53), ball)
    assert grown.chamfer == pytest.approx(0.03, abs=0.003)  # in diameters of the reference, which is 1
    assert geometry.chamfer(trimesh.creation.icosphere(3, 0.53), ball) == grown.chamfer
    assert grown.fscore[1] < 0.01 and grown.fscore[2] == 1, "0.03 lies between the thresholds 0.02 and 0.05"
    assert grown.volume_iou == pytest.approx((0.5 / 0.53) ** 3, abs=0.03)
    moved = ball.copy()
    moved.apply_translation([0.25, 0, 0])
    assert geometry.compare(moved, ball).volume_iou < 0.6, "no alignment hides a moved object"
    doubled = [each.copy().apply_scale(2) for each in (moved, ball)]
    assert geometry.compare(*doubled).chamfer == pytest.approx(geometry.compare(moved, ball).chamfer, rel=0.02)


def test_geometry_refuses_an_empty_mesh():
    with pytest.raises(ValueError, match="mesh has no faces"):
        geometry.compare(None, trimesh.creation.icosphere())


class Ball:
    """A subject whose latent is a radius and whose "network" pushes it to 0.5, nonlinearly in time."""

    title, steps, conditions = "toy", 20, "CPU"

    def plain(self, seed, calls):
        return self.sample(seed, None, calls)

    def sample(self, seed, settings, n=20):
        x, calls = torch.full((1, 4), 0.3 + 0.01 * seed), 0
        cache = Forecaster(steps=n, **settings) if settings else None
        for i in range(n):

            def network(x=x, t=i / n):
                nonlocal calls
                calls += 1
                return (0.5 - x) * (1 + 3 * t * t)

            x = x + (network() if cache is None else cache.step(i, network)) / n
        mesh = trimesh.creation.icosphere(3, float(x[0, 0]))
        return Sample(x, mesh, calls, 1.0, 2.0, Trace() if cache is None else cache.trace)


def test_drift_table_counts_and_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry, "TARGETS", 10_000)  # the table is tested here, not the measures
    monkeypatch.setattr(geometry, "VOXELS", 24)
    subject, said = Ball(), []
    runs, references, shown = drift.measure(subject, drift.methods("linear", [3, 4], 2), range(3), said.append)
    rows = {row["method"]: row for row in drift.summary(runs)}
    assert rows["linear, interval 3"]["n"] == 3
    euler = next(row for row in rows.values() if row["basis"] == "euler")
    assert euler["calls"] in {rows[f"linear, interval {k}"]["calls"] for k in (3, 4)}
    assert (
        rows["linear, interval 4"]["latent drift"][0]
        < rows["control: linear with the wrong sign, interval 4"]["latent drift"][0]
    )
    assert session.verdict(runs, "linear") == 0
    swapped = [
        drift.Run(**{**vars(run), "latent_drift": 1 / run.latent_drift}) for run in runs
    ]  # the control of the control: the verdict can fail
    assert session.verdict(swapped, "linear") == 1
    floor = drift.floors(references)
    drift.to_json(tmp_path / "drift.json", subject, range(3), runs, floor)
    body = json.loads((tmp_path / "drift.json").read_text())
    assert len(body["runs"]) == len(runs) and body["rows"][0]["calls"] == rows["linear, interval 3"]["calls"]
    table = drift.to_markdown(subject, runs, floor, references)
    assert table.count("\n| ") == len(rows) + 3  # head, uncached and floor rows besides
    assert set(shown) == set(rows)


def test_demo_velocity_is_the_conditional_expectation():
    """Monte Carlo: E[y - z | x] by importance weights, on a small mixture."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(3, 2, generator=generator)
    x, t = torch.tensor([[0.2, -0.1]]), 0.6
    y = mu[torch.randint(3, (400_000,), generator=generator)] + demo.SPREAD * torch.randn(
        400_000, 2, generator=generator
    )
    z = (x - t * y) / (1 - t)
    weight = torch.softmax(-z.square().sum(1) / 2, 0)[:, None]
    assert torch.allclose((weight * (y - z)).sum(0), demo.velocity(x, t, mu)[0], atol=0.02)


def test_demo_rules_beat_reuse(tmp_path):
    rows = [line.split("|") for line in demo.main(tmp_path, 8).splitlines()[2:]]
    median = {cells[1].strip(): float(cells[3]) for cells in rows}
    reuse = median.pop("reuse, interval 5")
    assert all(value < reuse for value in median.values()), median
    assert len({cells[2] for cells in rows}) == 1, "every rule gets the same number of calls"
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_real_weights_say_what_they_need(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(torch.cuda, "is_available", lambda: True)
        session.main(["hunyuan21", str(tmp_path), "--out", str(tmp_path / "out"), "--weights", "some/weights"])
    assert "--weights needs an image file: --image FILE, got None" in " ".join(capsys.readouterr().err.split())
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RuntimeError, match="weights some/weights need a CUDA device, and this machine has none"):
        Hunyuan21(tmp_path, weights="some/weights")
    with pytest.raises(FileNotFoundError, match=r"holds no hy3dshape"):
        Hunyuan21(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no hy3dgen"):
        Hunyuan2Mini(tmp_path)


def test_wrong_sign_mirrors_the_step():
    times, gram = np.array([0.0, 1.0, 2.0]), np.eye(3)
    right = Linear(1).weights(times[1:], 3.0, gram)
    wrong = drift.WrongSign(Linear(1)).weights(times[1:], 3.0, gram)
    assert np.allclose(right + wrong, [0, 2])
