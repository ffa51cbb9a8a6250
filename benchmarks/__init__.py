"""Measurements of the project: run them from its root, as `python -m benchmarks.speed.run`."""
