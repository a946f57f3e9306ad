"""``python -m forecache_lab.session``."""

import sys

from .main import main

sys.exit(main())
