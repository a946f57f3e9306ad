"""The folder bench: pairing, order, resuming, signals, and the errors of a user, on a toy generator."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import bench_toy
from forecache_cli.commands import bench as command
from forecache_cli.main import app
from forecache_lab import bench, report
from forecache_lab.bench import results
from forecache_lab.errors import UserError
from forecache_lab.generators.reference import PLANS
from forecache_lab.metrics import geometry
from forecache_lab.run_folder import SETTINGS

METHODS = ("dmd:interval=3,warmup=4", "wrong-dmd:interval=3,warmup=4", "uncached:steps=12")


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bench_toy.QUICK.items():
            patch.setattr(geometry, name, value)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Four pictures, one of them in a sub-folder, and what is no picture of an object."""
    folder = tmp_path_factory.mktemp("images")
    first, second = bench.write_samples(folder, 2)
    (folder / "more").mkdir()
    Image.open(first).rotate(180).save(folder / "more" / "left.PNG")
    Image.open(second).rotate(90).save(folder / "more" / "right.webp")
    Image.open(first).convert("RGB").save(folder / "opaque.jpg")
    Image.open(second).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirror.webp")
    shutil.copy(first, folder / "copy.png")
    (folder / "torn.png").write_bytes(first.read_bytes()[:200])
    Image.new("RGBA", (8, 8)).save(folder / "nothing.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def make(images, out, methods=METHODS, seeds=(0,), toy=None, **options):
    folder = bench.read_folder(images, options.pop("limit", None))
    return bench.Bench(toy or bench_toy.Toy(), bench.parse(methods), folder, seeds, out, **options)


def silent(*unused):
    pass


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "results").rglob("*.json")}


@pytest.fixture(scope="module")
def ran(images, tmp_path_factory):
    """A run over two seeds, and what the generator was asked for."""
    asked = []
    toy = bench_toy.Toy(note=asked.append)
    made = make(images, tmp_path_factory.mktemp("out"), seeds=(0, 1), toy=toy, shown=1)
    made.run(silent)
    text = bench.write(made)
    report.write(made.out)
    return made, text, asked


def test_pictures_and_what_is_none(images):
    folder = bench.read_folder(images)
    names = [picture.name for picture in folder.pictures]
    assert names == ["000-table", "001-chair", "mirror", "more/left", "more/right", "opaque"]
    assert set(folder.skipped) == {"copy.png", "torn.png", "nothing.png"}
    assert folder.skipped["copy.png"] == "the same file as 000-table.png"
    assert folder.skipped["torn.png"].startswith("cannot be read")
    assert [p.name for p in bench.read_folder(images, 2).pictures] == names[:2]
    assert folder.pictures[5].load().mode == "RGBA"


