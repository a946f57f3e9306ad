"""The functional interface against the installed ``hicache_pp`` 1.3.0: same names, same decisions, same numbers."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import inspect
import itertools
import pickle
import weakref
from types import ModuleType
from typing import Any

import hicache_pp.dmd
import hicache_pp.hermite
import hicache_pp.tree
import numpy as np
import pytest
import torch
from torch.utils import _pytree

from forecache import hicache
from forecache.hicache import tree as hicache_tree
from forecache.rules import DMD
from scenarios import NAMES, exponentials, trajectory

Tensor = torch.Tensor
FLAT_THEIRS = {name: getattr(hicache_pp, name) for name in (*hicache.hermite.__all__, *hicache.dmd.__all__)}
KINDS = ("hermite", "dmd", "auto")


class Theirs:
    """The published flat functions under one roof."""


for _name, _value in FLAT_THEIRS.items():
    setattr(Theirs, _name, staticmethod(_value))


def rel(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm().clamp_min(1e-300))


# --- names and signatures ---------------------------------------------------------------------------------------------
def test_the_oracle_is_the_published_release() -> None:
    assert importlib.metadata.version("hicache-pp") == "1.3.0"


def public(module: ModuleType) -> set[str]:
    return {
        n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
    }


def test_every_published_function_is_here() -> None:
    flat = public(hicache_pp.hermite) | public(hicache_pp.dmd)
    assert flat - set(hicache.__all__) == {
        "dmd_fit",
        "dmd_eval",
    }  # its factorisation in complex modes has no counterpart
    assert public(hicache_pp.tree) == set(hicache_tree.__all__)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(getattr(hicache, n), f) for n, f in FLAT_THEIRS.items()]
    + [(getattr(hicache_tree, n), getattr(hicache_pp.tree, n)) for n in sorted(public(hicache_pp.tree))],
    ids=lambda f: f.__name__,
)
def test_signatures_and_defaults(ours: Any, theirs: Any) -> None:
    def shape(f: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize("module", ["flat", "tree"])
def test_state_keys_and_values(module: str) -> None:
    ours, theirs = (hicache, hicache_pp.hermite) if module == "flat" else (hicache_tree, hicache_pp.tree)
    mine, published = ours.hicache_init(20, interval=3), theirs.hicache_init(20, interval=3)

    def visible(state: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in state.items() if not k.startswith("_") and k != "run_id"}

    assert visible(mine) == visible(published)
    assert isinstance(mine["run_id"], str) and len(mine["run_id"]) == len(published["run_id"])
    for state, m in ((mine, ours), (published, theirs)):
        state.update(step=5, counter=2, branch_id="cond")
        state["activated_steps"].append(3)
        assert m.hicache_reset(state, run_id="again") is state
        assert state["run_id"] == "again"
    assert visible(mine) == visible(published)
    assert ours.hicache_telemetry(mine) == theirs.hicache_telemetry(published)
    assert ours.hicache_telemetry(mine) is not mine["telemetry"]


def test_adaptive_guidance_state() -> None:
    assert hicache_tree.adaptive_cfg_init(9) == hicache_pp.tree.adaptive_cfg_init(9)
    for step, anchors, gamma in itertools.product(range(9), ([], [(0, None)]), (None, 0.5, 0.93, 0.94, 0.99)):
        state = {**hicache_tree.adaptive_cfg_init(9), "step": step, "anchors": anchors}
        assert hicache_tree.adaptive_cfg_decide(state, gamma) is hicache_pp.tree.adaptive_cfg_decide(state, gamma)


BAD: list[dict[str, Any]] = [
    {"interval": 0},
    {"max_order": 0},
    {"sigma": 0.0},
    {"sigma": 1.0},
    {"backend": "x"},
    {"holdout": "x"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("pair", [(hicache, hicache_pp.hermite), (hicache_tree, hicache_pp.tree)], ids=["flat", "tree"])
def test_the_same_arguments_are_refused(bad: dict[str, Any], pair: tuple[ModuleType, ModuleType]) -> None:
    expected = TypeError if "holdout" in bad and pair[0] is hicache_tree else ValueError
    for module in pair:
        with pytest.raises(expected, match=next(iter(bad))):
            module.hicache_init(10, **bad)
        module.hicache_init(10)


def test_other_errors_are_the_same() -> None:
    for module in (hicache, hicache_pp.hermite):
        with pytest.raises(RuntimeError, match="before any compute step"):
            module.hicache_forecast(module.hicache_init(10))
        with pytest.raises(ValueError, match="order must be >= 0"):
            module.physicists_hermite(-1, torch.ones(1))
    for module in (hicache_tree, hicache_pp.tree):
        with pytest.raises(RuntimeError, match="before any compute step"):
            module.hicache_forecast_tree(module.hicache_init(10))
        with pytest.raises(ValueError, match="at least one anchor"):
            module.forecast_guidance_tree([], 3)
        with pytest.raises(ValueError, match="gamma_bar"):
            module.adaptive_cfg_init(10, gamma_bar=1.2)


# --- the quick-start loop ---------------------------------------------------------------------------------------------
def loop(api: Any, path: Tensor, backend: str, **config: Any) -> tuple[list[str], list[Tensor], dict[str, Any]]:
    """The published loop: decide, compute or forecast, advance."""
    state = api.hicache_init(len(path), backend=backend, **config)
    forecast = {"hermite": api.hicache_forecast, "dmd": api.dmd_forecast_state, "auto": api.auto_forecast_state}[
        backend
    ]
    decisions, out = [], []
    for i, value in enumerate(path):
        state["step"] = i
        decisions.append(api.hicache_decide(state))
        if decisions[-1] == "full":
            api.hicache_update_derivatives(state, value)
            api.dmd_update_snapshots(state, value, history=config.get("history", 5))
            out.append(value)
        else:
            out.append(forecast(state))
    return decisions, out, api.hicache_telemetry(state)


def well_conditioned(steps: int = 26, seed: int = 0) -> Tensor:
    """Poles far apart and a little noise: every singular value well above or below the published cut of 1e-4."""
    clean = exponentials(48, [0.97 * np.exp(0.25j), 0.9 * np.exp(0.6j)], steps, seed)
    return clean + 0.02 * torch.from_numpy(np.random.default_rng(seed).normal(size=clean.shape))


CONFIGS = [
    {"interval": interval, "first_enhance": first, "history": history, "max_order": order, "sigma": sigma}
    for interval, first, history, order, sigma in [
        (2, 0, 5, 1, 0.5), (3, 2, 5, 2, 0.5), (4, 4, 6, 2, 0.7), (5, 6, 8, 3, 0.3), (1, 2, 5, 1, 0.5),
        (2, 5, 4, 4, 0.9), (3, 8, 7, 2, 0.5), (6, 5, 5, 1, 0.5), (2, 1, 6, 2, 0.5),
    ]
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize(("backend", "holdout"), [*((b, "1step") for b in KINDS), ("auto", "horizon")])
@pytest.mark.parametrize("end", [None, 22])
def test_loop_equals_the_published_one(config: dict[str, Any], backend: str, holdout: str, end: int | None) -> None:
    for seed in range(3):
        path = well_conditioned(seed=seed)
        mine, out, counts = loop(hicache, path, backend, **config, holdout=holdout, end_enhance=end)
        published, expected, theirs = loop(Theirs, path, backend, **config, holdout=holdout, end_enhance=end)
        assert mine == published and counts == theirs
        for a, b in zip(out, expected, strict=True):
            assert a.dtype == b.dtype and rel(a, b) < 1e-6


def test_loops_serve_every_method() -> None:
    """Control of the comparison above: it covers DMD, Hermite and both choices of auto."""
    served = {"dmd": 0, "hermite": 0}
    for config in CONFIGS:
        for name, times in loop(hicache, well_conditioned(), "auto", **config)[2]["method_counts"].items():
            served[name] = served.get(name, 0) + times
    assert served["dmd"] > 5 and served["hermite"] > 5
    a = loop(hicache, well_conditioned(), "dmd", interval=3)[1]
    b = loop(hicache, well_conditioned(), "hermite", interval=3)[1]
    assert max(map(rel, a, b)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["hermite", "dmd"])
def test_loop_in_lower_precision(dtype: torch.dtype, backend: str) -> None:
    path = well_conditioned().to(dtype)
    mine, out, counts = loop(hicache, path, backend, interval=2, max_order=1)
    published, expected, theirs = loop(Theirs, path, backend, interval=2, max_order=1)
    assert mine == published and counts == theirs
    for a, b in zip(out, expected, strict=True):
        assert a.dtype == dtype and rel(a, b) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", KINDS)
def test_reset_and_a_second_run(backend: str) -> None:
    path = well_conditioned()
    state = hicache.hicache_init(len(path), backend=backend, interval=3)
    forecast = {
        "hermite": hicache.hicache_forecast,
        "dmd": hicache.dmd_forecast_state,
        "auto": hicache.auto_forecast_state,
    }[backend]
    for scale in (3.0, 1.0):
        hicache.hicache_reset(state)
        out = []
        for i, value in enumerate(scale * path):
            state["step"] = i
            if hicache.hicache_decide(state) == "full":
                hicache.hicache_update_derivatives(state, value)
                hicache.dmd_update_snapshots(state, value)
                out.append(value)
            else:
                out.append(forecast(state))
    for a, b in zip(out, loop(hicache, path, backend, interval=3)[1], strict=True):
        assert torch.equal(a, b)


def test_minimal_states_as_in_the_published_tests() -> None:
    path = well_conditioned()
    for module in (hicache, hicache_pp):
        state = {"step": 12, "history": 5, "dmd_snapshots": [(i, path[i]) for i in (1, 4, 7, 10)]}
        out = module.dmd_forecast_state(state)
        if module is hicache:
            mine = out
    assert rel(mine, out) < 1e-6


# --- the Gram matrix behind it ----------------------------------------------------------------------------------------
def test_the_gram_matrix_is_kept_and_never_stale() -> None:
    """Rows of snapshots that left the window are dropped: a new tensor may be given the address of an old one."""
    calls = []
    row = hicache.dmd.gram_row
    state = hicache.hicache_init(200, backend="dmd", history=5)
    rng = np.random.default_rng(0)
    try:
        hicache.dmd.gram_row = lambda leaves: calls.append(len(leaves)) or row(leaves)  # type: ignore[func-returns-value]
        for i in range(200):
            state["step"] = i
            state["activated_steps"].append(i)
            hicache.dmd_update_snapshots(state, torch.from_numpy(rng.normal(size=16)))
            if rng.random() < 0.4 and i > 5:
                calls.clear()
                _, tail = hicache.dmd.even_tail(state)
                gram = hicache.dmd.tail_gram(state, [[v] for v in tail])
                v = torch.stack(tail)
                assert gram == pytest.approx((v @ v.T).numpy(), rel=1e-12)
                assert len(calls) <= 5
                calls.clear()
                hicache.dmd.tail_gram(state, [[v] for v in tail])
                assert not calls  # nothing is computed twice
    finally:
        hicache.dmd.gram_row = row


@pytest.mark.parametrize("pushes", range(1, 8))
def test_an_address_used_again_is_another_snapshot(pushes: int) -> None:
    state = hicache.hicache_init(300, backend="dmd", history=5)
    for i in range(300):
        state["step"] = i
        state["activated_steps"].append(i)
        hicache.dmd_update_snapshots(state, torch.randn(16, dtype=torch.float64))
        if i > 6 and i % pushes == 0:
            _, tail = hicache.dmd.even_tail(state)
            gram, v = hicache.dmd.tail_gram(state, [[v] for v in tail]), torch.stack(tail)
            assert gram == pytest.approx((v @ v.T).numpy(), rel=1e-9)
            del tail, v  # the window alone holds them


def test_dropped_snapshots_are_freed() -> None:
    state = hicache.hicache_init(50, backend="dmd", history=4)
    for i in range(12):
        state["step"] = i
        state["activated_steps"].append(i)
        hicache.dmd_update_snapshots(state, torch.randn(64, dtype=torch.float64))
        if i == 6:
            hicache.dmd.tail_gram(state, [[v] for _, v in state["dmd_snapshots"]])
            held = [weakref.ref(v) for _, v in state["dmd_snapshots"]]
    gc.collect()
    assert all(ref() is None for ref in held)
    hicache.hicache_reset(state)
    assert "_gram" not in state and not state["dmd_snapshots"]


def test_state_can_be_copied_and_pickled() -> None:
    path = well_conditioned()
    state = hicache.hicache_init(20, backend="dmd", history=5)
    for i in range(6):
        state["step"] = i
        state["activated_steps"].append(i)
        hicache.hicache_update_derivatives(state, path[i])
        hicache.dmd_update_snapshots(state, path[i])
    state["step"] = 7
    expected = hicache.dmd_forecast_state(state)
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert torch.equal(hicache.dmd_forecast_state(twin), expected)


def test_snapshots_are_copies() -> None:
    state = hicache.hicache_init(20, backend="dmd")
    state["activated_steps"].append(0)
    source = torch.ones(4)
    hicache.dmd_update_snapshots(state, source)
    source.zero_()
    assert torch.equal(state["dmd_snapshots"][0][1], torch.ones(4))
    tree = {"a": torch.ones(4)}
    hicache_tree.hicache_update_tree(state, tree)
    hicache_tree.dmd_update_snapshots_tree(state, tree)
    tree["a"].zero_()
    assert torch.equal(state["derivatives"][0]["a"], torch.ones(4))
    assert torch.equal(state["dmd_snapshots"][1][1]["a"], torch.ones(4))


# --- degenerate input -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["short", "zero", "constant", "nan", "half overflow"])
def test_degenerate_forecasts_fall_back_to_the_newest(kind: str) -> None:
    snapshots = {
        "short": [torch.randn(6) for _ in range(2)],
        "zero": [torch.zeros(6)] * 5,
        "constant": [torch.full((6,), 2.0)] * 5,
        "nan": [torch.ones(6)] * 4 + [torch.full((6,), float("nan"))],
        "half overflow": [torch.full((6,), 2.0**e, dtype=torch.float16) for e in (11, 12, 13, 14, 15)],
    }[kind]
    mine = hicache.dmd_forecast(snapshots, 2)
    assert torch.allclose(mine, snapshots[-1], equal_nan=True)
    assert mine.data_ptr() != snapshots[-1].data_ptr()
    if kind != "nan":
        theirs = hicache_pp.dmd_forecast(snapshots, 2)
        assert torch.allclose(mine, theirs, equal_nan=True)


def test_a_fit_that_fails_is_counted() -> None:
    for backend in ("dmd",):
        path = torch.zeros(12, 6)
        mine = loop(hicache, path, backend, interval=2, first_enhance=6)
        assert mine[2]["fallbacks"]["dmd_fit_failed"] == mine[2]["method_counts"]["reuse"] > 0
    big = torch.stack([torch.full((6,), 2.0**e, dtype=torch.float16) for e in (10, 11, 12, 13, 14, 15, 15, 15)])
    mine, theirs = (loop(api, big, "dmd", interval=2, first_enhance=6) for api in (hicache, Theirs))
    assert mine[2] == theirs[2] and mine[2]["fallbacks"].get("dmd_nonfinite_output", 0) > 0


# --- trees ------------------------------------------------------------------------------------------------------------
def as_tree(v: Tensor) -> dict[str, Any]:
    return {"shape": v[:30].reshape(5, 6), "pose": [v[30:40], (v[40:],)]}


def flat_of(tree: Any) -> Tensor:
    return torch.cat([x.reshape(-1) for x in _pytree.tree_leaves(tree)])


def tree_loop(api: Any, path: Tensor, backend: str, **config: Any) -> tuple[list[str], list[Tensor], dict[str, Any]]:
    state = api.hicache_init(len(path), backend=backend, **config)
    decisions, out = [], []
    for i, value in enumerate(path):
        state["step"] = i
        decisions.append(api.hicache_decide(state))
        if decisions[-1] == "full":
            api.hicache_update_tree(state, as_tree(value))
            api.dmd_update_snapshots_tree(state, as_tree(value))
            out.append(value)
        else:
            tree = (api.dmd_forecast_tree if backend == "dmd" else api.hicache_forecast_tree)(state)
            assert set(tree) == {"shape", "pose"} and tree["shape"].shape == (5, 6)
            out.append(torch.cat([tree["shape"].reshape(-1), tree["pose"][0], tree["pose"][1][0]]))
    return decisions, out, api.hicache_telemetry(state)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("backend", ["hermite", "dmd"])
def test_tree_loop_equals_the_published_one(config: dict[str, Any], backend: str) -> None:
    path = well_conditioned()
    mine, out, counts = tree_loop(hicache_tree, path, backend, **config)
    published, expected, theirs = tree_loop(hicache_pp.tree, path, backend, **config)
    assert mine == published and counts == theirs
    for a, b in zip(out, expected, strict=True):
        assert rel(a, b) < 1e-6


def test_tree_arithmetic() -> None:
    a, b = as_tree(torch.randn(48)), as_tree(torch.randn(48))
    for mine, theirs in (
        (hicache_tree.tree_axpy(0.3, a, b), hicache_pp.tree.tree_axpy(0.3, a, b)),
        (hicache_tree.tree_sub_div(a, b, 3), hicache_pp.tree.tree_sub_div(a, b, 3)),
        (hicache_tree.guidance_term_tree(a, b, 2.5), hicache_pp.tree.guidance_term_tree(a, b, 2.5)),
        (hicache_tree.reconstruct_cfg_tree(a, b), hicache_pp.tree.reconstruct_cfg_tree(a, b)),
        (hicache_tree.tree_detach(a), hicache_pp.tree.tree_detach(a)),
    ):
        assert torch.equal(flat_of(mine), flat_of(theirs))
    assert hicache_tree.tree_cosine(a, b) == pytest.approx(hicache_pp.tree.tree_cosine(a, b), abs=1e-6)
    for order, k, sigma in itertools.product(range(6), (1, 2, 7), (0.3, 0.5, 0.9)):
        assert hicache_tree.hermite_coeff(order, k, sigma) == pytest.approx(
            hicache_pp.tree.hermite_coeff(order, k, sigma)
        )
        x = torch.linspace(-2, 2, 5)
        assert torch.allclose(hicache.scaled_hermite(order, x, sigma), hicache_pp.scaled_hermite(order, x, sigma))
        assert torch.allclose(hicache.physicists_hermite(order, x), hicache_pp.physicists_hermite(order, x))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_guidance_forecast_at_uneven_anchors(order: int) -> None:
    anchors = [(s, as_tree(torch.randn(48, dtype=torch.float64))) for s in (0, 1, 4, 6, 11)]
    for count in range(1, 6):
        mine = hicache_tree.forecast_guidance_tree(anchors[:count], 13, order)
        theirs = hicache_pp.tree.forecast_guidance_tree(anchors[:count], 13, order)
        assert rel(flat_of(mine), flat_of(theirs)) < 1e-10


# --- accuracy on the scenarios ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("horizon", [1, 4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_at_least_as_accurate_as_published(name: str, horizon: int) -> None:
    """The published microbenchmark's setting: rank 4 wherever there is noise, drift or a switch."""
    rank = 0 if name == "clean" else 4
    for seed in range(20):
        path = trajectory(name, seed)
        for n in (6, 8):
            window, truth = list(path[:n]), path[n - 1 + horizon]
            ours = rel(hicache.dmd_forecast(window, horizon, rank=rank), truth)
            theirs = rel(hicache_pp.dmd_forecast(window, horizon, rank=rank), truth)
            assert ours <= theirs * (1 + 1e-6) + 1e-10, (seed, n, ours, theirs)


