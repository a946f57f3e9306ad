"""Pages of the site that lie elsewhere in the repository, and links between them and ``docs/`` that work in both."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[3]
#: file of the repository -> its page; the file of that name in docs/ is only a place in the table of contents
PAGES = {
    "README.md": "project/readme",
    "CONTRIBUTING.md": "project/contributing",
    "CHANGELOG.md": "project/changelog",
    "pr_drafts/README.md": "project/submissions",
    "benchmarks/dit_imagenet/README.md": "project/dit_imagenet",
    "benchmarks/zoo/README.md": "project/zoo",
    "benchmarks/results/README.md": "project/tables",
}
LINK = re.compile(r"(\]\()([^()\s]+)(\))")


def mend(text: str, file: Path, page: str) -> str:
    """``text`` of ``file`` with its relative links as ``docs/<page>.md`` must have them."""
    folder = (ROOT / "docs" / page).parent

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = (file.parent / path).resolve()
        inside = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if inside in PAGES:
            target = ROOT / "docs" / f"{PAGES[inside]}.md"
        relative = os.path.relpath(target, folder)
        if not target.is_relative_to(ROOT / "docs"):  # no page: MyST would look for one if it ends in .md
            return f"{match[1]}path:{relative}{match[3]}"
        return f"{match[1]}{relative}{hash_}{anchor}{match[3]}"

    return LINK.sub(link, text)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Called by Sphinx with the text of every page."""
    origin = next((file for file, name in PAGES.items() if name == page), f"docs/{page}.md")
    file = ROOT / origin
    source[0] = mend(source[0] if origin.startswith("docs/") else file.read_text(encoding="utf-8"), file, page)
    if not origin.startswith("docs/"):
        app.env.note_dependency(str(file))