def test_a_folder_without_pictures_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="must be a folder of pictures"):
        bench.read_folder(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no picture"):
        bench.read_folder(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"no png")
    with pytest.raises(UserError, match=r"holds no picture .*torn.png: cannot be read"):
        bench.read_folder(tmp_path)


def test_the_table_tells_right_from_wrong(ran):
    made, text, _ = ran
    rows = {row["method"]: row for row in json.loads((made.out / "bench.json").read_text())["rows"]}
    rule, wrong, euler = rows.values()
    assert rule["method"] == "dmd, interval 3, warmup 4" and wrong["method"].startswith("control: dmd with the wrong")
    assert rule["latent drift"]["median"] < 0.3 * wrong["latent drift"]["median"]
    assert rule["latent drift"]["median"] < euler["latent drift"]["median"]
    assert {row["latent drift"]["n"] for row in rows.values()} == {6}, "objects, not runs"
    low, high = rule["latent drift"]["low"], rule["latent drift"]["high"]
    assert low <= rule["latent drift"]["median"] <= high
    assert "noise floor: the uncached mesh, sampled again | 6" in text and "torn.png: cannot be read" in text
    assert "differs from itself by 0 of the latent" in text
    for name in ("sampling speed-up", "total speed-up", "seconds saved", "Chamfer", "F@0.02", "volume IoU", "normals"):
        assert name in rule, name


def test_the_page_is_made_of_it(ran):
    made = ran[0]
    (table,) = report.load(made.out).tables
    runs = {(run.method, run.item): run for run in table.runs}
    assert len(runs) == 4 * 6 * 2
    run = runs["dmd, interval 3, warmup 4", "000-table, seed 0"]
    assert run.calls == {"denoise": 11} and set(run.seconds) == {"denoise", "decode", "rest"}
    assert (made.out / run.mesh).is_file() and len(run.trace["network"]) == bench_toy.STEPS
    assert runs["Euler, 12 steps", "opaque, seed 0"].calls == {"denoise": 12}
    assert table.floor["Chamfer"] > 0
    page = (made.out / "report.html").read_text(encoding="utf-8")
    assert "000-table, seed 0" in page
    for item in ("001-chair, seed 0", "000-table, seed 1"):
        hidden = runs["dmd, interval 3, warmup 4", item]
        assert hidden.mesh is None and not hidden.trace, "of the pictures that are shown alone"


def test_every_method_takes_every_place(ran):
    made = ran[0]
    places = Counter()
    for path in (made.out / "results").rglob("*.json"):
        result = results.load(path)
        places[result.method, result.place] += 1
    keys = [row.key for row in made.rows]
    assert {places[key, place] for key in keys for place in range(4)} == {3}, "12 pictures and seeds, 4 places"


@pytest.mark.parametrize("end_to_end", [False, True])
def test_later_stages_get_the_voxels_of_the_uncached_run(images, tmp_path, end_to_end):
    class Staged(bench_toy.Toy):
        paired = True

        def generate(self, picture, seed, settings=None, steps=None, given=None):
            handed.append((settings is None and steps is None, given is not None))
            return super().generate(picture, seed, settings, steps)

    handed: list[tuple[bool, bool]] = []
    made = make(images, tmp_path, METHODS[:2], toy=Staged(), end_to_end=end_to_end, limit=3)
    made.run(silent)
    assert {given for uncached, given in handed if uncached} == {False}
    assert {given for uncached, given in handed if not uncached} == {not end_to_end}
    first = {results.load(path).place for path in (tmp_path / "results").rglob("uncached.json")}
    assert first == ({0, 1, 2} if end_to_end else {0})
    own = "their own run" if end_to_end else "the uncached run"
    assert f"Later stages ran on the voxels of {own}." in bench.write(made)


def test_warm_up_runs_are_made_once_and_not_counted(ran):
    made, _, asked = ran
    counted = len(made.rows) * 6 * 2
    assert len(asked) == counted + len(made.rows) + 1, "one each, and the uncached one again for the pairing"


def test_the_same_noise_is_the_pair_and_another_seed_drifts(images):
    toy, picture = bench_toy.Toy(), bench.read_folder(images).pictures[0].load()
    first, again, other = (toy.generate(picture, seed).latents["denoise"] for seed in (0, 0, 1))
    rule = toy.generate(picture, 0, {"basis": "dmd", "interval": 3, "warmup": 4}).latents["denoise"]
    assert torch.equal(first, again)
    assert (rule - first).norm() < 0.3 * (other - first).norm()


def test_a_generator_that_draws_noise_of_its_own_is_refused(images, tmp_path):
    class Restless(bench_toy.Toy):
        def generate(self, picture, seed, *given, **more):
            return super().generate(picture, int(time.perf_counter_ns()), *given, **more)

    made = make(images, tmp_path, toy=Restless())
    with pytest.raises(UserError, match="two uncached runs with one noise differ by"):
        made.run(silent)
    assert not files(tmp_path)


def test_only_what_is_missing_is_made(ran, images, tmp_path):
    shutil.copytree(ran[0].out, tmp_path / "out")
    before, asked = files(tmp_path / "out"), []
    toy = bench_toy.Toy(note=asked.append)
    make(images, tmp_path / "out", seeds=(0, 1), toy=toy).run(silent)
    assert not asked and files(tmp_path / "out") == before
    gone = next(path for path in (tmp_path / "out" / "results").rglob("wrong*.json") if path.parent.name == "seed1")
    gone.unlink()
    (gone.parent / "wrong.json.99.partial").write_text("half")
    make(images, tmp_path / "out", seeds=(0, 1), toy=toy).run(silent)
    assert len(asked) == 3 + 2, "uncached, its repetition and the method warm up; then both are run"
    after = files(tmp_path / "out")
    assert after.keys() == before.keys(), "and the unfinished file is gone"
    changed = [name for name in after if after[name] != before[name]]
    assert changed == [gone.relative_to(tmp_path / "out").as_posix()]
    drift = [json.loads(each[changed[0]])["values"]["latent drift"] for each in (before, after)]
    assert drift[0] == drift[1]
    asked.clear()
    more = make(images, tmp_path / "out", (*METHODS, "auto:calls=8"), seeds=(0, 1), toy=toy)
    more.run(silent)
    assert {settings["basis"] for settings, _ in asked if settings} == {"auto"}
    assert files(tmp_path / "out").items() > after.items()


def test_pictures_are_known_by_their_content(ran, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    shutil.copytree(ran[0].out, tmp_path / "out")
    asked = []
    (tmp_path / "images" / "mirror.webp").rename(tmp_path / "images" / "renamed.webp")
    make(tmp_path / "images", tmp_path / "out", seeds=(0, 1), toy=bench_toy.Toy(note=asked.append)).run(silent)
    assert not asked
    Image.open(images / "opaque.jpg").rotate(180).save(tmp_path / "images" / "opaque.jpg")
    make(tmp_path / "images", tmp_path / "out", seeds=(0, 1), toy=bench_toy.Toy(note=asked.append)).run(silent)
    assert asked


def test_other_settings_are_refused_by_name(ran, images, tmp_path):
    shutil.copytree(ran[0].out, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds results of other settings \(steps: None there, 30 now\)"):
        make(images, tmp_path / "out", steps=30).run(silent)
    other = bench_toy.Toy()
    torch.nn.init.ones_(other.networks["denoise"].weight)
    with pytest.raises(UserError, match="networks: "):
        make(images, tmp_path / "out", toy=other).run(silent)
    (tmp_path / "out" / SETTINGS).write_text("{")
    with pytest.raises(UserError, match="torn or no JSON"):
        make(images, tmp_path / "out").run(silent)


def test_a_plan_for_another_grid_is_refused_before_anything_is_measured(images, tmp_path):
    plan = PLANS / "hunyuan21-11.json"
    with pytest.raises(UserError, match=r"--method plan, hunyuan21-11: .*steps: plan 50, run 24"):
        make(images, tmp_path, [f"plan={plan}"]).run(silent)
    assert not files(tmp_path)


def test_an_object_that_fails_is_named_and_the_others_go_on(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "images" / "aaa.png")
    made = make(tmp_path / "images", tmp_path / "out", limit=3)
    made.run(silent)
    text = bench.write(made)
    assert "Failed: aaa, uncached: white pictures have no surface." in text and "n = 2 object(s)" in text


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("fourier", r"--method fourier: must be BASIS:OPTION=VALUE.* got 'fourier'"),
        ("dmd:intervall=3", r"--method dmd:intervall=3: option must be among interval.*got 'intervall'"),
        ("dmd:interval=0", "--method dmd:interval=0: interval must be >= 1, got 0"),
        ("dmd:interval=3,calls=5", "give one of interval, calls"),
        ("dmd:interval", "options must be OPTION=VALUE, got 'interval'"),
        ("dmd:interval=3,interval=4", "interval is given twice"),
        ("wrong-fourier", "got 'fourier'"),
        ("plan=missing.json", r"--method plan=missing.json: .*cannot be read"),
        ("uncached", "is always run"),
        ("uncached:steps=0", "K >= 1"),
        ("own:interval=3", "option must be among basis, got 'interval'"),
    ],
)
def test_a_wrong_method_is_an_error_that_names_it(given, error):
    with pytest.raises(UserError, match=error):
        bench.parse(["dmd:interval=3", given])


def test_methods():
    with pytest.raises(UserError, match="asked for twice"):
        bench.parse(["dmd:interval=3", "dmd:interval=3"])
    keys = [method.key for method in bench.parse([*bench.DEFAULT, "own", "own:basis=dmd"])]
    assert len(set(keys)) == len(keys) and keys[1] == "dmd-interval3-warmup4"
    with pytest.raises(UserError, match="no rule of its own"):
        bench.Bench(bench_toy.Toy(), bench.parse(["own"]), bench.Folder((), {}), (0,), Path("out"))


def test_the_command(images, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load", lambda *given: bench_toy.Toy())
    out = tmp_path / "out"
    given = ["bench", "hunyuan21", "--images", str(images), "--out", str(out), "--checkout", "."]
    found = CliRunner().invoke(app, [*given, "--limit", "2", "--seeds", "0-1", "--shown", "1", "--method", METHODS[0]])
    assert found.exit_code == 0, found.output
    assert "n = 2 object(s), 2 seed(s) each" in found.output and (out / "report.html").is_file()
    assert len(files(out)) == 2 * 2 * 2
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(out), "--out", str(page)]).exit_code == 0 and page.is_file()
    for more, error in (
        (["--steps", "30"], "steps: None there, 30 now"),
        (["--method", "dmd:intervall=3"], "got 'intervall'"),
        (["--images", str(tmp_path / "nowhere")], "must be a folder of pictures"),
        (["--seeds", "3-1"], "--seeds must be like"),
    ):
        failed = CliRunner().invoke(app, [*given, *more])
        assert failed.exit_code == 1 and error in failed.output, failed.output
    assert "--images is missing" in CliRunner().invoke(app, ["bench", "hunyuan21"]).output


