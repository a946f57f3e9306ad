"""Versioned, verified, insert-only patches to upstream repositories: lock, checkout, series, and what applies them."""

from .apply import Outcome, Status, apply, revert, status
from .bump import Bump, bump, lock_lines
from .check import Report, check
from .checkout import Checkout, checkout
from .errors import CheckoutError, ConflictError, LockError, PatchError, SeriesError, TreeError
from .export import export
from .lock import LOCK_FILE, SERIES_ROOT, Upstream, find, load_lock
from .make import make
from .marker import Marker, read_marker, require_marker
from .series import Series, load_series
from .verify import verify

__all__ = [
    "LOCK_FILE",
    "SERIES_ROOT",
    "Bump",
    "Checkout",
    "CheckoutError",
    "ConflictError",
    "LockError",
    "Marker",
    "Outcome",
    "PatchError",
    "Report",
    "Series",
    "SeriesError",
    "Status",
    "TreeError",
    "Upstream",
    "apply",
    "bump",
    "check",
    "checkout",
    "export",
    "find",
    "load_lock",
    "load_series",
    "lock_lines",
    "make",
    "read_marker",
    "require_marker",
    "revert",
    "status",
    "verify",
]
