"""Benchmarks of cost, benefit and compatibility. Run each with ``python -m`` and its name."""
