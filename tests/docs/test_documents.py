"""Pages cannot go stale: what they name exists, and the checks see what was made wrong on purpose."""

from __future__ import annotations

import document_checks as checks
import pytest
from document_checks import ROOT, Page

MADE_UP = ROOT / "docs" / "made_up.md"
CHECKS = (checks.check_commands, checks.check_links, checks.check_python)


@pytest.mark.parametrize("file", checks.pages(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(file):
    page = Page(file)
    assert [problem for check in CHECKS for problem in check(page)] == []


@pytest.mark.parametrize("check", [checks.check_messages, checks.check_tested])
def test_messages_of_the_troubleshooting_page_exist_and_are_tested(check):
    assert check(Page(ROOT / "docs" / "troubleshooting.md")) == []


def test_the_readme_is_read_in_three_minutes():
    assert len(Page(ROOT / "README.md").text.splitlines()) <= 150


@pytest.mark.parametrize("name", ["frontier", "results", "zoo"])
def test_a_page_of_findings_is_short(name):
    """The tables of all rows are in benchmarks/results."""
    lines = Page(ROOT / "docs" / f"{name}.md").text.splitlines()
    assert len(" ".join(lines).split()) <= 2500 and sum(line.startswith("|") for line in lines) <= 30


def test_pages_are_read_at_all():
    readme, generate = Page(ROOT / "README.md"), Page(ROOT / "docs" / "generate.md")
    lines = [" ".join(words) for page in (readme, generate) for words in checks.command_lines(page)]
    assert "pip install nox" in lines and "nox -s hunyuan21_dmd" in lines
    assert any(line.startswith("forecache generate --model black-forest-labs/FLUX.1-dev") for line in lines)
    assert any(line.endswith("--steps 50 --calls 18 --set true_cfg_scale=4.0") for line in lines), "continued lines"
    assert len([1 for language, _ in readme.blocks if language == "python"]) >= 3 and len(readme.links) > 5
    assert {"tests", "docs", "demo", "hunyuan21_dmd", "pr_cachedit"} <= checks.sessions()
    assert ("patch", "apply") in checks.commands() and "--lock" in checks.commands()["patch", "apply"].flags


WRONG = {
    "    forecache report out/x --no-such": "no option --no-such",
    "    forecache generate --model m --prompts p.txt \\\n        --basiss dmd": "no option --basiss",
    "    forecache patch aply hunyuan21 DIR": "patch aply: no such command",
    "`forecache nothing DIR`": "nothing: no such command",
    "`forecache pr list|biuld`": "biuld: no such command",
    "`--refinee 1`": "--refinee: no command has it",
    "    python -m forecache_cli report --no-such": "no option --no-such",
    "    nox -s no_such_session": "no_such_session: no such session",
    "    pip install nox && nox -s lint no_such": "no_such: no such session",
    "sessions `hunyuan21_{dmd,nothing}`": "hunyuan21_nothing: no such session",
    "    nox -s hunyuan21_dmd -- --sourcee git": "no option --sourcee",
    '    pip install ".[nothing]"': "no extra nothing",
    "`python -m forecache_lab.nothing`": "no such module",
    "`python -m benchmarks.studies.plans X --no-such 3`": "no option --no-such",
    "    python nothing.py": "no such file",
    "[x](nothing.md)": "no such file",
    "![x](nothing.png)": "no such file",
    "[x](results.md#no-such-heading)": "no such heading",
    "[x](#no-such-heading)": "no such heading",
    "see `core/forecache/nothing.py`": "does not exist",
    "see docs/nothing.md.": "does not exist",
    "see docs/README-NOTHING.md": "does not exist",
    "```python\nfor x in\n```": "invalid syntax",
    "```python\nfrom forecache import Nothing\n```": "has no Nothing",
    "```python\nfrom forecache_adapters import nothing\n```": "has no nothing",
    "```python\nfrom forecache import Forecaster\nForecaster('dmd', step=3)\n```": "takes no step",
    "```python\nfrom forecache import calibrate\ncalibrate(run, callz=3)\n```": "takes no callz",
    "```python\nfrom forecache_adapters import trellis as t\nt.enable(p, intervall=3)\n```": "takes no intervall",
    "```python\nfrom forecache_adapters import cache_dit\ncache_dit.enable(p, c, interval=3)\n```": "takes no interval",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_page_is_seen(text):
    found = [problem for check in CHECKS for problem in check(Page(MADE_UP, text))]
    assert len(found) == 1 and WRONG[text] in found[0], found


RIGHT = (
    "writes `benchmarks/results/DEVICE-DATE.json` and docs/NAME.md",
    "    forecache patch apply hunyuan21 DIR   # --no-such in a comment",
    "    forecache upstream checkout NAME DIR --source=git && nox -s demo",
    "`forecache COMMAND --help`, `nox -l`, `nox -s NAME -- --source git`, `pip install nox`",
    "[x](results.md#the-edge-of-guidance) [y](../README.md) [z](https://example.org/docs/nothing.md)",
    "```python\nfrom forecache_adapters import trellis\ntrellis.enable(p, stages={}, interval=3)\n```",
)


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_page_is_let_through(text):
    assert [problem for check in CHECKS for problem in check(Page(MADE_UP, text))] == []


def test_an_invented_message_is_seen():
    page = Page(ROOT / "docs" / "x.md", "- `... is not patched; run ...`: a\n- `the moon is ... today`: b\n")
    assert checks.check_messages(page) == ["message the moon is ... today: nothing says so"]
    assert checks.check_tested(page) == ["message the moon is ... today: no test asks for it"]
