"""Hunyuan3D-2 at two pins: the upstream's own pipeline, patched, around small random networks.

A process holds one ``hy3dgen``: that of the released package. Of the newest commit the pipeline, the schedulers and the
network are imported beside it, and one test runs the whole commit in a process of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import forecache_patches as patches
from forecache.rules import Linear
from forecache_adapters import hunyuan2 as adapter
from forecache_lab.controls import WrongSign
from forecache_lab.generators.hunyuan2mini import Hunyuan2Mini
from forecache_lab.generators.reference import TEST_SEED, hunyuan2, solids
from forecache_lab.generators.reference.pictures import PICTURE
from upstream_helpers import check_batch_items, check_corrector, check_objects_of_pictures, import_as, relative

STEPS = 24
SHAPEGEN = Path("hy3dgen", "shapegen")
HOOKED = "hy3dgen/shapegen/pipelines.py"
SOURCES = [("hunyuan2", "git"), ("hunyuan2-released", "git"), ("hunyuan2-released", "wheel")]


def series_of(name: str) -> patches.Series:
    return patches.load_series(patches.find(patches.load_lock(), name))


def inserted(name: str) -> list[list[str]]:
    """Lines that each patch of a series inserts, without indentation."""
    return [
        [line.decode().strip() for file in patch.files for part in file.insertions for line in part.lines]
        for patch in series_of(name).patches
    ]


# --- the patches ------------------------------------------------------------------------------------------------------
def test_all_pins_get_the_same_lines():
    newest, released = inserted("hunyuan2"), inserted("hunyuan2-released")
    assert newest == released and len(newest) == 2
    assert newest == [[line.replace("hunyuan21", "hunyuan2") for line in lines] for lines in inserted("hunyuan21")]
    assert newest != inserted("hunyuan21"), "control: the adapter differs"


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_the_series_applies_and_comes_out_again(checkouts, tmp_path, name, source):
    root = Path(shutil.copytree(checkouts(name, source=source), tmp_path / "copy"))
    series, before = series_of(name), (root / HOOKED).read_bytes()
    report = patches.check(series.upstream, patches.SERIES_ROOT, root)
    assert any("every level compiles" in fact for fact in report.facts)
    assert not report.remarks, "no inserted line is the upstream's"
    assert patches.apply(series, root).after == 2
    assert patches.blobs.blob_id((root / HOOKED).read_bytes()) == series.ids(HOOKED)[-1] != series.ids(HOOKED)[0]
    patches.revert(series, root)
    assert (root / HOOKED).read_bytes() == before


def test_a_patch_for_the_other_pin_is_refused(checkouts, tmp_path):
    root = Path(shutil.copytree(checkouts("hunyuan2-released", source="wheel"), tmp_path / "copy"))
    series, before = series_of("hunyuan2"), (root / HOOKED).read_bytes()
    with pytest.raises(patches.TreeError, match="is a checkout of hunyuan2-released, not of hunyuan2"):
        patches.apply(series, root)
    (root / ".forecache-upstream.json").unlink()
    with pytest.raises(patches.TreeError, match=f"is blob {patches.blobs.blob_id(before)}, the lock says"):
        patches.apply(series, root)
    assert (root / HOOKED).read_bytes() == before
    moved = patches.insertion.insert(before, series.patches[0].files[0].insertions)
    assert patches.blobs.blob_id(moved) not in series_of("hunyuan2-released").ids(HOOKED), (
        "control: by position alone it applies, and writes another file"
    )


def test_bump_carries_one_pin_onto_the_other(checkouts, tmp_path):
    root, released = checkouts("hunyuan2", source="git"), series_of("hunyuan2-released")
    bumped = patches.bump(series_of("hunyuan2"), released.upstream.commit, root, tmp_path)
    assert bumped.moved == (HOOKED,)
    for stored in released.patches:
        again = (bumped.folder / stored.name).read_text(encoding="utf-8")
        text = (released.folder / stored.name).read_text(encoding="utf-8")
        assert again == text.replace("Upstream: hunyuan2-released", "Upstream: hunyuan2")


# --- the sampler ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["hunyuan2-released", "hunyuan2"])
def upstream(request, checkouts) -> SimpleNamespace:
    """Classes of a pin by role, and ``Original``, the pipeline of the unpatched file."""
    torch.set_num_threads(1)
    source = "wheel" if request.param == "hunyuan2-released" else "git"
    classes = hunyuan2.load(checkouts("hunyuan2-released", patched=True, source="wheel"))
    unpatched = checkouts(request.param, source=source) / SHAPEGEN
    if request.param == "hunyuan2":
        newest, package = checkouts("hunyuan2", patched=True, source="git") / SHAPEGEN, "hy3dgen.shapegen"
        network = "models/denoisers/hunyuan3ddit"
        modules = [
            import_as(f"{package}.{name.replace('/', '.')}_newest", newest / f"{name}.py")
            for name in ("pipelines", "schedulers", network)
        ]
        for role, known in vars(classes).items():
            found = [vars(module)[known.__name__] for module in modules if known.__name__ in vars(module)]
            setattr(classes, role, found[0] if role != "Autoencoder" else known)
    original = import_as(f"hy3dgen.shapegen.{request.param}_original".replace("-", "_"), unpatched / "pipelines.py")
    classes.Original = original.Hunyuan3DDiTFlowMatchingPipeline
    return classes


@pytest.fixture
def pipe(upstream):
    return hunyuan2.build(upstream)


def picture(seed: int) -> torch.Tensor:
    return solids.picture(solids.solid(TEST_SEED + seed)[1], PICTURE)[None]


def run(pipe, seeds=(0,), steps=STEPS, **options):
    """Latents of one call for a batch of seeds."""
    return pipe(
        image=options.pop("image", None) or [picture(seed) for seed in seeds],
        num_inference_steps=steps, guidance_scale=options.pop("guidance", hunyuan2.GUIDANCE),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent", enable_pbar=False,
        **options,
    )  # fmt: skip


class Calls:
    """Batch sizes of a network's calls; the output of call ``spoil`` (from 0) is replaced."""

    def __init__(self, pipe, spoil: int | None = None) -> None:
        self.pipe, self.spoil, self.batches = pipe, spoil, []

    def _note(self, network, arguments, output):
        self.batches.append(len(arguments[0]))
        return torch.full_like(output, 123.0) if len(self.batches) - 1 == self.spoil else None

    def __enter__(self) -> list[int]:
        self.hook = self.pipe.model.register_forward_hook(self._note)
        return self.batches

    def __exit__(self, *unused) -> None:
        self.hook.remove()


