"""TRELLIS: the upstream's own pipeline around the trained reference networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecache_lab.generators.reference import PLANS, TEST_SEED, solids, trellis, trellis_latents
from upstream_helpers import check_objects_of_pictures, relative

pytestmark = pytest.mark.long

STEPS = 12
SOLIDS = range(6)


def solid(k: int) -> solids.Distance:
    """A test solid of each family."""
    return solids.solid(TEST_SEED + k, solids.FAMILIES[k])[1]


def voxels(coords: torch.Tensor) -> torch.Tensor:
    grid = torch.zeros([trellis_latents.VOXELS] * 3, dtype=torch.bool)
    grid[coords[:, 1:].long().unbind(1)] = True
    return grid


def true_voxels(k: int) -> torch.Tensor:
    coarse = solids.grid(solid(k), trellis_latents.VOXELS, centres=True)
    return trellis_latents.occupied(coarse)


def true_coords(k: int) -> torch.Tensor:
    return true_voxels(k)[None].argwhere().int()


def true_feats(k: int) -> torch.Tensor:
    fine = solids.grid(solid(k), 2 * trellis_latents.VOXELS, centres=True)
    return trellis_latents.to_feats(fine[None], true_coords(k))


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def pipe(checkouts):
    return trellis.build_reference(trellis.load(checkouts("trellis", patched=True, source="wheel")))


def structure(pipe, k: int, **settings) -> torch.Tensor:
    """Coords ``[N, 4]`` of the voxels sampled for the picture of solid ``k``."""
    torch.manual_seed(k)
    cond = pipe.get_cond([solids.picture(solid(k))])
    return pipe.sample_sparse_structure(cond, 1, {"steps": STEPS, **settings})


def slat(pipe, k: int, picture: torch.Tensor, **settings) -> torch.Tensor:
    """Distances ``[N, 8]`` sampled for the true voxels of solid ``k``."""
    torch.manual_seed(k)
    return pipe.sample_slat(pipe.get_cond([picture]), true_coords(k), {"steps": STEPS, **settings}).feats


def test_the_latents_hold_the_solid():
    for k in SOLIDS:
        coarse = solids.grid(solid(k), trellis_latents.VOXELS, centres=True)[None]
        logits = trellis_latents.StructureDecoder()(trellis_latents.to_structure(coarse))
        assert logits.shape == (1, 1, 16, 16, 16) and torch.equal(logits[0, 0] > 0, true_voxels(k))
        fine = solids.grid(solid(k), 2 * trellis_latents.VOXELS, centres=True)
        filled = trellis_latents.to_grid(true_feats(k), true_coords(k))[0]
        assert torch.equal(filled < 0, fine < 0), "no part inside is outside the occupied voxels"
        mesh = trellis_latents.to_mesh(filled)
        assert mesh.is_watertight and mesh.volume == pytest.approx(float((fine < 0).float().mean() * 8), rel=0.15)
        depth = solid(k)(torch.tensor(mesh.vertices, dtype=torch.float32)).abs()
        assert depth.median() < 0.01
    assert trellis_latents.to_mesh(torch.ones(32, 32, 32)).is_empty


def test_uncached_voxels_are_the_solids_in_the_pictures(pipe):
    made = [voxels(structure(pipe, k)) for k in SOLIDS]
    right = [overlap(made[k], true_voxels(k)) for k in SOLIDS]
    wrong = [overlap(made[k], true_voxels((k + 1) % len(SOLIDS))) for k in SOLIDS]
    assert np.median(right) > 0.6 > np.median(wrong), (right, wrong)
    assert all(r > w for r, w in zip(right, wrong, strict=True)), (right, wrong)


def test_uncached_structured_latents_are_the_distances_of_the_solids(pipe):
    """On true voxels; the controls are the mean (error 1) and the distances of another voxel."""
    errors, overlaps, others = [], [], []
    for k in SOLIDS:
        made, truth = slat(pipe, k, solids.picture(solid(k))), true_feats(k)
        shuffled = made[torch.randperm(len(made))]
        errors.append(float((made - truth).square().mean() / truth.var()))
        grids = [trellis_latents.to_grid(feats, true_coords(k))[0] < 0 for feats in (made, shuffled, truth)]
        overlaps.append(overlap(grids[0], grids[2]))
        others.append(overlap(grids[1], grids[2]))
    assert np.median(errors) < 0.25, errors
    assert np.median(overlaps) > 0.7 > np.median(others) + 0.1, (overlaps, others)


def test_run_ends_in_a_mesh_and_repeats_bit_for_bit(pipe):
    picture = solids.picture(solid(0))
    options = {"sparse_structure_sampler_params": {"steps": STEPS}, "slat_sampler_params": {"steps": STEPS}}
    first, second, other = (pipe.run(picture, seed=seed, **options) for seed in (3, 3, 4))
    (mesh,) = first["mesh"]
    assert len(mesh.faces) > 500
    assert np.abs(mesh.vertices).max() <= 1
    assert torch.equal(first["slat"].coords, second["slat"].coords)
    assert torch.equal(first["slat"].feats, second["slat"].feats)
    assert not np.array_equal(other["mesh"][0].vertices, mesh.vertices)


def test_the_picture_and_its_guidance_change_the_sample(pipe):
    weak, strong = (structure(pipe, 1, cfg_strength=strength) for strength in (0.0, trellis.GUIDANCE))
    assert not torch.equal(weak, strong)
    right, wrong, unguided = (
        slat(pipe, 1, solids.picture(solid(k)), cfg_strength=strength)
        for k, strength in ((1, trellis.GUIDANCE), (2, trellis.GUIDANCE), (1, 0.0))
    )
    assert not torch.equal(right, wrong) and not torch.equal(right, unguided)


@pytest.mark.parametrize(("stage", "steps", "budget"), [("sparse_structure", 25, 9), ("slat", 12, 6)])
def test_shipped_plans_drift_less_than_auto_with_as_many_calls(checkouts, stage, steps, budget):
    from forecache_lab.generators.trellis import Trellis
    from forecache_lab.session.measurement import Method, run

    subject = Trellis(checkouts("trellis", patched=True, source="wheel"))
    plan = PLANS / f"trellis-{stage}-{steps}-{budget}.json"
    drift, calls = {}, {}
    for name, settings in {"plan": {"plan": plan}, "auto": {"calls": budget}}.items():
        found = []
        for seed in range(4):
            reference = run(subject, stage, seed, steps)
            output = run(subject, stage, seed, steps, Method(name, settings))
            found.append(relative(output.latent, reference.latent))
            calls[name] = output.all_calls
        drift[name] = float(np.median(found))
    assert calls["plan"] <= calls["auto"] and drift["plan"] < 0.75 * drift["auto"], (drift, calls)
    with pytest.raises(ValueError, match=f"steps: plan {steps}, run 20"):
        run(subject, stage, 0, 20, Method("", {"plan": plan}))


@pytest.mark.parametrize(("stage", "calls"), [("sparse_structure", 6), ("slat", 6)])
def test_half_the_calls_drift_no_more_with_the_corrector(checkouts, stage, calls):
    from forecache_lab.generators.trellis import Trellis
    from forecache_lab.session.measurement import Method, run

    subject, drift = Trellis(checkouts("trellis", patched=True, source="wheel")), {None: [], False: []}
    for seed in range(3):
        reference = run(subject, stage, seed, STEPS)
        for on, found in drift.items():
            method = Method("", {"calls": calls, "corrector": on})
            found.append(relative(run(subject, stage, seed, STEPS, method).latent, reference.latent))
    assert np.median(drift[None]) <= 1.05 * np.median(drift[False]), drift


def test_the_edge_of_guidance_costs_the_branches_a_fifth_of_the_combined_velocity(checkouts):
    """The structure stage at the application's strength, with as many calls."""
    from benchmarks.studies import edge
    from forecache_lab.generators.trellis import Trellis

    subject = Trellis(checkouts("trellis", patched=True, source="wheel"))
    rows = edge.measure(subject, "sparse_structure", STEPS, 7.5, 2)
    calls = {name: spent for name, (spent, _) in rows.items()}
    drift = {name: float(np.median(found)) for name, (_, found) in rows.items()}
    assert list(calls.values()) == [21, 21, 15, 15, 14]
    assert drift["edge: apart"] <= drift["edge: combined"] / 5, drift
    assert drift["interval 2: apart"] <= drift["interval 2: combined"] / 2, drift


def test_objects_of_pictures(checkouts):
    from forecache_lab.generators.trellis import Trellis

    check_objects_of_pictures(Trellis(checkouts("trellis", patched=True, source="wheel")))
