"""TRELLIS.2: the upstream's own pipeline and samplers, patched, around small woken networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from forecache import schedule
from forecache.rules import Hermite, Linear
from forecache_adapters import trellis2 as adapter
from forecache_lab.controls import WrongSign
from forecache_lab.generators.reference import trellis2
from forecache_lab.metrics.combined import combined, fork_schedule
from upstream_helpers import check_objects_of_pictures

# network calls uncached, by stage: guidance is on at 10, 9 and 0 of the 12 steps
STRUCTURE, SHAPE, TEXTURE = {"cond": 12, "uncond": 10}, {"cond": 12, "uncond": 9}, {"cond": 12}
UNCACHED = {
    "512": {"sparse_structure": STRUCTURE, "shape_slat_512": SHAPE, "tex_slat_512": TEXTURE},
    "1024": {"sparse_structure": STRUCTURE, "shape_slat_1024": SHAPE, "tex_slat_1024": TEXTURE},
    "1024_cascade": {
        "sparse_structure": STRUCTURE, "shape_slat_512": SHAPE, "shape_slat_1024": SHAPE, "tex_slat_1024": TEXTURE,
    },
}  # fmt: skip
UNCACHED["1536_cascade"] = UNCACHED["1024_cascade"]
INTERVAL_2 = {10: {"cond": 8, "uncond": 7}, 9: {"cond": 8, "uncond": 6}, 0: {"cond": 8}}  # after 4, by guided steps
TOTAL = {"512": 55, "1024": 55, "1024_cascade": 76, "1536_cascade": 76}
STAGES = ("sparse_structure", "shape_slat_512", "tex_slat_512")


@pytest.fixture(scope="session")
def upstream(checkouts):
    return trellis2.load(checkouts("trellis2", patched=True))


@pytest.fixture(scope="session")
def shared(upstream):
    pipe = trellis2.build(upstream)
    torch.manual_seed(0)
    return pipe, pipe.sample_sparse_structure(pipe.get_cond([1], 512), 32)


@pytest.fixture
def pipe(shared, monkeypatch):
    """The pipeline without its decoders, which take most of the time; ``decoding`` puts them back."""
    monkeypatch.setattr(shared[0], "decode_latent", lambda *unused: None, raising=False)
    yield shared[0]
    adapter.disable(shared[0])


@pytest.fixture
def decoding(pipe, monkeypatch):
    monkeypatch.delattr(pipe, "decode_latent")


@pytest.fixture
def calls(pipe):
    """Network calls, counted at the networks."""
    seen: dict[str, int] = {}
    hooks = [
        network.register_forward_pre_hook(lambda *a, name=name: seen.update({name: seen.get(name, 0) + 1}))
        for name, network in pipe.models.items()
        if "flow_model" in name
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.fixture
def sample(pipe, shared, upstream):
    """``sample(stage, seed)``: the latent of one stage on fixed coordinates."""

    def run(stage: str, seed: int = 0, **options) -> torch.Tensor:
        cond, coords = pipe.get_cond([seed], 512), shared[1]
        torch.manual_seed(seed)
        if stage == "sparse_structure":
            noise = torch.randn(1, 4, 8, 8, 8)
            params = {**pipe.sparse_structure_sampler_params, **options, "verbose": False}
            sampler, network = pipe.sparse_structure_sampler, pipe.models["sparse_structure_flow_model"]
            return sampler.sample(network, noise, **cond, **params).samples
        if stage == "shape_slat_512":
            return pipe.sample_shape_slat(cond, pipe.models["shape_slat_flow_model_512"], coords, options).feats
        shape = upstream.SparseTensor(feats=torch.randn(len(coords), 8), coords=coords)
        return pipe.sample_tex_slat(cond, pipe.models["tex_slat_flow_model_512"], shape, options).feats

    return run


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


def generate(pipe, kind):
    return pipe.run(1, seed=1, preprocess_image=False, return_latent=True, pipeline_type=kind)


@pytest.mark.parametrize("kind", trellis2.PIPELINE_TYPES)
def test_calls_of_every_pipeline_type(pipe, calls, kind):
    """Uncached, a full schedule, and interval 2; a full schedule is bit-identical, stage by stage."""
    _, (shape, texture, _) = generate(pipe, kind)
    assert sum(calls.values()) == TOTAL[kind]
    with adapter.enabled(pipe, basis="dmd", interval=1) as handle:
        _, (full_shape, full_texture, _) = generate(pipe, kind)
    assert torch.equal(full_shape.feats, shape.feats) and torch.equal(full_texture.feats, texture.feats)
    assert {stage: trace.calls for stage, trace in handle.traces.items()} == UNCACHED[kind]
    calls.clear()
    with adapter.enabled(pipe, basis="linear", interval=2, warmup=4) as handle:
        generate(pipe, kind)
    found = {stage: trace.calls for stage, trace in handle.traces.items()}
    assert found == {stage: INTERVAL_2[each.get("uncond", 0)] for stage, each in UNCACHED[kind].items()}
    assert sum(calls.values()) == sum(trace.computed for trace in handle.traces.values())


def test_a_mesh_comes_out(pipe, upstream, decoding):
    if not upstream.mesh:
        pytest.skip("o-voxel is in the repository only, and that is not reachable: the dual grid gets no faces")
    with adapter.enabled(pipe, basis="linear", interval=2):
        (meshes, voxels), _ = generate(pipe, "512")
    assert len(meshes[0].faces) > 0 and len(voxels.feats) > 0


def test_stages_of_a_cascade_have_their_own_settings(pipe, calls):
    stages = {"shape_slat": {"interval": 3}, "shape_slat_1024": None}
    with adapter.enabled(pipe, basis="linear", interval=2, stages=stages) as handle:
        generate(pipe, "1024_cascade")
    assert calls == {
        "sparse_structure_flow_model": 13, "shape_slat_flow_model_512": 10, "shape_slat_flow_model_1024": 21,
        "tex_slat_flow_model_1024": 7,
    }  # fmt: skip
    assert handle.traces["shape_slat_1024"].notes == ["off: not asked for in this stage"]
    with pytest.raises(ValueError, match="stages must be among sparse_structure, shape_slat, tex_slat, shape_slat_512"):
        adapter.enable(pipe, stages={"slat": {}})


@pytest.mark.parametrize("stage", STAGES)
def test_drift_tells_right_from_wrong(pipe, sample, stage):
    """Linear < reuse < wrong sign; where guidance ends on the way, the combined velocity is worse than all of them."""
    drift: dict[str, list[float]] = {}
    computed = schedule.fixed_interval(range(12), 2, 2)
    attribute = "sparse_structure_sampler" if stage == "sparse_structure" else f"{stage.removesuffix('_512')}_sampler"
    for seed in range(3):
        reference = sample(stage, seed)
        for name, basis in {"linear": Linear(1), "reuse": "reuse", "wrong": WrongSign(Linear(1))}.items():
            with adapter.enabled(pipe, basis=basis, interval=2) as handle:
                drift.setdefault(name, []).append(relative(sample(stage, seed), reference))
        with combined(getattr(pipe, attribute), Linear(1), 12, computed):
            drift.setdefault("combined", []).append(relative(sample(stage, seed), reference))
    linear, reuse, wrong, control = (float(np.median(drift[k])) for k in ("linear", "reuse", "wrong", "combined"))
    assert linear < reuse < wrong, drift
    guided = UNCACHED["512"][stage].get("uncond", 0)
    assert handle.traces[stage].computed == len(computed) + sum(i < guided for i in computed)
    if guided:
        assert linear <= control / 5, drift
    else:  # one branch: the same forecast, but for the clock (step index against time)
        assert control < reuse, drift


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("steps", "interval"), [(12, 2), (12, 3), (25, 2), (25, 3)])
def test_no_worse_than_the_forks_with_as_many_calls(pipe, sample, stage, steps, interval):
    computed = fork_schedule(steps, interval)
    gap = max(interval, 3) if steps < 20 else interval
    attribute = "sparse_structure_sampler" if stage == "sparse_structure" else f"{stage.removesuffix('_512')}_sampler"
    ours, theirs = [], []
    for seed in range(2):
        reference = sample(stage, seed, steps=steps)
        with combined(getattr(pipe, attribute), Hermite(2, 0.5), steps, computed):
            theirs.append(relative(sample(stage, seed, steps=steps), reference))
        with adapter.enabled(pipe, basis="dmd", interval=gap, warmup=4) as handle:
            ours.append(relative(sample(stage, seed, steps=steps), reference))
    assert len(computed) == handle.traces[stage].calls["cond"]
    assert np.median(ours) <= np.median(theirs), (ours, theirs)


def test_texture_with_guidance_and_rescale(pipe, sample):
    """Strength 2.5 on [0.6, 0.9]: the second branch begins late, with a warm-up, and ends before the run does."""
    options = {"guidance_strength": 2.5, "guidance_rescale": 0.2}
    with adapter.enabled(pipe, basis="linear", interval=1) as handle:
        full = sample("tex_slat_512", **options)
    guided = handle.traces["tex_slat_512"].calls["uncond"]
    times = [step.index for step in handle.traces["tex_slat_512"].branches["uncond"].steps]
    assert 3 < guided < 12 and 0 not in times and 11 not in times
    assert torch.equal(full, sample("tex_slat_512", **options))
    drift = {}
    for name, basis in {"linear": Linear(1), "wrong": WrongSign(Linear(1))}.items():
        with adapter.enabled(pipe, basis=basis, interval=2) as handle:
            drift[name] = relative(sample("tex_slat_512", **options), full)
        trace = handle.traces["tex_slat_512"]
        expected = {*times[:2], *schedule.fixed_interval(range(12), 2, 2)} & set(times)
        assert [step.index for step in trace.branches["uncond"].steps if step.kind == "computed"] == sorted(expected)
        first = [step.kind for step in trace.branches["uncond"].steps][:2]
        assert first == ["computed", "computed"]
    assert drift["linear"] < drift["wrong"]


@pytest.mark.parametrize(
    ("strength", "uncached", "after"),
    [(1.0, {"cond": 12}, {"cond": 7}), (2.5, {"cond": 12, "uncond": 6}, {"cond": 7, "uncond": 4})],
)
def test_the_texturing_pipeline_on_a_given_mesh(upstream, strength, uncached, after):
    """Its own ``run``. The decoder finds the voxels of the mesh in the spatial cache of the sampled latent."""
    pipe, mesh = trellis2.build_texturing(upstream), trimesh.creation.icosphere(subdivisions=2)
    options = {"seed": 1, "resolution": 512, "preprocess_image": False}
    given = {"guidance_strength": strength}
    seen: list[torch.Tensor] = []
    pipe.models["tex_slat_flow_model_512"].register_forward_pre_hook(
        lambda net, args, kwargs: seen.append(kwargs["concat_cond"].feats), with_kwargs=True
    )

    def run(**settings):
        with adapter.enabled(pipe, **settings) as handle:
            colours = pipe.run(mesh.copy(), 3, tex_slat_sampler_params=given, **options)
        return colours, handle.traces["tex_slat_512"].calls

    reference = pipe.run(mesh.copy(), 3, tex_slat_sampler_params=given, **options)
    assert reference.feats.shape == (len(mesh.vertices), 6) and len(seen) == sum(uncached.values())
    full, calls = run(basis="dmd", interval=1)
    assert torch.equal(full.feats, reference.feats) and calls == uncached
    seen.clear()
    linear, calls = run(basis=Linear(1), interval=2)
    assert calls == after and len(seen) == sum(after.values())
    assert torch.equal(linear.coords, reference.coords) and all(torch.equal(each, seen[0]) for each in seen)
    wrong, _ = run(basis=WrongSign(Linear(1)), interval=2)
    assert 0 < relative(linear.feats, reference.feats) < relative(wrong.feats, reference.feats)


def test_rescale_stays_exact_on_forecast_steps(pipe, sample):
    """The rescale is that of the forecast branches at the sampler's own state, as the upstream's code makes it."""
    sampler, seen = pipe.sparse_structure_sampler, []
    inside = sampler._inference_model

    def watch(model, x_t, t, *args, **kwargs):
        out = inside(model, x_t, t, *args, **kwargs)
        branches = handle._runs[-1].server.histories
        if kwargs["guidance_interval"][0] <= t and len(branches) == 2 and handle._runs[-1].i in (2, 4, 6, 8):
            cond, uncond = (branches[name].trace.steps[-1].kind for name in ("cond", "uncond"))
            assert cond == uncond == "forecast"
            x_0 = sampler._pred_to_xstart(x_t, t, out)
            seen.append(float(x_0.std()))
        return out

    with adapter.enabled(pipe, basis="linear", interval=2) as handle:
        sampler._inference_model = watch
        try:
            strong = (sample("sparse_structure", guidance_rescale=1.0), list(seen))
            seen.clear()
            sample("sparse_structure", guidance_rescale=0.0)
        finally:
            del sampler._inference_model
    assert len(strong[1]) == 4 == len(seen)
    assert all(a < b for a, b in zip(strong[1], seen, strict=True)), "rescaled predictions have the branch's deviation"


def test_off_and_few_steps(pipe, sample):
    reference = sample("shape_slat_512", steps=6)
    with adapter.enabled(pipe, basis="linear", interval=2) as handle, pytest.warns(UserWarning, match="off: 6 steps"):
        assert torch.equal(sample("shape_slat_512", steps=6), reference)
    assert "off" in handle.traces["shape_slat_512"].notes[0]


@pytest.mark.long
def test_the_stage_session_writes_a_table(checkouts, tmp_path, monkeypatch, capsys):
    from forecache_lab import session
    from forecache_lab.generators.trellis2 import Trellis2

    monkeypatch.setattr(Trellis2, "grids", {"sparse_structure": (12,), "tex_slat_512": (12,)})
    checkout = str(checkouts("trellis2", patched=True))
    arguments = ["trellis2", checkout, "--basis", "hermite", "--seeds", "1", "--out", str(tmp_path)]
    assert session.main(arguments) == 0
    table = (tmp_path / "drift.md").read_text()
    assert "### sparse_structure, 12 steps, n = 1" in table and "| hermite, interval 2 | 15 |" in table
    assert "| control: combined velocity, interval 2 | 15 |" in table and "| control: the forks' Hermite" in table
    monkeypatch.setattr(
        "forecache_lab.session.stages.WrongSign", lambda rule: rule
    )  # control: then the session says that it tells nothing
    assert session.main(arguments) == 1
    assert "the wrong-sign control drifts no more" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        session.main([*arguments[:-1], checkout + "/LICENSE"])


def test_objects_of_pictures(checkouts):
    from forecache_lab.generators.trellis2 import Trellis2

    subject = Trellis2(checkouts("trellis2", patched=True))
    check_objects_of_pictures(subject)
