"""Flows, samplers that integrate them, and published caches: what the zoo and the frontier measure with."""
