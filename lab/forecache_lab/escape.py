"""Names that others chose (pictures, prompts, plans, folders), as each medium shows them: one function a medium.

HTML is the template's own affair (Jinja escapes all that it is given), and JSON keeps the exact text.
"""

from __future__ import annotations

import html
import re
from typing import Any

# control characters, line and paragraph separators, what turns the direction of writing, halves of characters
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKUP = re.compile(r"[\\`*{}\[\]|~!#]|(?<!\w)_|_(?!\w)")  # a _ inside a word marks nothing up
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def printable(text: str) -> str:
    r"""For a terminal, and for files in UTF-8: what would move the cursor or cannot be encoded is written ``\x1b``."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """On one line, without markup or HTML; in a table too."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text), quote=False))


def plotly(text: str) -> str:
    """For plotly's labels, which know a few tags and, in hover texts, ``%{variable}``."""
    return html.escape(printable(text), quote=False).replace("%{", "&#37;{")


def cell(value: Any) -> Any:
    """For a CSV file that a spreadsheet opens: text that it would take for a formula gets ``'`` in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