def test_the_scenarios_tell_forecasters_apart() -> None:
    """Control: reuse does not pass on clean data, and a backwards horizon does not either."""
    path = trajectory("clean", 0)
    theirs = rel(hicache_pp.dmd_forecast(list(path[:6]), 4), path[9])
    assert rel(path[5], path[9]) > theirs and rel(hicache.dmd_forecast(list(path[:6]), -4), path[9]) > theirs


@pytest.mark.parametrize(
    ("n", "horizon", "bound"), [(6, 1, 1e-9), (6, 4, 1e-9), (6, 8, 2e-8), (8, 1, 1e-9), (8, 4, 1e-9), (8, 8, 1e-9)]
)
def test_the_dmd_rule_is_exact_on_the_clean_scenario(n: int, horizon: int, bound: float) -> None:
    """Its poles are half as far apart as their own turn: 6 snapshots leave 1e-8 of float64 at 8 gaps."""
    for seed in range(20):
        v = trajectory("clean", seed)
        window, truth = v[:n].numpy(), v[n - 1 + horizon]
        w = DMD().weights(np.arange(float(n)), n - 1.0 + horizon, window @ window.T)
        error = rel(torch.from_numpy(w @ window), truth)
        assert error < bound
        assert error < rel(hicache_pp.dmd_forecast(list(v[:n]), horizon), truth) / 5
