"""How the small reference networks were trained; their weights lie in `benchmarks/weights`."""
