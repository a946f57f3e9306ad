"""The instruments: solids, geometry metrics, the drift table, the demonstration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from forecache import Forecaster
from forecache.rules import Linear
from forecache_lab import demo, record, session
from forecache_lab.controls import WrongSign
from forecache_lab.generators.generated import Generated
from forecache_lab.generators.hunyuan2mini import Hunyuan2Mini
from forecache_lab.generators.hunyuan21 import Hunyuan21
from forecache_lab.generators.reference import hunyuan21, solids
from forecache_lab.metrics import geometry
from forecache_lab.session.main import measure, to_record
from forecache_lab.session.measurement import summary
from forecache_lab.session.one_stage import OneStage


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

    title, conditions = "toy", "CPU"
    grids, seeds = {"denoise": (20,)}, {"denoise": 3}

    def fewer(self, calls):
        return None, calls

    def sample(self, stage, seed, n, settings=None):
        x, calls = torch.full((1, 4), 0.3 + 0.01 * seed), 0
        cache = Forecaster(steps=n, **settings) if settings else None
        for i in range(n):

            def network(x=x, t=i / n):
                nonlocal calls
                calls += 1
                return (0.5 - x) * (1 + 3 * t * t)

            x = x + (network() if cache is None else cache.step(i, network)) / n
        mesh = trimesh.creation.icosphere(3, float(x[0, 0]))
        trace = {} if cache is None else {"network": record.steps(cache.trace)}
        return Generated({stage: x}, {stage: calls}, {stage: 1.0, "decode": 1.0}, mesh=mesh, trace=trace)


def test_drift_table_counts_and_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry, "TARGETS", 10_000)  # the table is tested here, not the measures
    monkeypatch.setattr(geometry, "VOXELS", 24)
    measured, said = OneStage(Ball(), "linear", [3, 4], 2), []
    made, scores = measure(measured, "denoise", 20, 3, said.append)
    rows = {label: summary(each, measured.higher) for label, each in scores.items()}
    rule, wrong = measured.control("denoise")
    assert rule == "linear, interval 4" and list(rows) == list(made)[1:] == said
    assert len(scores["linear, interval 3"]) == 3
    euler = {label: row["calls"][0] for label, row in rows.items() if label.startswith("Euler")}
    assert set(euler.values()) == {rows[f"linear, interval {k}"]["calls"][0] for k in (3, 4)}
    assert rows[rule]["latent drift"][0] < rows[wrong]["latent drift"][0]
    assert measured.check("denoise", rows) == []
    swapped = {**rows, rule: rows[wrong], wrong: rows[rule]}  # the control of the control: the check can fail
    assert measured.check("denoise", swapped) == ["the wrong-sign control drifts no more than the rule"]
    floor = measured.floor(made["uncached"])
    assert floor["volume IoU"] == 1 and floor["Chamfer"] < 0.02
    table = measured.table("shape", rows, floor, [each.all_calls for each in made["uncached"]])
    assert table.count("\n| ") == len(rows) + 3  # head, uncached and floor rows besides
    assert "| uncached | 20 | 1 | 1 | 0 | - |" in table
    kept = to_record(tmp_path, measured, "shape", made, scores, floor)
    assert {run.method for run in kept.runs} == set(made) and kept.runs[-1].values["denoise speed-up"] == 1.0
    assert all((tmp_path / run.mesh).is_file() for run in kept.runs)


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
    wrong = WrongSign(Linear(1)).weights(times[1:], 3.0, gram)
    assert np.allclose(right + wrong, [0, 2])
