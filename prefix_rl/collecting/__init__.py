"""Collecting traces of the policy's own."""
