"""SAM 3D Objects: the upstream's own generator around the trained reference network, and how its drift is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecache.rules import Linear
from forecache_lab.generators.reference import PLANS, TEST_SEED, sam3d_latents, sam3d_trained, solids, trellis_latents
from forecache_lab.metrics import pose
from forecache_lab.metrics.combined import combined
from forecache_lab.metrics.relative import relative
from forecache_lab.session.measurement import Method, run, same, summary
from forecache_lab.session.stages import Stages
from upstream_helpers import check_objects_of_pictures

pytestmark = pytest.mark.long

CONDITIONS = range(TEST_SEED, TEST_SEED + 6)


def true_voxels(seed: int) -> torch.Tensor:
    return trellis_latents.occupied(solids.grid(solids.solid(seed)[1], trellis_latents.VOXELS, centres=True))


def voxels(leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    return trellis_latents.occupied(sam3d_latents.to_distances(leaves["shape"])[0])


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def errors(made: pose.Pose, truth: pose.Pose) -> list[float]:
    """Rotation in degrees, logarithm of the scale ratio, translation."""
    return [
        float(pose.rotation_angle(made.rotation, truth.rotation)),
        float(pose.scale_ratio(made.scale, truth.scale).log()),
        float(pose.translation_distance(made.translation, truth.translation)),
    ]


@pytest.fixture(scope="module")
def subject(checkouts):
    from forecache_lab.generators.sam3d import Sam3D

    return Sam3D(checkouts("sam3d", patched=True, source="wheel"))


@pytest.fixture(scope="module")
def sampled(subject):
    """Leaves by condition, uncached."""
    return {seed: subject.trained.sample_sparse_structure(seed) for seed in CONDITIONS}


def test_the_leaves_hold_the_posed_solid():
    for seed in CONDITIONS:
        distances = solids.grid(solids.solid(seed)[1], trellis_latents.VOXELS, centres=True)[None]
        shape = sam3d_latents.to_shape(distances)
        assert shape.shape == (1, sam3d_latents.TOKENS, sam3d_latents.CHANNELS)
        assert torch.equal(voxels({"shape": shape}), true_voxels(seed))
        truth = sam3d_latents.draw_pose(seed)
        leaves = sam3d_latents.to_leaves(truth)
        assert {name: leaf.shape[-1] for name, leaf in leaves.items()} == {
            name: sam3d_latents.LEAVES[name] for name in sam3d_latents.POSE
        }
        assert max(errors(sam3d_latents.to_pose(leaves), truth)) < 1e-3
        longer = {**leaves, "translation": leaves["translation"] + 0.1}
        assert max(errors(sam3d_latents.to_pose(longer), truth)) > 1e-3, "control: another leaf is another pose"


def test_measurements_tell_coarse_shape_and_pose_with_noise():
    leaves = [sam3d_trained.posed(seed) for seed in CONDITIONS]
    one, again = (sam3d_latents.measure(leaves[0], torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == (1, sam3d_latents.MEASURED)
    many = torch.cat([sam3d_latents.measure(leaves[0]) for _ in range(400)])
    exact = torch.cat([leaves[0]["shape"].mean(-1), *(leaves[0][name].flatten(1) for name in sam3d_latents.POSE)], 1)
    assert torch.allclose(many.mean(0), exact[0], atol=0.08)
    assert torch.allclose(many.std(0), torch.full((77,), sam3d_latents.NOISE), atol=0.05)
    assert (
        len({tuple(sam3d_latents.measure(each, torch.Generator().manual_seed(0))[0].tolist()) for each in leaves}) == 6
    )


def test_uncached_samples_follow_the_condition(sampled):
    """Against the posed solid that was measured, and against another."""
    seeds = list(CONDITIONS)
    right = [overlap(voxels(sampled[seed]), true_voxels(seed)) for seed in seeds]
    wrong = [overlap(voxels(sampled[seed]), true_voxels(seeds[k - 1])) for k, seed in enumerate(seeds)]
    assert np.median(right) > 0.35 > 2 * np.median(wrong), (right, wrong)
    assert all(r > w for r, w in zip(right, wrong, strict=True)), (right, wrong)
    made = {seed: sam3d_latents.to_pose(leaves) for seed, leaves in sampled.items()}
    mine = np.median([errors(made[seed], sam3d_latents.draw_pose(seed)) for seed in seeds], 0)
    others = np.median([errors(made[seed], sam3d_latents.draw_pose(seeds[k - 1])) for k, seed in enumerate(seeds)], 0)
    assert (mine < 0.5 * others).all(), (mine, others)


def test_the_network_is_awake(subject):
    """Its velocity depends on the time, on every leaf of the state and on the condition."""
    flow = subject.sampler("ss").reverse_fn.backbone
    torch.manual_seed(0)
    shapes = {
        name: (1, leaf.pos_emb.shape[0], leaf.input_layer.in_features) for name, leaf in flow.latent_mapping.items()
    }
    x = {name: torch.randn(shape) for name, shape in shapes.items()}
    cond, d = subject.trained.condition(TEST_SEED), torch.zeros(1)

    def velocity(x, t, cond):
        with torch.no_grad():
            made = flow(x, torch.tensor([t]), cond, d=d)
        return torch.cat([made[name].flatten() for name in sam3d_latents.POSE]), made["shape"].flatten()

    def change(*other):
        return [
            float((a - b).norm() / b.norm()) for a, b in zip(velocity(*other), velocity(x, 500.0, cond), strict=True)
        ]

    assert min(change(x, 700.0, cond)) > 0.02
    assert min(change(x, 500.0, 0 * cond)) > 0.02
    for name in x:
        moved = change({**x, name: x[name] + 3}, 500.0, cond)
        assert moved[0] > 0.01, name
        assert (moved[1] > 0.01) == (name == "shape"), "the pose does not reach the shape"


def test_the_combined_control_is_inert_where_it_computes_and_gone_afterwards(subject):
    reference = subject.sample("ss", 0, 25)
    with combined(subject.sampler("ss"), Linear(1), 25, range(25)):
        full = subject.sample("ss", 0, 25)
    with combined(subject.sampler("ss"), Linear(1), 25, [0, 1, *range(3, 25)]):
        skipped = subject.sample("ss", 0, 25)
    assert same(full, reference) and full.all_calls == reference.all_calls == 44
    assert not same(skipped, reference) and skipped.all_calls == 42
    assert same(subject.sample("ss", 0, 25), reference)


def test_forecasts_drift_a_third_of_the_combined_velocity(subject):
    """Interval 3 with guidance that ends on the way, at no more calls: the branches apart by rule, and the plan."""
    session = Stages(subject, "auto", None, None)
    rows = {m.label: m for m in session.methods("ss", 25)}
    names = "auto, interval 3", "plan, interval 3", "control: combined velocity, interval 3"
    found = {name: [] for name in names}
    for seed in range(4):
        reference = run(subject, "ss", seed, 25)
        for name in names:
            found[name].append(session.score("ss", seed, run(subject, "ss", seed, 25, rows[name]), reference))
    apart, plan, control = (summary(found[name]) for name in names)
    assert max(apart["calls"][0], plan["calls"][0]) <= control["calls"][0] == 20
    for drift in ("latent drift", "rotation, degrees", "translation"):
        assert plan[drift][0] < control[drift][0] / 3, drift
    for drift in ("latent drift", "rotation, degrees"):
        assert apart[drift][0] < control[drift][0] / 2, drift


def test_half_the_calls_drift_no_more_with_the_corrector(subject):
    drift = {None: [], False: []}
    for seed in range(4):
        reference = run(subject, "ss", seed, 25)
        for on, found in drift.items():
            method = Method("", {"calls": 13, "corrector": on})
            found.append(relative(run(subject, "ss", seed, 25, method).latent, reference.latent))
    assert np.median(drift[None]) <= 1.05 * np.median(drift[False]), drift


def test_a_shipped_plan_drifts_less_than_a_rule_with_as_many_calls_in_shape_and_pose(subject):
    plan = PLANS / "sam3d-ss-25-9.json"
    found = {}
    for name, settings in {"plan": {"plan": plan}, "dmd": {"basis": "dmd", "calls": 9}}.items():
        scores = []
        for seed in range(3):
            reference = run(subject, "ss", seed, 25)
            made = run(subject, "ss", seed, 25, Method(name, settings))
            scores.append(Stages(subject, "dmd", None, None).score("ss", seed, made, reference))
        found[name] = summary(scores)
    assert found["plan"]["calls"] == found["dmd"]["calls"]
    for drift in ("latent drift", "rotation, degrees", "translation"):
        assert found["plan"][drift][0] < 0.75 * found["dmd"][drift][0], (drift, found)
    with pytest.raises(ValueError, match="steps: plan 25, run 20"):
        run(subject, "ss", 0, 20, Method("", {"plan": plan}))


def test_objects_of_pictures(subject):
    check_objects_of_pictures(subject)
