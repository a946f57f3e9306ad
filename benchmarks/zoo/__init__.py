"""The zoo: flows x grids x budgets, where the default is held against published rules and solvers with as many calls.

``python -m benchmarks.zoo --half develop --out DIR``, or ``nox -s zoo``; see README.md beside this file.
"""
