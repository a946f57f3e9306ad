"""Generate many samples with a diffusers pipeline and the cache: prompts x seeds over one or many GPUs, resumable.

A run lives in a folder: ``settings.json`` (what every sample of it was made with), ``records/`` (append-only, a file
for each worker), the samples, ``uncached/`` (their references, on request), and at the end ``manifest.json`` and
``manifest.csv``.
"""

from .jobs import Job, read_jobs, read_seeds
from .run import Summary, generate
from .settings import Settings

__all__ = ["Job", "Settings", "Summary", "generate", "read_jobs", "read_seeds"]
