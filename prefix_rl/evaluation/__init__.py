"""Evaluation: sampling without prefixes, accuracy with its interval, accuracy from a given part of a demonstration."""
