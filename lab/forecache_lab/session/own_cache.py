"""A generator that skips by itself, and another rule in its place.

Settings with ``own`` run the generator with its own cache, and with ``every`` that cache computes every step; all
others run the plain generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forecache.rules import make_rule

from ..controls import WrongSign
from ..generators.generated import Generated
from ..metrics.relative import relative
from .measurement import AGAIN, Measurement, Method, run, same


class OwnCache(Measurement):
    """Rows: its own rule, ours on the steps that its schedule computes, the wrong sign, and the plain generator with a
    schedule of ours and with fewer steps, both at no more calls than its own rule makes.
    """

    drift = "drift"
    units = "Drift relative, of the latents, ||a - b|| / ||b||; the worst pose leaf alike."
    calls_vary = True

    def __init__(self, subject: Any, basis: str, intervals: Sequence[int] | None, warmup: int | None) -> None:
        super().__init__(subject, basis, intervals, warmup)
        self._carved: dict[tuple[str, int], Generated] = {}

    def name(self, stage: str, steps: int) -> str:
        return stage

    def methods(self, stage: str, steps: int) -> list[Method]:
        basis = self.basis
        own = Method("its own rule", {"own": True})

        def ours(k: int) -> Method:
            return Method(f"{basis}, our schedule, {k} steps computed", {"basis": basis, "calls": k})

        def fewer(k: int) -> Method:
            return Method(f"Euler, {k} steps", steps=k)

        def count(method: Method | None) -> int:
            return run(self.subject, stage, 0, steps, method).all_calls

        calls, uncached = count(own), count(None)
        guess = round(steps * calls / uncached)
        rows = [Method(AGAIN), own, Method(self.control_labels[0], {"own": True, "basis": basis})]
        if self.subject.carves[stage]:
            rows.insert(1, Method("carving alone, every step computed", {"own": True, "every": True}))
        wrong = WrongSign(make_rule(basis, (0.0, float(steps))))
        rows.append(Method(self.control_labels[1], {"own": True, "basis": wrong}))
        return [*rows, *(largest(calls, guess, steps, make, count) for make in (ours, fewer))]

    @property
    def control_labels(self) -> tuple[str, str]:
        """Labels of our rule on its schedule, and of the same with the wrong sign."""
        return f"{self.basis}, its schedule", "control: wrong sign, its schedule"

    def control(self, stage: str) -> tuple[str, str] | None:
        return None if self.subject.carves[stage] else self.control_labels

    def score(self, stage: str, seed: int, made: Generated, uncached: Generated) -> dict[str, float]:
        """Of several leaves, the drift of the first one and the worst of the others; where tokens are carved, also the
        drift from the run that carves and computes every step.
        """
        first, *others = uncached.latents
        found = {"calls": made.all_calls, "drift": relative(made.latents[first], uncached.latents[first])}
        if others:
            found["worst pose leaf"] = max(relative(made.latents[name], uncached.latents[name]) for name in others)
        if self.subject.carves[stage]:
            found["drift from carving alone"] = relative(made.latents[first], self.carved(stage, seed).latents[first])
        return found

    def carved(self, stage: str, seed: int) -> Generated:
        """The run that carves tokens and computes every step."""
        if (stage, seed) not in self._carved:
            every = Method("", {"own": True, "every": True})
            self._carved[stage, seed] = run(self.subject, stage, seed, self.subject.grids[stage][0], every)
        return self._carved[stage, seed]

    def smoke(self) -> None:
        """Off is off, and a schedule that computes every step is the uncached run, bit for bit.

        Raises:
            RuntimeError: names the stage that differs.
        """
        for stage, (steps,) in self.subject.grids.items():

            def own(stage: str = stage, steps: int = steps, **settings: object) -> Generated:
                return run(self.subject, stage, 0, steps, Method("", {"own": True, **settings}))

            before, inside, after = own(), own(basis=self.basis), own()
            every = own(every=True), own(every=True, basis=self.basis)
            if not same(before, after) or not same(*every) or before.all_calls != after.all_calls:
                raise RuntimeError(f"smoke: {stage}: off again, or a full schedule, differs")
            print(
                f"smoke: {stage}: off is bit-identical, full schedule too; {every[0].all_calls} -> {before.all_calls}"
                f" calls by its rule, {inside.all_calls} by ours"
            )


def largest(calls: int, guess: int, most: int, make: Callable[[int], Method], count: Callable[[Method], int]) -> Method:
    """``make(k)`` for the largest k up to ``most``, searched from a guess, that makes no more than ``calls`` calls."""
    k = guess
    while k > 1 and count(make(k)) > calls:
        k -= 1
    while k == guess and guess < most and count(make(guess + 1)) <= calls:
        k = guess = guess + 1
    return make(k)
