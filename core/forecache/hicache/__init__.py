"""The caching functions of ``hicache-pp`` 1.3.0, with their names, defaults and state keys."""

from . import flat, tree
from .flat import *  # noqa: F403

__all__ = ["flat", "tree", *flat.__all__]
