"""Versioned, verified, insert-only patches to upstream repositories: lock, checkout, series, and what applies them."""

from .apply import Outcome, Status, apply, revert, status
from .bump import Bump, bump, lock_lines
from .check import Report, check
from .checkout import Checkout, checkout
from .drafts import Draft, Hub, draft_names, load_draft, load_hub
from .errors import CheckoutError, ConflictError, DraftError, LockError, PatchError, SeriesError, TreeError
from .export import export
from .lock import LOCK_FILE, SERIES_ROOT, Upstream, find, load_lock
from .make import make
from .marker import Marker, read_marker, require_marker
from .prove import Proof, numbers, prove
from .series import Series, load_series
from .store import store
from .submit import NOBODY, build
from .trees import BASES
from .verify import verify

__all__ = [
    "BASES", "LOCK_FILE", "NOBODY", "SERIES_ROOT", "Bump", "Checkout", "CheckoutError", "ConflictError", "Draft",
    "DraftError", "Hub", "LockError", "Marker", "Outcome", "PatchError", "Proof", "Report", "Series", "SeriesError",
    "Status", "TreeError", "Upstream", "apply", "build", "bump", "check", "checkout", "draft_names", "export",
    "find", "load_draft", "load_hub", "load_lock", "load_series", "lock_lines", "make", "numbers", "prove",
    "read_marker", "require_marker", "revert", "status", "store", "verify",
]  # fmt: skip
