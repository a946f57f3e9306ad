"""Nothing attached: equal samples, and what the added lines cost."""

import sys
from pathlib import Path


sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).with_name("tests"))]
import test_inert_hook  # noqa: E402
from inert import report  # noqa: E402


report(test_inert_hook)
