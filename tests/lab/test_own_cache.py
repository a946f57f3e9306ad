"""The measurement of a generator with a cache of its own, on a stand-in."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

import fastsam3d_standin as standin
from forecache_adapters import fastsam3d as adapter
from forecache_lab.generators.generated import Generated
from forecache_lab.session.main import measure, to_record
from forecache_lab.session.measurement import summary
from forecache_lab.session.own_cache import OwnCache


class StandIn:
    title, conditions = "stand-in", "none"
    grids, seeds = {"ss": (25,)}, {"ss": 2}
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

    def sample(self, stage, seed, steps, settings=None):
        chosen, made = dict(settings or {}), Generated()
        own, every = chosen.pop("own", False), chosen.pop("every", False)
        pipe = self.fast if own else self.plain
        generator = pipe.models["ss_generator"]
        generator.inference_steps, self.calls = steps, 0
        if own:
            generator.ss_params["ss_cache_stride"] = 1 if every else 3
        with adapter.enabled(generator, **chosen) if chosen else nullcontext() as handle:
            made.latents = pipe.sample_sparse_structure(seed)
        made.calls = {stage: self.calls}
        made.traced(handle, alone="ss")
        return made


@pytest.fixture
def session():
    return OwnCache(StandIn(), "linear", None, None)


def test_rows_share_a_budget_and_tell_the_rules_apart(session, tmp_path, capsys):
    session.smoke()
    assert "44 -> 17 calls by its rule, 17 by ours" in capsys.readouterr().out
    made, scores = measure(session, "ss", 25, 2)
    table = to_record(tmp_path, session, "ss", made, scores, {})
    assert {run.method for run in table.runs} == {"uncached", *scores} and table.drift == "drift"
    traced = next(run for run in table.runs if run.method == "linear, its schedule")
    assert any(step["kind"] == "forecast" for steps in traced.trace.values() for step in steps)
    rows = {label: summary(each) for label, each in scores.items()}
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
    assert session.check("ss", rows) == []
    text = session.table("ss", rows, {}, [44, 44])
    assert "| its own rule | 17 | " in text and "worst pose leaf" in text


def test_a_sign_that_does_not_matter_fails_the_table(session):
    rows = {
        "uncached, again": {"drift": [0.0, 0.0]},
        "linear, its schedule": {"drift": [0.1, 0.1]},
        "control: wrong sign, its schedule": {"drift": [0.1, 0.1]},
    }
    assert session.check("ss", rows) == ["the wrong-sign control drifts no more than the rule"]
    session.subject.carves = {"ss": True}
    assert session.check("ss", rows) == []
    rows["uncached, again"] = {"drift": [0.1, 0.1]}
    assert session.check("ss", rows) == ["two uncached runs differ"]


def test_smoke_names_what_differs(session):
    subject = session.subject
    inside, subject.fast.models["ss_generator"].drawn = subject.sample, 0

    def restless(*args):
        found = inside(*args)
        subject.fast.models["ss_generator"].drawn += 1
        found.latents["shape"] += subject.fast.models["ss_generator"].drawn
        return found

    subject.sample = restless
    with pytest.raises(RuntimeError, match="smoke: ss: off again, or a full schedule, differs"):
        session.smoke()
