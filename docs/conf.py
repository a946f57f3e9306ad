"""Sphinx: the documentation as a site. ``nox -s docs`` builds it with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.ext.autodoc.mock import MockFinder

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
# The hubs take seconds to import and need not be installed. For good, where autodoc_mock_imports ends between objects.
sys.meta_path.insert(0, MockFinder(["diffusers", "cache_dit"]))

project = "forecache"
copyright = "the authors of forecache; MIT licence"
version = release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "forecache_docs"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
smartquotes = False
html_theme = "furo"
html_title = "forecache"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = html_show_sourcelink = False
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
python_maximum_signature_line_length = 90
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!forecache).*"),  # other packages: a build needs no network
    # types of private attributes and aliases, which signatures name
    ("py:class", r"forecache(\.plan\.GroupWeights|\.rules\.hermite\.Number|_patches\.edits\.Edit)"),
    ("py:class", r"forecache_adapters\.(families|diffusers)\..*"),
]
