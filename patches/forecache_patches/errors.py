"""What can go wrong, one class a kind. Every message is one sentence that a command line can print as it is."""

from __future__ import annotations


class PatchError(Exception):
    """Base of all errors of this package: nothing was written when it is raised."""


class LockError(PatchError):
    """The lock is not valid, or does not know the upstream that was asked for."""


class CheckoutError(PatchError):
    """An upstream cannot be fetched, is not what the lock says, or its destination is taken."""


class SeriesError(PatchError):
    """A stored patch or series is not valid."""


class TreeError(PatchError):
    """The files of a checkout are not in a state that the operation accepts."""


class ConflictError(TreeError):
    """A three-way merge onto a fork has a conflict."""


class DraftError(PatchError):
    """A draft of a submission is not valid, or does not fit the files it is applied to."""