def test_sample_pictures_are_what_the_reference_networks_saw(tmp_path):
    from forecache_lab.generators.reference import TEST_SEED, pictures, solids

    assert CliRunner().invoke(app, ["bench", "--sample-images", str(tmp_path), "--limit", "2"]).exit_code == 0
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        seen = pictures.from_image(Image.open(path))
        own = solids.picture(solids.solid(TEST_SEED + k, solids.FAMILIES[k])[1])
        other = solids.picture(solids.solid(TEST_SEED + k, solids.FAMILIES[k + 1])[1])
        assert (seen - own).square().mean() < 0.1 * (seen - other).square().mean()


def test_no_checkout_and_no_weights_are_errors_that_say_what_to_do(tmp_path, capsys):
    with pytest.raises(UserError, match="forecache patch apply hunyuan2 DIR"):
        command.load("hunyuan2mini", tmp_path, None)
    with pytest.raises(UserError, match="only the small networks"):
        command.load("sam3d", tmp_path, "weights")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="holds no hy3dshape"):
            command.load("hunyuan21", tmp_path, "some/weights")
        assert "left out: the real weights some/weights" in capsys.readouterr().out


# --- signals --------------------------------------------------------------------------------------------------------
def start(images: Path, out: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    options = ["--images", str(images), "--out", str(out)]
    options += [word for method in METHODS for word in ("--method", method)]
    program = [sys.executable, str(Path(bench_toy.__file__)), *options]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True)


