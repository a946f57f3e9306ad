"""Measuring: procedural solids, trained reference networks, geometry metrics and drift tables."""
