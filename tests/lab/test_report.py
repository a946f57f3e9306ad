"""The report of a run folder: what it says, what it refuses, and how it behaves in a browser."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

import forecache_cli.main as cli
import forecache_lab
from forecache_lab import record, report
from forecache_lab.report import meshes, page, statistics
from lab_browser import chromium, requested
from lab_report_folder import METHODS, ball, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder, items=2, subdivisions=2)
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return report.write(folder)


def test_bootstrap_interval_is_that_of_the_median():
    values = np.random.default_rng(1).normal(5, 1, 200)
    found = statistics.summarise(values)
    wanted = 1.96 * 1.2533 / np.sqrt(200)  # of a normal sample's median
    assert found.low < 5 < found.high and found.high - found.low == pytest.approx(2 * wanted, rel=0.35)
    assert found == statistics.summarise(values), "seeded"
    assert statistics.summarise(values, higher=True).tail < found.median < found.tail
    assert statistics.summarise([1.0, 2.0]).low is None, "two objects have no interval"


def test_page_holds_everything_and_escapes(folder, made):
    text = made.read_text(encoding="utf-8")
    assert made.stat().st_size < page.LARGEST
    assert "A small run &lt;of&gt; balls" in text and "<of>" not in text
    body = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert {"drift-0-0", "timeline-0-0", "timeline-0-1", "stages-0"} <= body["figures"].keys()
    assert len(body["cards"]) == 2 * len(METHODS) and len(body["shapes"]) == 2 * len(METHODS) + 2
    drift = [float(d) for d in re.findall(r'data-drift="([^"]+)"', text)]
    assert drift == sorted(drift, reverse=True) and len(set(drift)) > 3, "worst first"


def test_simplified_mesh_keeps_its_distances():
    reference, mesh = ball(1, 0.0, 5), ball(1, 0.2, 5)
    shape = meshes.shape(mesh, 2000, reference)
    assert len(shape.mesh.faces) <= 2000 < len(mesh.faces) and shape.topology.watertight
    assert shape.distance.max() == pytest.approx(report_distance(mesh, reference), rel=0.1)
    assert meshes.shape(reference, 2000, reference).distance.max() == 0, "those of the full meshes"
    assert meshes.limit(1) == meshes.FACES and meshes.limit(10**6) == meshes.LEAST


def report_distance(mesh, reference):
    from forecache_lab.metrics import geometry

    return geometry.distances(mesh, reference).max()


@pytest.mark.parametrize(
    ("command", "module", "said"),
    [
        (
            "generate --model tiny:dit --prompts p.txt --out out",
            "forecache_cli.generate",
            "generate needs forecache_cli.generate",
        ),
        ("report out", "forecache_lab.report", "the report needs forecache_lab.report"),
        ("demo", "forecache_lab.demo", "the demo needs forecache_lab.demo"),
    ],
)
def test_a_command_says_which_extra_it_needs(command, module, said, monkeypatch):
    """A module of ours stands for one of an extra: what is imported already cannot be missing any more."""
    monkeypatch.delattr(forecache_lab, module.split(".")[-1], raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(cli.app, command.split())
    extra = "generate" if "generate" in command else "report"
    assert result.exit_code == 1
    assert " ".join(result.stderr.split()) == f"error: {said}: pip install '.[{extra}]' in forecache's checkout"


def break_json(file, text):
    file.write_text(text[: len(text) // 2])


def drop_key(file, text):
    body = json.loads(text)
    del body["tables"][0]["runs"][1]["item"]
    file.write_text(json.dumps(body))


def drop_drift(file, text):
    body = json.loads(text)
    del body["tables"][0]["runs"][1]["values"]["latent drift"]
    file.write_text(json.dumps(body))


def other_format(file, text):
    file.write_text(text.replace('"format":1', '"format":9'))


def outside(file, text):
    file.write_text(text.replace("meshes/", "../meshes/"))


def put(path, value):
    """A change of one field of the first run of a method."""

    def harm(file, text):
        body = json.loads(text)
        *way, last = path
        place = body["tables"][0]
        for key in way:
            place = place[key]
        place[last] = value
        file.write_text(json.dumps(body))

    return harm


RUN = ("runs", 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_json, r"run\.json is torn or no JSON"),
        (drop_key, "item"),
        (drop_drift, "values must hold 'latent drift'"),
        (other_format, "format must be 1, got 9"),
        (outside, "mesh must lie in the folder"),
        (lambda file, text: file.write_text("[" * 200_000), r"run\.json is torn or no JSON \(.*64 deep"),
        (lambda file, text: file.write_text(text.replace("20", "2" * 5000)), "a number has too many digits"),
        (lambda file, text: file.write_bytes(b"\xff" + text.encode()), "is torn or no JSON"),
        (lambda file, text: file.write_text("[1]"), "format must be 1, got None"),
        (put((*RUN, "mesh"), 5), r"tables\[0\].runs\[1\].mesh must be text, got 5"),
        (put((*RUN, "calls"), None), "calls must be an object, got None"),
        (put((*RUN, "calls"), {"x": 10**400}), "must be a number"),
        (put((*RUN, "trace"), [1]), "trace must be an object"),
        (put((*RUN, "trace"), {"a": [{"x": 1}]}), r"trace\['a'\]\[0\].index is missing"),
        (put((*RUN, "values"), {"latent drift": "x"}), "must be a number, got 'x'"),
        (put(("higher",), 3), "higher must be a list, got 3"),
        (put(("floor",), [1]), "floor must be an object"),
        (put(("floor",), {"Chamfer": "x"}), "must be a number, got 'x'"),
        (put(("runs",), None), "runs must be a list, got None"),
        (lambda file, text: file.unlink(), r"is no run folder: it holds no run\.json"),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(tmp_path, harm, said):
    write(tmp_path, items=1, subdivisions=1)
    file = tmp_path / record.FILE
    harm(file, file.read_text())
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 1 and re.search(said, result.stderr) and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_missing_and_a_torn_mesh_are_named_on_the_page(tmp_path):
    write(tmp_path, items=2, subdivisions=1)
    files = sorted((tmp_path / "meshes").glob("dmd*"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(tmp_path / "other.html")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert "2 meshes could not be shown" in text and f"meshes/{files[0].name}: the file is missing" in text
    assert f"meshes/{files[1].name}: cannot be read" in text and text.count("data-card=") == 2 * len(METHODS) - 2


def spoiled(mesh, value, which=3):
    mesh.vertices[which] = value
    return mesh


def torn(file):
    file.write_bytes(file.read_bytes()[:200])


def pipe(file):
    file.unlink()
    os.mkfifo(file)


MESHES = {
    "a vertex that is NaN": (lambda f: spoiled(ball(1, 0, 1), np.nan).export(f), "vertices that are not finite"),
    "a vertex that is infinite": (lambda f: spoiled(ball(1, 0, 1), np.inf).export(f), "vertices that are not finite"),
    "all vertices at one place": (lambda f: spoiled(ball(1, 0, 1), 0, ...).export(f), "has no extent"),
    "no faces": (lambda f: trimesh.Trimesh([[0, 0, 0]]).export(f), ""),
    "torn": (torn, "cannot be read"),
    "a pipe": (pipe, "is no file"),
}


@pytest.mark.parametrize("which", ["dmd, interval 3-0", "uncached-0"])
@pytest.mark.parametrize("what", MESHES)
def test_a_mesh_that_is_no_solid_is_named_on_the_page_and_the_others_are_shown(tmp_path, what, which):
    """The cached one takes one pair with it, the uncached one all of its object."""
    write(tmp_path, items=2, subdivisions=1)
    harm, why = MESHES[what]
    (file,) = (tmp_path / "meshes").glob(f"{which.replace(', ', '-').replace(' ', '_')}.glb")
    harm(file)
    text = report.write(tmp_path).read_text(encoding="utf-8")
    missing = re.search(r'id="missing">(.*?)</div>', text, re.DOTALL)[1]
    assert f"{file.name}: " in missing and why in missing
    assert text.count("data-card=") == 2 * len(METHODS) - (1 if which.startswith("dmd") else len(METHODS))


def test_a_mesh_that_fails_where_nobody_looked_is_named_too(tmp_path, monkeypatch):
    write(tmp_path, items=1, subdivisions=1)
    packed = meshes.packed

    def fails(each):
        if each.distance is not None:
            raise OverflowError("signed integer is less than minimum")
        return packed(each)

    monkeypatch.setattr(meshes, "packed", fails)
    text = report.write(tmp_path).read_text(encoding="utf-8")
    assert "3 meshes could not be shown" in text and "OverflowError: signed integer" in text


def test_names_are_text_on_the_page_in_its_plots_and_in_the_bar(tmp_path):
    odd = "a[/b]<b>%{x}</b> \ud83c &amp;"
    shown = "a[/b]&lt;b&gt;%{x}&lt;/b&gt; \\ud83c &amp;amp;"
    body = write(tmp_path, items=1, subdivisions=1)
    (table,) = body.tables
    runs = [replace(run, item=odd, method=run.method.replace("dmd, interval 3", odd)) for run in table.runs]
    record.write(tmp_path, replace(body, tables=[replace(table, name=odd, runs=runs)]))
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<b>{shown}</b>" in text and f"<h2>{shown} " in text and "<b>%{x}" not in text
    figures = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["figures"]
    for name in ("drift-0-0", "timeline-0-0", "stages-0"):
        said = json.dumps(figures[name])
        assert "a[/b]&lt;b&gt;&#37;{x}&lt;/b&gt;" in said and "<b>" not in said, name


def test_no_numbers_are_no_crash(tmp_path):
    body = write(tmp_path, items=2, subdivisions=1)
    body.tables[0].runs[1].values["latent drift"] = float("nan")
    body.tables[0].runs[2].values["latent drift"] = float("inf")
    record.write(tmp_path, body)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report.write(tmp_path).read_text(encoding="utf-8")
    assert 'data-drift="nan"' in text and "NaN" not in re.search(r'id="data">(.*?)</script>', text, re.S)[1]


def pixels(driver, side):
    """A scene as drawn."""
    return driver.find_element("id", side).screenshot_as_png


def wait(condition, seconds=40):
    """Until ``condition()`` is true; its value."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def test_in_a_browser(made, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    with chromium(tmp_path / "profile", 900, 700) as driver:
        driver.get(made.as_uri())
        drawn = "return document.querySelectorAll('#left canvas, #right canvas').length >= 2"
        assert wait(lambda: driver.execute_script(drawn)), "two meshes are drawn"
        for name in ("drift-0", "timeline-0", "stages-0"):
            marks = f"return document.querySelectorAll('#{name} .points path, #{name} .point path').length"
            assert driver.execute_script(marks) >= 3, name

        def eye(side):
            return driver.execute_script(f"return document.getElementById('{side}').layout.scene.camera.eye")

        before, picture = eye("right"), pixels(driver, "right")
        driver.find_element("id", "pair").send_keys(Keys.ARROW_LEFT)
        assert wait(lambda: eye("right") != before and eye("left") == eye("right")), "a key turns both"
        assert wait(lambda: pixels(driver, "right") != picture), "and the picture changes"
        before = eye("left")
        drag = ActionChains(driver, duration=50).move_to_element(driver.find_element("id", "right")).click_and_hold()
        drag.move_by_offset(60, 10).release().perform()
        assert wait(lambda: eye("right") != before and eye("left") == eye("right")), "a drag turns the other too"

        def press(selector):
            element = driver.find_element("css selector", selector)
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()

        def order():
            return [card.get_attribute("data-drift") for card in driver.find_elements("css selector", "#cards li")]

        worst = order()
        press("[data-sort=best]")
        assert order() == worst[::-1] != worst
        press("thead th:nth-child(2) button")
        calls = driver.execute_script(
            "return [...document.querySelectorAll('tbody td:nth-child(2)')].map(c => +c.dataset.value)"
        )
        assert calls == sorted(calls) and len(set(calls)) > 1

        driver.execute_script("document.body.focus(); window.scrollTo(0, 0)")
        reached = set()
        for _ in range(40):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            reached.add(driver.execute_script("return document.activeElement.id || document.activeElement.className"))
        assert {"theme", "column", "item", "pair", "next", "sort", "method", "card"} <= reached

        metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        assert wait(lambda: driver.execute_script(widths) == [400, 400]), driver.execute_script(widths)
        press("#theme")
        assert wait(lambda: driver.execute_script(
            "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('svg') && p.offsetHeight > 100)"
        )), "the plots are there in the other theme too"  # fmt: skip
        driver.save_screenshot(str(tmp_path / "narrow.png"))
        assert (tmp_path / "narrow.png").stat().st_size > 10_000
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
        assert requested(driver) == []