def test_off_is_bit_identical_to_the_original_file(pipe, upstream):
    unpatched = object.__new__(upstream.Original)
    vars(unpatched).update(vars(pipe))
    ticks: dict[str, list] = {"original": [], "patched": []}

    def note(name):
        return lambda step, t, outputs: ticks[name].append((step, float(t), float(outputs.prev_sample.sum())))

    before = run(unpatched, callback=note("original"), callback_steps=1)
    assert torch.equal(before, run(pipe, callback=note("patched"), callback_steps=1))
    assert ticks["original"] == ticks["patched"] and len(ticks["patched"]) == STEPS
    with adapter.enabled(pipe, basis="reuse", interval=3):
        assert not torch.equal(before, run(pipe)), "control: on, it is another output"
    message = "is not patched; run `forecache patch apply hunyuan2 CHECKOUT` or .* hunyuan2-released CHECKOUT` on"
    with pytest.raises(RuntimeError, match=message):
        adapter.enable(unpatched)


def test_full_schedule_is_bit_identical_and_saves_the_still_step(pipe):
    with Calls(pipe) as batches:
        reference = run(pipe)
    assert batches == [2] * STEPS
    ticks = []
    with adapter.enabled(pipe, basis="dmd", interval=1) as handle, Calls(pipe) as batches:
        latent = run(pipe, callback=lambda *args: ticks.append(args[0]), callback_steps=1)
    assert torch.equal(latent, reference) and ticks == list(range(STEPS))
    assert len(batches) == STEPS - 1 == handle.trace.computed
    assert handle.trace.steps[-1].kind == "still"
    with Calls(pipe, spoil=STEPS - 1):
        assert torch.equal(run(pipe), reference), "the last call of the network moves nothing"
    with Calls(pipe, spoil=STEPS - 2):
        assert not torch.equal(run(pipe), reference), "control: the one before does"


