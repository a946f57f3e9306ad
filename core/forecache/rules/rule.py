"""What a forecast rule is: a pure function of times and a Gram matrix that returns one weight per snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from numbers import Integral
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np

from ..snapshots import MAX_HISTORY, Array

Fit = TypeVar("Fit", bound=Callable[..., Any])

GUARD = 4.0
FITS = 4096  # results kept of one function: some kilobytes each


class Unfit(Exception):
    """A rule has no forecast for this window; the message says why, and the trace keeps it."""


class Rule:
    """Base of the forecast rules. A subclass defines :meth:`weights` and overrides the defaults that do not fit."""

    name: str = ""
    window: int = MAX_HISTORY  #: most snapshots that it reads
    floor: int = 1  #: fewest snapshots with which the rule is itself; a shorter ``history`` is refused
    clock: ClassVar[Literal["time", "index"]] = "index"  #: what its ``times`` are: step indices, or the sampler's time
    uses_gram: ClassVar[bool] = True  #: False: one weight vector serves every item of a batch
    guard: float = GUARD  #: largest ``||w||_1`` that it is served with, unless the forecaster sets one

    def chosen(self, times: Array, gram: Array) -> Rule:
        """The rule that serves this window: itself, or one that the evidence in the Gram matrix speaks for."""
        return self

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        """Weights ``w[n]`` of the forecast ``v(target) = sum_j w_j v_j``.

        Args:
            times: ``[n]`` on the rule's clock, strictly monotonic, oldest first, ``1 <= n <= window``. By default
                that is the step index: whoever designed a bent grid made its steps alike in difficulty.
            target: place of the forecast on that clock, past ``times[-1]``.
            gram: ``G[j, k] = <v_j, v_k>``, float64 ``[n, n]``.

        Raises:
            Unfit: the window does not support this rule; :meth:`lower` is asked instead.
        """
        raise Unfit(f"{type(self).__name__} defines no weights()")

    def lower(self) -> Rule | None:
        """The rule to fall back to; ``None``: blend toward reuse until the guard is met."""
        return None


@dataclass(frozen=True)
class Polynomial(Rule):
    """A rule of some ``order``: reads ``order + 1`` snapshots, does not look at the Gram matrix.

    Raises:
        ValueError: an order below :attr:`least` or beyond what a window holds.
    """

    order: int = 1
    stem: ClassVar[str] = "polynomial"
    least: ClassVar[int] = 1
    uses_gram = False

    def __post_init__(self) -> None:
        if not isinstance(self.order, Integral) or not self.least <= self.order < MAX_HISTORY:
            raise ValueError(f"order must be {self.least}..{MAX_HISTORY - 1}, got {self.order}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.stem}{self.order}"

    @property
    def window(self) -> int:  # type: ignore[override]
        return self.order + 1

    @property
    def floor(self) -> int:  # type: ignore[override]
        return self.order + 1


def newest(n: int) -> Array:
    """Unit vector of the newest snapshot: the weights of reuse."""
    e = np.zeros(n)
    e[-1] = 1
    return e


def remembered(fit: Fit) -> Fit:
    """Keep the latest results of a function of a Gram matrix and numbers.

    All skipped steps between two anchors have the same window, and so the same fit. There must be room for every item
    of a batch in every stream: results that are visited in turn push each other out of a smaller memory.
    """

    @lru_cache(maxsize=FITS)
    def of_bytes(data: bytes, n: int, *rest: Any) -> Any:
        return fit(np.frombuffer(data).reshape(n, n), *rest)

    @wraps(fit)
    def of_array(gram: Array, *rest: Any) -> Any:
        return of_bytes(gram.tobytes(), len(gram), *rest)

    return cast(Fit, of_array)
