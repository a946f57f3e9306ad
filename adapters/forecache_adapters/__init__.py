"""Adapters: how one generator's sampler talks to the core. ``forecache_adapters.<generator>.enable(pipe, ...)``."""
