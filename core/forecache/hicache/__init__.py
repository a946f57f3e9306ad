"""The caching functions of ``hicache-pp`` 1.3.0, name for name, on this package's core.

Change the import line and nothing else::

    from forecache.hicache import hicache_init, hicache_decide, hicache_update_derivatives
    from forecache.hicache import dmd_update_snapshots, dmd_forecast_state

Signatures, defaults, state keys (those without a leading underscore), schedule, fall-backs and telemetry are the
published ones, in modules of the published names. As published, a value is always one item:
:class:`forecache.Forecaster` is the interface with independent batch items and a guard.
"""

from . import dmd, hermite, tree
from .dmd import *  # noqa: F403
from .hermite import *  # noqa: F403

__all__ = ["dmd", "hermite", "tree", *dmd.__all__, *hermite.__all__]