@pytest.mark.parametrize("steps", [5, 20])
def test_the_consistency_scheduler_has_no_still_step(upstream, steps):
    turbo = hunyuan2.build(upstream, "turbo")
    with Calls(turbo) as batches:
        reference = run(turbo, steps=steps)
    assert batches == [1] * steps
    with adapter.enabled(turbo, basis="reuse", interval=1, few_steps=True) as handle, Calls(turbo) as batches:
        assert torch.equal(run(turbo, steps=steps), reference)
    assert len(batches) == steps == handle.trace.computed
    assert [step.kind for step in handle.trace.steps] == ["computed"] * steps
    with Calls(turbo, spoil=steps - 1):
        assert relative(run(turbo, steps=steps), reference) > 1, "control: leaving out the last call would show"
    with adapter.enabled(turbo, basis="linear", interval=3, warmup=2, few_steps=True) as handle:
        run(turbo, steps=steps)
    assert handle.trace.steps[-1].kind == "computed" and handle.trace.forecast > 0


def test_the_corrector_is_on_for_eulers_scheduler_alone(upstream):
    for variant, possible in (("mini", True), ("turbo", False)):
        made = hunyuan2.build(upstream, variant)
        enabled, steps = partial(adapter.enabled, made), partial(run, made, steps=12)
        check_corrector(enabled, steps, lambda handle: [handle.trace], possible, calls=6)


def test_turbo_switches_itself_off_and_says_why(upstream):
    turbo = hunyuan2.build(upstream, "turbo")
    reference = run(turbo, steps=5)
    off = pytest.warns(UserWarning, match="off: 5 steps, a distilled model's count")
    with adapter.enabled(turbo, basis="dmd", interval=3) as handle, Calls(turbo) as batches, off:
        assert torch.equal(run(turbo, steps=5), reference)
    assert len(batches) == 5
    assert handle.trace.notes == ["off: 5 steps, a distilled model's count (few_steps=True overrides)"]
    with adapter.enabled(turbo, basis="reuse", interval=3, few_steps=True) as handle, Calls(turbo) as batches:
        assert not torch.equal(run(turbo, steps=5), reference), "control: told to stay on, it does"
    assert len(batches) < 5 and not handle.trace.notes


@pytest.mark.parametrize(
    ("variant", "guidance", "batch", "told"),
    [("mini", 5.0, 2, 5.0), ("mini", 0.0, 2, 0.0), ("mini", -1.0, 1, None), ("fast", 5.0, 1, None)],
)
def test_guidance_of_every_kind(upstream, monkeypatch, variant, guidance, batch, told):
    pipe, begin, seen = hunyuan2.build(upstream, variant), adapter.Handle.begin, []

    def watched(self, scheduler, guidance_scale):
        seen.append(guidance_scale)
        return begin(self, scheduler, guidance_scale)

    monkeypatch.setattr(adapter.Handle, "begin", watched)
    reference, drift = run(pipe, guidance=guidance), {}
    for basis in (Linear(1), "reuse", WrongSign(Linear(1))):
        with adapter.enabled(pipe, basis=basis, interval=3, warmup=3), Calls(pipe) as batches:
            drift[basis] = relative(run(pipe, guidance=guidance), reference)
        assert set(batches) == {batch} and len(batches) < STEPS / 2
    linear, reuse, wrong = drift.values()
    assert linear < reuse < wrong, drift
    assert seen == [told] * 3


def test_batch_items_are_independent(pipe, monkeypatch):
    check_batch_items(adapter, pipe, run, monkeypatch)


def test_drift_tells_right_from_wrong(pipe):
    """Medians over conditions, 50 steps, 13 calls: every rule < reuse < wrong sign."""
    seeds, drift = range(3), {}
    references = [run(pipe, (seed,), 50) for seed in seeds]
    for name, basis in {
        "linear": Linear(1), "dmd": "dmd", "hermite": "hermite", "auto": "auto", "reuse": "reuse",
        "wrong": WrongSign(Linear(1)),
    }.items():  # fmt: skip
        with adapter.enabled(pipe, basis=basis, interval=5, warmup=4) as handle:
            drift[name] = float(np.median([relative(run(pipe, (s,), 50), references[s]) for s in seeds]))
        assert handle.trace.computed == 13
    reuse, wrong = drift.pop("reuse"), drift.pop("wrong")
    assert max(drift.values()) < 0.8 * reuse and reuse < 0.8 * wrong, (drift, reuse, wrong)


