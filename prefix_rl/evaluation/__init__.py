"""Evaluation: benchmarks, sampling without prefixes, numbers with their intervals, comparison of two policies."""
