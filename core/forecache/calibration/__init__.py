"""Making a plan: record uncached runs, search a schedule, fit its weights, refine them, compare budgets."""

from .calibration import Calibration, Run, calibrate

__all__ = ["Calibration", "Run", "calibrate"]
