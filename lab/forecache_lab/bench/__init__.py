"""The folder bench: a generator over a folder of pictures, every method beside the uncached run with the same noise.

``forecache bench`` is its command. A run folder holds ``settings.json`` (what all results have in common), ``results/``
(a file for each picture, seed and method), ``meshes/`` of the first pictures, and at the end ``bench.md``,
``bench.json``, ``run.json`` and ``report.html``.
"""

from .failures import LOG
from .methods import DEFAULT, Method, parse
from .pictures import Folder, Picture, read_folder, write_samples
from .run import Bench
from .table import write

__all__ = [
    "DEFAULT",
    "LOG",
    "Bench",
    "Folder",
    "Method",
    "Picture",
    "parse",
    "read_folder",
    "write",
    "write_samples",
]
