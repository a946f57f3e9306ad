"""One generator measured beside its uncached run: ``python -m forecache_lab.session hunyuan21 CHECKOUT --basis dmd``.

First a smoke test: with the cache off, and with a schedule that computes every step, the output is that of the uncached
run, bit for bit. Then a table per stage and number of steps. Every stage gets a fixed condition, fixed noise and fixed
coordinates: end to end, one voxel more or less in the first stage would redraw the noise of the second, and the table
would show that. Writes ``drift.md``, ``drift.json``, ``run.json``, ``report.html`` and, where there are meshes,
``comparison.png`` and ``.glb`` files. Exits 1 if the smoke test fails, or if the rule that steps the wrong way drifts
no more than the rule itself.

A session is a :class:`.measurement.Measurement`: :mod:`.one_stage`, :mod:`.stages` or :mod:`.own_cache`, as the
registry of generators says.
"""

from .main import main

__all__ = ["main"]
