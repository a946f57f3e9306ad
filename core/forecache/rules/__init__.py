"""Forecast rules, one file each. A rule sees times and an ``n x n`` Gram matrix, never a tensor.

To add one: subclass :class:`Rule`, define ``weights(times, target, gram)``, pass an instance as ``basis=``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..snapshots import Array
from .auto import Auto
from .chebyshev import Chebyshev
from .dmd import DMD
from .exponential import Exponential
from .hermite import Hermite
from .linear import Linear
from .reuse import Reuse
from .rule import GUARD, Rule, Unfit
from .taylor import Taylor

NAMES = ("auto", "reuse", "linear", "taylor", "hermite", "dmd", "chebyshev", "exponential")


def make_rule(
    basis: str | Any, span: tuple[float, float] | None, order: int | None = None, sigma: float | None = None
) -> Rule:
    """The rule behind a name (``auto``: :class:`Auto`), or an object with ``weights(...)``.

    Args:
        basis: one of :data:`NAMES` or an object.
        span: range of the rule's clock over the run: (0, N) on the step index; ``None``: not known.
        order: of "linear", "taylor", "hermite"; with "dmd", a Hermite rule of that order serves its warm-up, as in
            HiCache++ (else a guarded line does).
        sigma: of "hermite" and of that warm-up.

    Raises:
        ValueError: an unknown name, or an order or sigma for a rule that has none.
        TypeError: an object without ``weights``.
    """
    makers: dict[str, Callable[..., Rule]] = {
        "auto": Auto,
        "reuse": Reuse,
        "linear": Linear,
        "taylor": Taylor,
        "hermite": Hermite,
        "dmd": lambda **fallback: DMD(fallback=Hermite(**fallback)) if fallback else DMD(),
        "chebyshev": lambda: Chebyshev(span=span),
        "exponential": Exponential,
    }
    given: dict[str, Any] = {}
    takes_order, takes_sigma = ("linear", "taylor", "hermite", "dmd"), ("hermite", "dmd")
    for name, value, takers in (("order", order, takes_order), ("sigma", sigma, takes_sigma)):
        if value is None:
            continue
        if basis not in takers:
            raise ValueError(f"{name}={value!r} belongs to basis {' or '.join(takers)}, not to {basis!r}")
        given[name] = value
    if isinstance(basis, str):
        if basis not in makers:
            raise ValueError(f"basis must be one of {', '.join(NAMES)} or an object with weights(), got {basis!r}")
        return makers[basis](**given)
    if isinstance(basis, Rule):
        return basis
    if callable(getattr(basis, "weights", None)):
        return _Foreign(basis)
    raise TypeError(f"basis must be one of {', '.join(NAMES)} or an object with weights(), got {basis!r}")


class _Foreign(Rule):
    """An object that only has ``weights(times, target, gram)``, with this package's defaults around it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name = inner, type(inner).__name__

    def weights(self, times: Array, target: float, gram: Array) -> Array:
        w: Array = self.inner.weights(times, target, gram)
        return w

    def lower(self) -> Rule | None:
        return Linear(1)


__all__ = [
    "DMD",
    "GUARD",
    "NAMES",
    "Auto",
    "Chebyshev",
    "Exponential",
    "Hermite",
    "Linear",
    "Reuse",
    "Rule",
    "Taylor",
    "Unfit",
    "make_rule",
]