def whole(out: Path) -> dict[str, bytes]:
    """Results, each of which can be read, and nothing unfinished that the next run would take for one."""
    for path in (out / "results").rglob("*.json"):
        results.load(path)
    return files(out)


def test_a_run_that_is_broken_off_leaves_whole_results_and_goes_on(ran, images, tmp_path):
    """SIGINT, then SIGKILL, then to the end: results that were there stay as they were, and their runs are not made
    again; what is found is what an undisturbed run finds.
    """
    out, kept = tmp_path / "out", {}
    for number in (signal.SIGINT, signal.SIGKILL):
        process = start(images, out)
        runs = 0
        while runs < 5 + 6:  # the warm-up, and into the second picture
            line = process.stdout.readline()
            assert line, "it ended before"
            runs += line == "ready\n"
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        if number == signal.SIGINT:
            assert not list(out.rglob("*.partial")), "no unfinished file"
        now = whole(out)
        assert kept.items() <= now.items() and len(kept) < len(now) < 24, (number, len(kept), len(now))
        kept = now
    asked = []
    make(images, out, toy=bench_toy.Toy(note=asked.append)).run(silent)
    after = whole(out)
    assert kept.items() <= after.items() and len(after) == 24 and not list(out.rglob("*.partial"))
    assert len(asked) <= 24 - len(kept) + 5 + 1, "warm-up, and the uncached run of the picture that was broken off"
    expected = {name: body for name, body in files(ran[0].out).items() if "/seed0/" in name}
    drifts = [{name: json.loads(each[name])["values"] for name in expected} for each in (after, expected)]
    assert drifts[0] == drifts[1]


def test_statistics_are_over_objects_and_not_over_seeds():
    from forecache_lab.bench import table

    values = [("a", 1.0), ("a", 3.0), ("b", 10.0), ("b", 20.0), ("b", 60.0)]
    assert table.by_object(values) == [2.0, 20.0]
    assert np.median([value for _, value in values]) != np.median(table.by_object(values))


# --- what goes wrong --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    for name, path in zip("abcd", bench.write_samples(folder, 4), strict=True):
        path.rename(folder / f"{name}.png")
    return folder


class Spoiled(bench_toy.Toy):
    """``spoil`` gets what was made of the picture ``b`` under a method; with ``always``, of every run of it."""

    def __init__(self, folder: Path, spoil, always=False):
        super().__init__()
        self.seen, self.spoil, self.always = np.asarray(Image.open(folder / "b.png")), spoil, always

    def generate(self, picture, seed, settings=None, steps=None, given=None):
        made = super().generate(picture, seed, settings, steps, given)
        if (self.always or settings is not None) and np.array_equal(np.asarray(picture), self.seen):
            self.spoil(made)
        return made


