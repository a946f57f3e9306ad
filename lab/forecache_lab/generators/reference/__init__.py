"""Small networks trained here, through the upstreams' own classes, so that drift on a CPU means something."""

from pathlib import Path

PLANS = Path(__file__).with_name("plans")  #: calibrated for these networks, small enough for the wheel

# Conditions of training, calibration and test never meet
TRAINING_SEEDS = range(0, 20_000)
CALIBRATION_SEED = 1_000_000
TEST_SEED = 2_000_000
