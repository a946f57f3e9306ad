"""The published package's own self-tests, run from its installed source with its names bound to ours.

The ``__main__`` block of each module is read from the installed ``hicache_pp``, and every top-level statement of it is
executed here, except imports, exits and what looks into private state (strings that begin with an underscore).
"""

from __future__ import annotations

import ast
import inspect
import math
from types import ModuleType
from typing import Any

import hicache_pp.dmd
import hicache_pp.hermite
import hicache_pp.tree
import pytest
import torch
from torch.utils import _pytree

from forecache import hicache
from forecache.hicache import tree as hicache_tree

Results = list[tuple[str, bool]]


def is_private(node: ast.AST) -> bool:
    """Whether the statement names private state or a private function of the published module."""
    return any(
        (isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.startswith("_"))
        or (isinstance(n, ast.Name) and n.id == "_dmd_forecast_flat")
        for n in ast.walk(node)
    )


def statements(module: ModuleType) -> list[ast.stmt]:
    """Statements of the module's self-test that do not look inside; loops keep the part of their body that does not."""
    tree = ast.parse(inspect.getsource(module))
    main = next(n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test))

    def keep(body: list[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                if any(name.name in ("math", "torch") for name in node.names):
                    kept.append(node)
                continue
            if isinstance(node, (ast.Try, ast.Raise)) or "sys.exit" in ast.unparse(node):
                continue
            if isinstance(node, ast.FunctionDef) and node.name == "check":
                continue
            if isinstance(node, ast.For):
                node.body = keep(node.body)
                if node.body:
                    kept.append(node)
            elif not is_private(node):
                kept.append(node)
        return kept

    return keep(main.body)


def selftest(module: ModuleType, names: dict[str, Any]) -> tuple[Results, list[str]]:
    """``check`` results and the statements that rested on a dropped one."""
    results: Results = []
    skipped: list[str] = []
    space = {"torch": torch, "math": math, "_pytree": _pytree, **names}
    space["check"] = lambda name, condition: results.append((name, bool(condition)))
    for node in statements(module):
        try:
            exec(compile(ast.Module([node], []), module.__name__, "exec"), space)
        except NameError as error:  # a name that a dropped statement would have defined
            skipped.append(f"{error}: {ast.unparse(node)[:60]}")
    return results, skipped


def ours(module: ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


FLAT, TREE = ours(hicache), ours(hicache_tree)
CASES = [(hicache_pp.hermite, FLAT, 15), (hicache_pp.dmd, FLAT, 13), (hicache_pp.tree, TREE, 14)]
IDS = ["hermite", "dmd", "tree"]


@pytest.mark.parametrize(("module", "names", "least"), CASES, ids=IDS)
def test_published_selftest_passes(module: ModuleType, names: dict[str, Any], least: int) -> None:
    results, skipped = selftest(module, names)
    assert [name for name, passed in results if not passed] == []
    assert len(results) >= least, (len(results), skipped)
    assert len(skipped) <= 1, skipped


def test_the_selftests_can_fail() -> None:
    """Control: the same runs with a forecast in the wrong direction, and with DMD and trees replaced by reuse."""

    def backwards(state: dict[str, Any]) -> torch.Tensor:
        k = state["step"] - state["activated_steps"][-1]
        return hicache.hicache_forecast({**state, "step": state["step"] - 2 * k})

    broken: list[tuple[ModuleType, dict[str, Any]]] = [
        (hicache_pp.hermite, {**FLAT, "hicache_forecast": backwards}),
        (hicache_pp.dmd, {**FLAT, "dmd_forecast": lambda snapshots, k, **_: snapshots[-1].clone()}),
        (hicache_pp.tree, {**TREE, "hicache_forecast_tree": lambda state: state["derivatives"][0]}),
    ]
    for module, names in broken:
        results, _ = selftest(module, names)
        assert not all(passed for _, passed in results)
