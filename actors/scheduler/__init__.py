"""Continuous batching: which request computes what in the next step."""
