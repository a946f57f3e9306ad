"""Skip network calls in diffusion and flow samplers: forecast a velocity from snapshots of earlier ones.

Every forecast is a weighted sum of the n <= 8 newest snapshots::

    v(t) = sum_j w_j(t) v_j        with   sum_j w_j = 1

The weights depend on the snapshots' clock, on the target and on the n x n Gram matrix ``G[j, k] = <v_j, v_k>``, and on
a plan if there is one. So a tensor is touched twice: when a snapshot arrives (n dot products) and when a forecast is
served (one weighted sum). A rule is a pure function of a few numbers, and what it would have got wrong at a computed
step follows from G alone.

::

    cache = Forecaster(basis="auto", times=grid, calls=12)
    for i in range(len(grid) - 1):
        v = cache.step(i, lambda: model(x, grid[i], cond), state=x)
        x = scheduler.step(v, grid[i], x)
    print(cache.trace.computed, "network calls")
"""

from .calibration import Calibration, calibrate
from .calibration.digest import fingerprint
from .corrector import Corrector
from .forecaster import Forecaster
from .groups import Group
from .guidance import AdaptiveGuidance
from .plan import Plan, Weights
from .trace import Trace
from .tree import Guided

__version__ = "0.1.0"
__all__ = [
    "AdaptiveGuidance",
    "Calibration",
    "Corrector",
    "Forecaster",
    "Group",
    "Guided",
    "Plan",
    "Trace",
    "Weights",
    "__version__",
    "calibrate",
    "fingerprint",
]
