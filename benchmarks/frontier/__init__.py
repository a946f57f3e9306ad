"""The frontier benchmark: solvers with fewer steps, published caches and plans at the same number of network calls.

``python -m benchmarks.frontier CHECKOUT --settings hunyuan50 --out DIR``. Two distances for every row: drift to the
N-step Euler run that a cache imitates, and error to a fine solution of the same flow.
"""
