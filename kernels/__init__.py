"""Numeric kernels; imports nothing of ours."""