def test_multiview_runs_through_the_same_hook(upstream):
    pipe, context = hunyuan2.build(upstream, "multiview"), []
    hook = pipe.model.register_forward_pre_hook(lambda network, arguments: context.append(arguments[2]["main"].shape))
    views = {0: picture(0), 1: picture(1), 2: picture(2)}
    reference = run(pipe, image=[views])
    assert set(context) == {(2, 3 * 16, hunyuan2.CONTEXT)} and len(context) == STEPS
    assert not torch.equal(run(pipe, image=[views | {2: picture(3)}]), reference), "control: every view is seen"
    context.clear()
    with adapter.enabled(pipe, basis="dmd", interval=1):
        assert torch.equal(run(pipe, image=[views]), reference)
    assert len(context) == STEPS - 1
    drift = {}
    for basis in (Linear(1), WrongSign(Linear(1))):
        with adapter.enabled(pipe, basis=basis, interval=3, warmup=3):
            alone = run(pipe, image=[views])
            pair = run(pipe, (0, 0), image=[views, views])
        drift[basis] = relative(alone, reference)
        assert relative(pair, torch.cat([alone, alone])) < 1e-5
    right, wrong = drift.values()
    assert right < 0.5 * wrong
    hook.remove()


def test_published_methods(pipe):
    pipe.enable_hicache(interval=4, max_order=2, first_enhance=3, end_enhance=20, sigma=0.5)
    run(pipe)
    assert [s.index for s in pipe.forecache.trace.steps if s.kind == "computed"] == [0, 1, 2, 6, 10, 14, 18, 20, 21, 22]
    handle = pipe.enable_dmd(interval=5, first_enhance=4, history=6)
    with Calls(pipe) as batches:
        run(pipe)
    assert len(batches) == handle.trace.computed == 8
    pipe.disable_cache()
    pipe.disable_cache()
    with Calls(pipe) as batches:
        run(pipe)
    assert pipe.forecache is None and len(batches) == STEPS


def test_plans_name_the_generator(pipe):
    key = adapter.key(pipe, 5.0)
    assert key["generator"] == "hunyuan2" and key["guidance_scale"] == 5.0
    with torch.no_grad():
        pipe.model.final_layer.linear.bias.add_(1.0)
    assert adapter.key(pipe, 5.0)["weights"] != key["weights"], "control: other weights, another key"


# --- the whole commit, and meshes -------------------------------------------------------------------------------------
WHOLE = """
import sys, pathlib
from forecache_lab.generators.registry import GENERATORS
from forecache_lab.session.one_stage import OneStage
subject = GENERATORS["hunyuan2mini"].make(pathlib.Path(sys.argv[1]))
OneStage(subject, "linear", None, None).smoke()
sample = subject.sample("denoise", 0, 50, {"basis": "linear", "interval": 5})
print(subject.title, float(sample.latent.double().sum()), sample.mesh.volume, sep="|")
"""


def test_the_session_gives_the_same_sample_at_both_pins(checkouts):
    released = Hunyuan2Mini(checkouts("hunyuan2-released", patched=True, source="wheel"))
    assert released.title.startswith("Hunyuan3D-2 mini at cb4a040c6876 (wheel), pipeline around a small random network")
    sample, other = (released.sample("denoise", seed, 50, {"basis": "linear", "interval": 5}) for seed in (0, 1))
    assert sample.mesh.is_watertight and sample.all_calls < 20
    newest = checkouts("hunyuan2", patched=True, source="git")
    done = subprocess.run([sys.executable, "-c", WHOLE, str(newest)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "full schedule too, with 49 of 50 calls" in done.stdout
    title, latent, volume = done.stdout.splitlines()[-1].split("|")
    assert title.startswith("Hunyuan3D-2 mini at 9bcf30281453 (git), pipeline around a small random network")
    assert float(latent) == pytest.approx(float(sample.latent.double().sum()), rel=1e-5)
    assert float(volume) == pytest.approx(sample.mesh.volume, rel=1e-5)
    assert float(volume) != pytest.approx(other.mesh.volume, rel=1e-3), "control: another condition, another mesh"


def test_reference_refuses_what_it_cannot_build(upstream, checkouts, tmp_path):
    with pytest.raises(ValueError, match="variant must be one of mini, multiview, fast, turbo, got 'nano'"):
        hunyuan2.build(upstream, "nano")
    with pytest.raises(FileNotFoundError, match=r"holds no hy3dgen/shapegen/pipelines\.py"):
        hunyuan2.load(tmp_path)
    with pytest.raises(RuntimeError, match="is already imported; start a new process"):
        hunyuan2.load(checkouts("hunyuan2-released", source="wheel"))


def test_objects_of_pictures(checkouts):
    check_objects_of_pictures(Hunyuan2Mini(checkouts("hunyuan2-released", patched=True, source="wheel")), 4)
