"""The site: it builds without a warning, has what its readers look for, and asks nothing of a network."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forecache_docs import elsewhere
from forecache_docs.commands import commands
from lab_browser import chromium, requested

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
DOCUMENTED = (
    "forecache",
    "forecache.rules",
    "forecache.hicache",
    "forecache.hicache.tree",
    "forecache_patches",
    "forecache_adapters.hunyuan21",
    "forecache_adapters.hunyuan2",
    "forecache_adapters.trellis",
    "forecache_adapters.trellis2",
    "forecache_adapters.sam3d",
    "forecache_adapters.fastsam3d",
    "forecache_adapters.comfyui",
)


def build(source, out):
    """Runs Sphinx with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    result = build(ROOT / "docs", out)
    assert result.returncode == 0, result.stderr
    return out


def test_every_public_name_has_its_docstring(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        known = InventoryFile.load(file, "", lambda base, path: path)
    named = {name for kind, entries in known.items() if kind.startswith("py:") for name in entries}
    adapters = (site / "reference" / "adapters.html").read_text(encoding="utf-8")
    for module in DOCUMENTED:
        public = importlib.import_module(module)
        for name in (name for name in public.__all__ if not inspect.ismodule(getattr(public, name))):
            full = f"{module}.{name}"
            assert full in named or f'<span class="pre">{name}</span></code> is' in adapters, full
    for adapter in ("diffusers", "cache_dit"):
        assert {f"forecache_adapters.{adapter}.{name}" for name in ("enable", "enabled", "disable")} <= named
    assert "forecache.Nothing" not in named and len(named) > 200


def test_every_command_is_there_with_its_options(site):
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "cli.html").read_text(encoding="utf-8"))
    assert len(commands()) > 15
    for command in commands().values():
        assert f"forecache {' '.join(command.words)}" in page
        assert all(flag in page for flag in command.flags)
    assert "/tmp" not in page and str(ROOT) not in page, "no path of the machine that builds"


def test_pages_that_lie_elsewhere_are_linked_to(site):
    for origin, page in elsewhere.PAGES.items():
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert "The site shows" not in text and (ROOT / origin).exists()
    readme = (site / "project" / "readme.html").read_text(encoding="utf-8")
    assert 'href="../results.html"' in readme and 'href="submissions.html"' in readme
    assert 'href="project/submissions.html"' in (site / "patch.html").read_text(encoding="utf-8")


def test_a_file_that_is_no_page_is_handed_over():
    page = elsewhere.mend("[a](../tests/x.md#y) [b](results.md#y) [c](../README.md#y)", ROOT / "docs" / "p.md", "p")
    assert page == "[a](path:../tests/x.md) [b](results.md#y) [c](project/readme.md#y)"
    stub = elsewhere.mend("[a](docs/results.md)", ROOT / "README.md", "project/readme")
    assert stub == "[a](../results.md)"


def test_examples_stand_in_the_pages_as_they_are(site):
    for page, name in (
        ("basis", "twenty_line_basis"),
        ("adapter", "forty_line_adapter"),
        ("sampler", "superresolution"),
    ):
        shown = re.sub(r"<[^>]+>", "", (site / f"{page}.html").read_text(encoding="utf-8"))
        lines = (ROOT / "docs" / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        longest = max(lines, key=lambda line: len(line) * (not set(line) & set("<>&\"'")))
        assert longest.strip() in shown, name


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", text)
        assert loaded == [], page.name


def test_a_broken_link_or_reference_ends_the_build(tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text(
        (ROOT / "docs" / "conf.py")
        .read_text(encoding="utf-8")
        .replace('Path(__file__).parent / "_extensions"', f"Path({str(ROOT / 'docs' / '_extensions')!r})"),
        encoding="utf-8",
    )
    text = "# Page\n\n[x](nothing.md)\n\n```{eval-rst}\n:class:`forecache.Nothing`\n```\n"
    (source / "index.md").write_text(text, encoding="utf-8")
    result = build(source, tmp_path / "out")
    assert result.returncode != 0 and "nothing.md" in result.stderr and "forecache.Nothing" in result.stderr


def test_narrow_screens_need_no_sideways_scroll(site, tmp_path):
    with chromium(tmp_path, 390, 844) as page:
        metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for name in ("index", "results", "sampler", "reference/cli"):
            page.get((site / f"{name}.html").as_uri())
            assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), name
            assert page.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)"), name
        wide = "return document.querySelector('.table-wrapper table').scrollWidth > 390"
        page.get((site / "results.html").as_uri())
        assert page.execute_script(wide), "a table wider than the screen scrolls by itself"
        assert requested(page) == [] and not [e for e in page.get_log("browser") if e["level"] == "SEVERE"]