def raised(error):
    def spoil(made):
        raise error

    return spoil


def vertices(value):
    def spoil(made):
        changed = made.mesh.vertices.copy()
        changed[3] = value
        made.mesh.vertices = changed

    return spoil


def no_extent(made):
    made.mesh.vertices = made.mesh.vertices * 0


def no_number(made):
    made.latents["denoise"].fill_(np.nan)


def no_faces(made):
    made.mesh.faces = made.mesh.faces[:0]


FULL = "CUDA out of memory"
ODD = {  # what is done to the object, why it failed, whether it is tried again
    "out of memory": (raised(torch.OutOfMemoryError(FULL)), f"OutOfMemoryError: {FULL}", True),
    "an error": (raised(RuntimeError("boom")), "RuntimeError: boom", True),
    "a ValueError": (raised(ValueError("x must be finite")), "ValueError: x must be finite", True),
    "a vertex that is NaN": (vertices(np.nan), "its mesh has vertices that are not finite", False),
    "a vertex that is infinite": (vertices(np.inf), "its mesh has vertices that are not finite", False),
    "a mesh without extent": (no_extent, "its mesh has no extent", False),
    "a mesh without faces": (no_faces, "its mesh has no faces", False),
    "a latent that is NaN": (no_number, "the latent of denoise is not finite", False),
}


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("what", ODD)
def test_one_bad_object_is_named_and_ends_nothing(four, tmp_path, what, always):
    """An error is tried again by the same command, another object than none is the generator's last word."""
    spoil, why, again = ODD[what]
    made = make(four, tmp_path, METHODS[:1], toy=Spoiled(four, spoil, always))
    assert made.run(silent) == (2 if always else 1) * again
    text = bench.write(made)
    report.write(tmp_path)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["latent drift"]["n"] == 3 and np.isfinite(row["latent drift"]["median"])
    failed = json.loads((tmp_path / "bench.json").read_text())["failed"]
    named = ["b, uncached: ", "b, dmd-interval3-warmup4: its uncached run failed: "][: 2 if always else 0]
    assert len(failed) == max(len(named), 1) and all(why in each for each in failed)
    assert all(
        each.startswith(name) for each, name in zip(failed, named or ["b, dmd-interval3-warmup4: "], strict=True)
    )
    assert why in text and ("Traceback" in (tmp_path / bench.LOG).read_text() if again else True)
    asked: list[object] = []
    healed = make(four, tmp_path, METHODS[:1], toy=bench_toy.Toy(note=asked.append))
    assert healed.run(silent) == 0 and bool(asked) == again, (
        "the same command makes what an error kept from being there"
    )
    bench.write(healed)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["latent drift"]["n"] == 3 + again


def test_the_first_picture_may_be_the_bad_one(four, tmp_path):
    """There a ValueError could be about the method: another picture tells."""
    shutil.copytree(four, tmp_path / "images")
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "0.png")
    spoiled = Spoiled(four, raised(ValueError("x must be finite")))
    made = make(tmp_path / "images", tmp_path / "out", METHODS[:1], toy=spoiled)
    assert made.run(silent) == 1 and "Failed: 0, dmd-interval3-warmup4: ValueError: x must be" in bench.write(made)

    class Refused(bench_toy.Toy):
        def generate(self, picture, seed, settings=None, steps=None, given=None):
            if settings is not None:
                raise ValueError("not with this scheduler")
            return super().generate(picture, seed, settings, steps, given)

    with pytest.raises(UserError, match="--method dmd, interval 3, warmup 4: not with this scheduler"):
        make(four, tmp_path / "refused", METHODS[:1], toy=Refused()).run(silent)


def test_the_command_says_what_failed_and_goes_on_with_it(four, tmp_path, monkeypatch):
    given = ["bench", "hunyuan21", "--images", str(four), "--out", str(tmp_path), "--checkout", "."]
    given += ["--method", METHODS[0]]
    monkeypatch.setattr(command, "load", lambda *unused: Spoiled(four, raised(RuntimeError("boom"))))
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 1 and "1 runs failed by an error" in found.output, found.output
    assert (tmp_path / "report.html").is_file()
    monkeypatch.setattr(command, "load", lambda *unused: bench_toy.Toy())
    assert CliRunner().invoke(app, given).exit_code == 0


