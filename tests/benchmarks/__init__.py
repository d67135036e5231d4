"""Benchmarks, run by hand: python -m tests.benchmarks.NAME. Each figure is a ratio of two things timed in turn."""
