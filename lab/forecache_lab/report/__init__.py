"""One HTML file about a run folder: plots, tables, timeline and meshes, with all that it needs inside.

Read with :mod:`.load`, counted with :mod:`.statistics`, drawn with :mod:`.plots` and :mod:`.meshes`, put together by
:mod:`.page`.
"""

from .load import load
from .page import write

__all__ = ["load", "write"]
