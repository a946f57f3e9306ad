"""The measurement of a generator with a cache of its own, on a stand-in."""

from __future__ import annotations

import pytest

import fastsam3d_standin as standin
from forecache_adapters import fastsam3d as adapter
from forecache_lab import own_cache


class StandIn:
    title, conditions, adapter = "stand-in", "none", adapter
    seeds = {"ss": 2}  # noqa: RUF012
    carves = {"ss": False}  # noqa: RUF012

    def __init__(self):
        case = standin.build()
        self.plain, self.fast = case.plain, case.fast
        for pipe in (self.plain, self.fast):
            backbone = pipe.models["ss_generator"].reverse_fn.backbone
            backbone.forward = self.counted(backbone.forward)

    def counted(self, forward):
        def call(*args, **kwargs):
            self.calls += 1
            return forward(*args, **kwargs)

        return call

    def target(self, table, own):
        return (self.fast if own else self.plain).models["ss_generator"]

    def sample(self, table, seed, own, steps=25, every=False):
        generator = self.target(table, own)
        generator.inference_steps, self.calls = steps, 0
        if own:
            generator.ss_params["ss_cache_stride"] = 1 if every else 3
        return own_cache.Sample((self.fast if own else self.plain).sample_sparse_structure(seed), self.calls)


@pytest.fixture
def subject():
    return StandIn()


def test_rows_share_a_budget_and_tell_the_rules_apart(subject, capsys):
    own_cache.smoke(subject, "ss", "linear")
    assert "44 -> 17 calls by its rule, 17 by ours" in capsys.readouterr().out
    runs, table = own_cache.measure(subject, "ss", "linear", 2, lambda what: None)
    assert {run.method for run in table.runs} == {"uncached", *runs} and table.drift == "drift"
    traced = next(run for run in table.runs if run.method == "linear, its schedule")
    assert any(step["kind"] == "forecast" for steps in traced.trace.values() for step in steps)
    rows = {label: own_cache.summary(scores) for label, scores in runs.items()}
    drift = {label: row["drift"][0] for label, row in rows.items()}
    labels = list(rows)
    assert labels[:4] == [
        "uncached, again",
        "its own rule",
        "linear, its schedule",
        "control: wrong sign, its schedule",
    ]
    assert labels[4].startswith("linear, our schedule") and labels[5].startswith("Euler")
    assert [rows[label]["calls"][0] for label in labels[:4]] == [44, 17, 17, 17]
    assert all(14 <= rows[label]["calls"][0] <= 17 for label in labels[4:])
    assert drift["uncached, again"] == 0 and 3 * drift["linear, its schedule"] < drift["its own rule"]
    assert own_cache.check(rows, "linear", False) == []
    table = own_cache.to_markdown("ss", 2, rows)
    assert "| its own rule | 17 | " in table and "worst pose leaf" in table


def test_a_sign_that_does_not_matter_fails_the_table(subject):
    rows = {
        "uncached, again": {"drift": [0.0, 0.0]},
        "dmd, its schedule": {"drift": [0.1, 0.1]},
        "control: wrong sign, its schedule": {"drift": [0.1, 0.1]},
    }
    assert own_cache.check(rows, "dmd", False) == ["the wrong-sign control drifts no more than the rule"]
    assert own_cache.check(rows, "dmd", True) == []
    rows["uncached, again"] = {"drift": [0.1, 0.1]}
    assert own_cache.check(rows, "dmd", True) == ["two uncached runs differ"]


def test_smoke_names_what_differs(subject):
    inside, subject.fast.models["ss_generator"].drawn = subject.sample, 0

    def restless(table, seed, own, steps=25, every=False):
        found = inside(table, seed, own, steps, every)
        subject.fast.models["ss_generator"].drawn += 1
        found.leaves["shape"] += subject.fast.models["ss_generator"].drawn
        return found

    subject.sample = restless
    with pytest.raises(RuntimeError, match="smoke: ss: off again, or a full schedule, differs"):
        own_cache.smoke(subject, "ss", "linear")