def test_a_picture_that_is_gone_or_torn_by_now(four, tmp_path):
    shutil.copytree(four, tmp_path / "images")
    made = make(tmp_path / "images", tmp_path / "out", METHODS[:1])
    (tmp_path / "images" / "b.png").unlink()
    (tmp_path / "images" / "c.png").write_bytes(b"torn")
    assert made.run(silent) == 4 and "n = 2 object(s)" in bench.write(made)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b"\xff", None])
def test_a_result_that_was_damaged_is_made_again(ran, images, tmp_path, body):
    shutil.copytree(ran[0].out, tmp_path / "out")
    path = next((tmp_path / "out" / "results").rglob("dmd*.json"))
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"seed":', b'"seeds":') if body is None else body)
    with pytest.raises(UserError, match="the same command makes it again"):
        results.load(path)
    make(images, tmp_path / "out", seeds=(0, 1)).run(silent)
    assert results.load(path).values == results.Result(**json.loads(before)).values


def test_a_bench_that_found_the_disk_full_or_was_killed_in_its_first_write_goes_on(four, tmp_path, monkeypatch):
    given = ["bench", "hunyuan21", "--images", str(four), "--out", str(tmp_path / "out"), "--checkout", "."]
    given += ["--method", METHODS[0]]
    monkeypatch.setattr(command, "load", lambda *unused: bench_toy.Toy())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", raised_by_the_disk)
        found = CliRunner().invoke(app, given)
    assert found.exit_code == 1 and found.stderr.startswith("error: No space left"), found.output
    assert found.stderr.count("\n") == 1 and not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / f"{SETTINGS}.99.partial").write_text('{"gen')  # a kill leaves this
    assert CliRunner().invoke(app, given).exit_code == 0
    assert not list((tmp_path / "out").rglob("*.partial"))


def raised_by_the_disk(*unused, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NAMES = [
    b"a[/b].png", b"[red]x.png", b"caf\xe9.png", b"a|b.png", b"line\nbreak.png", b"<script>x<!--.png",
    b"%{x}.png", b"\x1b[2J.png",
]  # fmt: skip


def test_pictures_may_have_any_name(four, tmp_path, monkeypatch):
    """In the bar, in Markdown, on the page and in its plots; JSON keeps the exact name."""
    for k, name in enumerate(NAMES):
        path = tmp_path / "images" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(four / "a.png").rotate(7 * k).save(path)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "images" / "![x](http:|evil|x).png")
    (tmp_path / "images" / "torn <b>|x|.png").write_bytes(b"no")
    monkeypatch.setattr(command, "load", lambda *unused: bench_toy.Toy())
    out = tmp_path / "out \x1b[2J\udce9"
    given = ["bench", "hunyuan21", "--images", str(tmp_path / "images"), "--out", str(out)]
    found = CliRunner().invoke(app, [*given, "--checkout", ".", "--method", METHODS[0]])
    assert found.exit_code == 0, found.output
    assert "\x1b" not in found.output and r"out \x1b[2J\udce9" in found.output
    text = (out / "bench.md").read_text(encoding="utf-8")
    assert r"Failed: \!\[x\](http:\|evil\|x), uncached: white pictures have no surface." in text
    assert r"Skipped: torn &lt;b&gt;\|x\|.png: cannot be read" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>a[/b]</b>" in page and "<b>caf\\udce9</b>" in page, "Jinja's escaping, and what UTF-8 has"
    assert "<b>&lt;script&gt;x&lt;!--</b>" in page and "<script>x" not in page
    (table,) = report.load(out).tables
    assert {os.fsencode(run.item) + b".png" for run in table.runs} == set(NAMES)


def test_two_pictures_that_differ_in_their_ending_are_two_objects(four, tmp_path):
    shutil.copy(four / "a.png", tmp_path / "a.png")
    Image.open(four / "b.png").convert("RGB").save(tmp_path / "a.jpg")
    assert [picture.name for picture in bench.read_folder(tmp_path).pictures] == ["a", "a.png"]


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "9" * 5000, "9" * 400, "NaN", "1e999", "null", "[]", "{}", "\ud800", "-1", '"', "true"]
)
def test_odd_values_of_a_method_are_refused_by_name(value):
    """Or they are what the option takes, as history=true is not."""
    for option in ("interval", "warmup", "calls", "end", "history", "order", "sigma"):
        with contextlib.suppress(UserError):
            bench.parse([f"dmd:{option}={value}"])
