"""What the site has beyond Sphinx: the public names of a module, the command line, and pages that lie elsewhere."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from . import api, commands, elsewhere


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("api", api.Api)
    app.add_directive("commands", commands.Commands)
    app.connect("source-read", elsewhere.read)
    app.connect("autodoc-process-signature", api.readable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
