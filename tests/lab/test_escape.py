"""Names as every medium shows them: nothing in them is markup, a formula, or a command to the terminal."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from forecache_cli.console import progress
from forecache_lab.escape import cell, markdown, plotly, printable

NAMES = st.text(st.sampled_from("ab _*`~|\\<>&[]()!#\n\r\t\x1b\u202e\ud83cé:/-+=@"), max_size=12)
TABLE = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@settings(max_examples=400)
@given(NAMES)
def test_a_name_in_a_markdown_table_is_one_cell_of_plain_text(name: str) -> None:
    page = TABLE.render(f"| method | n |\n|---|---|\n| x{markdown(name)}x | 1 |\n")
    cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert len(cells) == 2 and "<" not in cells[0], page
    assert html.unescape(cells[0]) == f"x{printable(name)}x"


def test_what_markdown_makes_of_a_name_that_is_not_escaped() -> None:
    """The control of the test above."""
    for name in ("a|b", "<b>x</b>", "*a*", "`a`", "[a](b)", "![a](b)", "~~a~~", "a &lt; b", "a\nb"):
        page = TABLE.render(f"| method | n |\n|---|---|\n| x {name} x | 1 |\n")
        cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
        assert len(cells) != 2 or "<" in cells[0] or html.unescape(cells[0]) != f"x {name} x", name
    assert markdown("my_red-chair (2), plan.json") == "my_red-chair (2), plan.json", "names that are harmless stay"


@settings(max_examples=200)
@given(NAMES)
def test_what_is_printable_can_be_written_and_moves_no_cursor(name: str) -> None:
    text = printable(name)
    text.encode()
    assert not re.search("[\x00-\x1f\u202e]", text)
    assert printable("東京 été 👩‍🔬") == "東京 été 👩‍🔬"


@pytest.mark.parametrize("name", ["[/]", "a[/b]c", "[red]x", "[link=a]", "[@click=f(]", "\ud800", "a\nb", "\x1b[2J"])
def test_a_bar_shows_a_name_as_it_is(name: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), "utf-8")
    bar = progress()
    bar.add_task(name)
    Console(file=file, force_terminal=True, width=80).print(bar.get_renderable())
    file.seek(0)
    assert file.read().rstrip() == printable(name)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1"])
def test_a_spreadsheet_takes_no_text_for_a_formula(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([cell(text), cell("a chair"), cell(-0.5), cell("a=b")])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == ["'" + text, "a chair", "-0.5", "a=b"]


def test_plotly_gets_no_tags_and_no_variables() -> None:
    assert plotly("<b>%{x} & \ud800") == "&lt;b&gt;&#37;{x} &amp; \\ud800"
