"""forecache: skip network calls in diffusion and flow samplers by forecasting them from snapshots of earlier ones.

Every forecast is a weighted sum of snapshots, ``v(t) = sum_j w_j(t) v_j`` with ``sum w = 1``; the weights are a pure
function of the snapshot times and of the ``n x n`` Gram matrix of the snapshots.
"""

from .calibration.calibrate import Calibration, calibrate
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
